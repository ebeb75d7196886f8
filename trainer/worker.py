"""The worker: one process per device, from its first instruction to its last words.

An agent calls main(start) in a freshly forked process. A person runs
`torchrun -m midwatch.trainer.worker SPEC`, which trains without any controller.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store

from ..checkpoints.dcp import Saver
from ..checkpoints.manifest import SaverConfig
from ..checkpoints.source import Opener, in_run_folder
from ..checkpoints.tiered import Tiers
from ..logbook.errors import ConfigError, MidwatchError
from ..logbook.wire import Command, Finished, Phase, ProgressPage, WorkerFailed, WorkerStart
from .config import TrainConfig, check_mesh
from .control import Mailbox, die_with_parent, exit_without_agent
from .data import shards
from .data.held_out import HeldOut
from .data.sampler import BatchShape, Sampler
from .environment import environment_of
from .flight import enable_recorder, take_trace
from .inputs import check_vocab
from .loop import Loop
from .parts import Parts, Progress
from .rendezvous import connect_store, join, meeting_of
from .report import PipeReport, Report
from .resume import resume
from .step import TrainStep

STACK_FILE_VARIABLE = "MIDWATCH_STACK_FILE"
"""Where SIGUSR1 writes the stacks of all threads: a path, or the number of an open descriptor."""
_LAST_WORDS_S = 5.0
# What a collective says when a peer is gone; torch raises plain RuntimeError for most of them.
_PEER_SIGNS = (
    "gloo",
    "NCCL",
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "store->get",
    "TCPStore",
)


def main(start: WorkerStart) -> None:
    """Train as start says and return when done; never returns after a failure (exit status 1)."""
    die_with_parent()
    dump_stacks_on_signal()
    assert start.report_fd is not None
    report = PipeReport(start.report_fd, exit_without_agent)

    def answer(order: Command) -> None:
        if order.kind == "trace":
            backend = "nccl" if torch.cuda.is_initialized() else "gloo"
            report.send(take_trace(start.rank, backend))

    enable_recorder(os.path.join(tempfile.gettempdir(), f"midwatch-{os.getpid()}-collectives-"))
    mailbox = Mailbox(start.command_fd, start.first_command, exit_without_agent, answer)
    page = None if start.progress_fd is None else ProgressPage(start.progress_fd)
    serve(start, None, report, mailbox, Progress(page))


def serve(
    start: WorkerStart,
    store: Store | None,
    report: Report,
    mailbox: Mailbox,
    progress: Progress,
) -> None:
    """Run one rank to its end and say how it ended; exits with status 1 on failure.

    store: of the rendezvous, when the caller has connected it; None connects as start says.
    """
    try:
        finished = _train(start, store, report, mailbox, progress)
        report.send(finished)
        report.close(_LAST_WORDS_S)
    except BaseException as error:
        code, message = failure_of(error)
        report.send(WorkerFailed(start.rank, code, message, traceback.format_exc()))
        report.close(_LAST_WORDS_S)
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit: threads of a broken process group may never end, and the peers of this
        # rank learn that it has failed from the end of its connections.
        os._exit(1)


def failure_of(error: BaseException) -> tuple[str, str]:
    """Return the stable code of a failure and what it says.

    "collective-failed" and "rendezvous-failed" are consequences of another rank's end; every other
    code is this rank's own.
    """
    if isinstance(error, MidwatchError):
        return error.code, f"{error.message} {error.remedy}".strip()
    message = f"{type(error).__name__}: {error}"
    if isinstance(error, dist.DistError):
        return "collective-failed", message
    if isinstance(error, RuntimeError) and any(sign in str(error) for sign in _PEER_SIGNS):
        return "collective-failed", message
    if isinstance(error, torch.OutOfMemoryError):
        return "out-of-memory", message
    return "worker-raised", message


def dump_stacks_on_signal() -> None:
    """Have SIGUSR1 write the stacks of all threads, if the environment says where to.

    The handler is C code that needs no lock, so it answers from a process that hangs.
    """
    target = os.environ.get(STACK_FILE_VARIABLE)
    if not target:
        return
    descriptor = int(target) if target.isdecimal() else os.open(target, _APPEND, 0o644)
    faulthandler.register(signal.SIGUSR1, file=descriptor, all_threads=True, chain=False)


_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND


def _train(
    start: WorkerStart,
    store: Store | None,
    report: Report,
    mailbox: Mailbox,
    progress: Progress,
) -> Finished:
    progress.note(Phase.RENDEZVOUS)
    config = validated(start.trainer)
    check_mesh(config, start.mesh, start.world_size)
    device = _device(config, start.local_rank)
    torch.set_num_threads(config.threads)
    # Files are checked before the ranks connect, so a bad corpus is reported without any wait.
    sampler, held_out = _sampler(start, config), _held_out(config)
    join(start, store or connect_store(meeting_of(start)), device)
    progress.note(Phase.BUILDING)
    train_step = TrainStep(config, start.mesh, start.hyper, device, progress.note)
    saver_config = _saver_config(start, config)
    on_stage = report.send if start.rank == 0 else None
    saver = Saver(saver_config, on_stage, start.memory)
    parts = Parts(
        rank=start.rank,
        mesh=start.mesh,
        config=config,
        fingerprint=saver_config.fingerprint,
        device=device,
        train_step=train_step,
        sampler=sampler,
        saver=saver,
        mailbox=mailbox,
        report=report,
        progress=progress,
        held_out=held_out,
    )
    position = resume(parts, _candidates(start), start.hyper)
    last_step = config.steps if start.until_step is None else start.until_step
    finished = Loop(parts, position, start.validated_step).run(last_step)
    saver.close()
    # Rank 0 serves the store, so nobody leaves before everybody is done.
    dist.barrier()
    dist.destroy_process_group()
    return finished


def validated(section: dict[str, Any]) -> TrainConfig:
    """Return the trainer section as a config. Raises: ConfigError[trainer-section-invalid]."""
    try:
        return TrainConfig.model_validate(section)
    except ValueError as error:
        raise ConfigError(
            "trainer-section-invalid",
            f"the trainer section cannot work: {error}",
            remedy="Correct the named fields of the run spec.",
        ) from error


def _device(config: TrainConfig, local_rank: int) -> torch.device:
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise ConfigError(
            "no-gpu",
            "trainer.device is cuda, but this node has no usable GPU.",
            remedy="Set trainer.device to auto or cpu, or look at the node's driver.",
        )
    if config.device == "cpu" or not has_gpu:
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _sampler(start: WorkerStart, config: TrainConfig) -> Sampler:
    folder = Path(config.data.dir)
    manifest = shards.read_manifest(folder)
    check_vocab(config, folder, manifest)
    # One process per node reads all bytes, and only when a run begins: a restart is in a hurry
    # and checks sizes, which is what a torn write changes.
    is_first = not start.checkpoints and start.local_rank == 0
    stream = shards.open_stream(folder, config.data.split, checksums=is_first)
    shape = BatchShape(
        micro_batch=config.micro_batch_size,
        grad_accum=config.microbatches(start.mesh),
        dp_size=start.mesh.dp_shard,
        seq_len=config.seq_len,
    )
    return Sampler(stream, shape, config.seed)


def _held_out(config: TrainConfig) -> HeldOut | None:
    validation = config.validation
    if not validation.interval_steps:
        return None
    stream = shards.open_stream(Path(config.data.dir), "valid")
    return HeldOut(stream, config.seq_len, validation.sequences)


def _candidates(start: WorkerStart) -> Sequence[tuple[str, Opener]]:
    if start.storage is None:
        return in_run_folder(start.run_dir, start.checkpoints)
    return Tiers(start.storage, start.run).candidates(start.checkpoints)


def _saver_config(start: WorkerStart, config: TrainConfig) -> SaverConfig:
    return SaverConfig(
        run=start.run,
        run_dir=start.run_dir,
        attempt=start.attempt,
        rank=start.rank,
        world_size=start.world_size,
        mesh=start.mesh,
        fingerprint=environment_of(config),
        local_rank=start.local_rank,
        storage=start.storage,
    )


if __name__ == "__main__":
    from .standalone import run

    raise SystemExit(run(sys.argv[1:]))
