"""What an agent and a worker say to each other.

A worker is born with one WorkerStart and three inherited file descriptors: a pipe on which it
writes WorkerMessages, a pipe from which it reads Commands, and a small shared page (ProgressPage)
in which it notes where it is. The training loop makes no Ray call and never waits for the agent.
A frame is a 4-byte little-endian length, then msgpack, of at most MAX_FRAME_BYTES.
These types stand in logbook/ because both the trainer and the operator speak them.
"""

from __future__ import annotations

import struct
from typing import Any, Generic, TypeVar

import msgspec

from .decoding import prepared
from .hyper import Command as Command
from .hyper import Hyper as Hyper
from .hyper import LrChange as LrChange
from .hyper import Setting as Setting
from .preflight import PreflightDone
from .progress import PROGRESS_BYTES as PROGRESS_BYTES
from .progress import Phase as Phase
from .progress import ProgressPage as ProgressPage
from .tiers import MemoryOrder, Storage, TierRefused

MAX_FRAME_BYTES = 1 << 20
PEER_CODES = frozenset({"collective-failed", "peer-lost", "rendezvous-failed"})
"""Last words of a worker that ended because another one had."""


class Mesh(msgspec.Struct, frozen=True):
    """Device mesh: world_size = dp_shard * tp; rank = dp_index * tp + tp_index."""

    dp_shard: int
    tp: int

    @property
    def world_size(self) -> int:
        return self.dp_shard * self.tp


class WorkerStart(msgspec.Struct, frozen=True):
    """Everything a worker process needs to begin; sent once, before its first instruction.

    checkpoints: ids of checkpoints to resume from, best first; empty means a fresh start. A worker
        verifies before it trusts and falls back along the list.
    rendezvous_host/port: of the attempt's TCP store. Rank 0 serves it, on the already listening
        socket listen_fd when that is not None, so no port can be lost to a race.
    trainer: the trainer's own configuration, as plain data; the agent does not read it.
    until_step: train until this many steps are completed; None leaves it to the configuration.
    validated_step: newest step of the lineage whose measurement on held-out text is known; 0: none.
    first_command: commands with a lower seq are already folded into hyper and must be ignored.
    memory: None keeps nothing in memory and loads nothing from there.
    storage: None keeps checkpoints in run_dir, which then all ranks share.
    """

    run: str
    run_dir: str
    attempt: int
    rank: int
    local_rank: int
    world_size: int
    node: str
    mesh: Mesh
    rendezvous_host: str
    rendezvous_port: int
    trainer: dict[str, Any]
    hyper: Hyper = Hyper()
    checkpoints: tuple[str, ...] = ()
    until_step: int | None = None
    first_command: int = 1
    listen_fd: int | None = None
    report_fd: int | None = None
    command_fd: int | None = None
    progress_fd: int | None = None
    memory: MemoryOrder | None = None
    storage: Storage | None = None
    validated_step: int = 0


# --- worker -> agent ----------------------------------------------------------------------------


class Resumed(msgspec.Struct, frozen=True, tag="resumed"):
    """A rank holds its state and is about to train. checkpoint "" means a fresh start.

    passed_over: (checkpoint id, error code: reason) of every candidate that failed to load.
    tier:     where the state came from: "memory", "disk" or "store"; "" for a fresh start.
    repaired: (file, why) of each bad or missing copy in whose place another copy was read.
    differs:  what is not as it was where the checkpoint was saved, one line each.
    recalled: the last steps before the state, from memory: with their reporter their reports may
        have been lost. Rank 0's only.
    readback: what the next step will run under, read from the live optimizer.
    """

    rank: int
    step: int
    checkpoint: str
    load_s: float = 0.0
    passed_over: tuple[tuple[str, str], ...] = ()
    tier: str = ""
    repaired: tuple[tuple[str, str], ...] = ()
    differs: tuple[str, ...] = ()
    recalled: tuple[StepSample, ...] = ()
    readback: dict[str, float] = {}


class StepSample(msgspec.Struct, frozen=True, tag="step"):
    """One completed step as every rank agrees on it; sent by rank 0.

    Units: loss nats/token; grad_norm before clipping (NaN allowed); loss_scale None outside fp16;
    activation_norm L2 of the final layer's output, mean over tokens; *_s seconds.
    skipped: the optimizer step was skipped on all ranks because found_inf was set on at least one.
    data_step: the sampler position that this step consumed.
    memory_step: newest step whose whole state is known to be in the nodes' memory, None before
        there is one.
    """

    step: int
    time_s: float
    loss: float
    grad_norm: float
    lr: float
    activation_norm: float
    found_inf: bool
    skipped: bool
    loss_scale: float | None
    tokens: int
    data_step: int
    step_s: float
    tokens_per_s: float
    model_tflops_per_device: float
    memory_step: int | None = None


class RankSample(msgspec.Struct, frozen=True, tag="rank"):
    """One rank's own share of a step: where its time went and what only it saw.

    compute_s excludes waiting for other ranks, so stragglers show. local_* are before any
    cross-rank reduction, so one rank's corruption shows.
    """

    rank: int
    step: int
    step_s: float
    data_s: float
    forward_s: float
    backward_s: float
    comm_s: float
    optimizer_s: float
    local_loss: float
    local_grad_norm: float
    found_inf: bool


class Validating(msgspec.Struct, frozen=True, tag="validating"):
    """The ranks measure step on held-out text: done of total rounds; now and then, by rank 0."""

    rank: int
    step: int
    done: int
    total: int


class Validated(msgspec.Struct, frozen=True, tag="validated"):
    """What the weights after step make of held-out text, the mean over all ranks; sent by rank 0.

    Units: loss nats/token; ended_s since the epoch; spent_s is how long training waited.
    """

    rank: int
    step: int
    loss: float
    sequences: int
    tokens: int
    ended_s: float
    spent_s: float


class CheckpointTags(msgspec.Struct, frozen=True):
    """The health of the run at the step of a checkpoint."""

    loss: float
    grad_norm: float
    activation_norm: float
    loss_scale: float | None
    lr: float


class CheckpointStage(msgspec.Struct, frozen=True, tag="checkpoint"):
    """Progress of one save; sent by rank 0. stage: "staged" | "committed" | "failed".

    blocked_s: how long the training loop stood still; save_s: until the commit.
    """

    checkpoint: str
    step: int
    stage: str
    bytes: int = 0
    blocked_s: float = 0.0
    save_s: float = 0.0
    tags: CheckpointTags | None = None
    error: str = ""


class Applied(msgspec.Struct, frozen=True, tag="applied"):
    """A command took effect on this rank. readback holds values read from the live optimizer.

    at_step is the first step that runs under the new values and is the same on every rank. hyper
    holds every change in force afterwards, None when the command changed nothing.
    phase: "scheduled" when at_step is still to come, "applied" when it has, "expired" when at_step
        is the first step after a change that was made for a while; seq is then 0.
    cause: of the command. until_step: the first step that no longer runs under the new values.
    """

    rank: int
    seq: int
    at_step: int
    readback: dict[str, float]
    previous: dict[str, float] = {}
    error: str = ""
    hyper: Hyper | None = None
    phase: str = "applied"
    cause: str = ""
    until_step: int | None = None


class WorkerFailed(msgspec.Struct, frozen=True, tag="failed"):
    """The worker's last words before it exits with a non-zero status."""

    rank: int
    code: str
    message: str
    traceback: str = ""


class CollectiveMark(msgspec.Struct, frozen=True):
    """Where a rank stands in the collectives of one process group.

    enqueued, completed: number of the last one it has called, and that has come to its end.
    op: what the last one called is, as the backend names it; "" when it does not say.
    """

    group: str
    enqueued: int
    completed: int
    op: str = ""


class CollectiveTrace(msgspec.Struct, frozen=True, tag="collectives"):
    """Answer to the command "trace". error: why there are no marks, "" when there are."""

    rank: int
    marks: tuple[CollectiveMark, ...] = ()
    error: str = ""


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """The rank has completed the run (or was told to stop, when stopped is set)."""

    rank: int
    step: int
    stopped: bool = False


WorkerMessage = (
    Resumed
    | StepSample
    | RankSample
    | CheckpointStage
    | Applied
    | WorkerFailed
    | Finished
    | CollectiveTrace
    | PreflightDone
    | TierRefused
    | Validating
    | Validated
)

# --- agent -> worker ----------------------------------------------------------------------------

ASIDE = 0
"""seq of an order that is no step of the run."""


# --- frames --------------------------------------------------------------------------------------

_LENGTH = struct.Struct("<I")
_encoder = msgspec.msgpack.Encoder()


def encode_frame(message: msgspec.Struct) -> bytes:
    """Return one length-prefixed frame. Raises ValueError past MAX_FRAME_BYTES (a bug of ours)."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"frame of {len(body)} bytes exceeds {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


M = TypeVar("M")


class FrameReader(Generic[M]):
    """Cut a byte stream back into messages, however the pipe split it."""

    def __init__(self, message_type: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(prepared(message_type))
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[M]:
        """Return the messages completed by data. Raises ValueError on an impossible frame."""
        self._pending += data
        messages: list[M] = []
        while len(self._pending) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._pending)
            if size > MAX_FRAME_BYTES:
                raise ValueError(f"frame of {size} bytes exceeds {MAX_FRAME_BYTES}")
            end = _LENGTH.size + size
            if len(self._pending) < end:
                break
            messages.append(self._decoder.decode(bytes(self._pending[_LENGTH.size : end])))
            del self._pending[:end]
        return messages


def worker_message_reader() -> FrameReader[WorkerMessage]:
    """Return the reader an agent uses on a worker's report pipe."""
    return FrameReader(WorkerMessage)


def command_reader() -> FrameReader[Command]:
    """Return the reader a worker uses on its command pipe."""
    return FrameReader(Command)
