"""The Checkpoints port over Ray: the run folder alone, or each node's disk and a durable store.

With a store the controller itself touches neither: the agents' uploaders have the disks and the
credentials, so whatever is to be looked at or deleted is an errand of theirs. Nothing here waits.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from ...checkpoints.retention import collect_garbage
from ...checkpoints.store import LocalStore
from ...logbook.decoding import prepared
from ...logbook.events import CheckpointCommitted
from ...logbook.state import RunState
from ..agent.reports import PartHeld
from ..agent.upload_wire import Delete, Forget, Sweep
from ..ports import CommitFound, PruneResult, Signal, VerifyResult
from .ray_calls import ignore, on_result
from .ray_verification import Verification, answer_of, run_errand

SETTLE_S = 5.0
"""How long the reporter of a commit has before the parts that lie on the nodes speak for it."""
RETRY_S = 5.0
VERIFY_PATIENCE_S = 900.0
"""How long a reading is waited for: meanwhile none of the same checkpoint is begun beside it."""
PARTS_MAX = 64
_decode_parts = msgspec.msgpack.Decoder(prepared(tuple[PartHeld, ...])).decode
_log = logging.getLogger(__name__)

Agents = Callable[[], list[tuple[str, Any]]]
"""Returns (node, actor) of the agents that are there, the one that serves rank 0 first."""
Emit = Callable[[Signal], None]


class RunCheckpoints(Protocol):
    """The Checkpoints port, and what its owner tells it of agents and attempts."""

    def verify(self, checkpoint: str) -> None: ...

    def prune(self, checkpoints: tuple[str, ...]) -> None: ...

    def unknown(self, known: Sequence[str]) -> list[CheckpointCommitted]: ...

    def sweep(self, attempt: int) -> None:
        """Remove what the saves of older attempts left unfinished."""
        ...

    def met(self, node: str, agent: Any) -> None:
        """An agent is there."""
        ...

    def note(self, report: PartHeld) -> None:
        """An agent has found a part of a checkpoint on its disk."""
        ...

    def maintain(self, state: RunState) -> None:
        """Called in every turn of the controller."""
        ...


class _Reading(msgspec.Struct, eq=False):
    """A checkpoint that an agent reads back, begun at begun_s by the monotonic clock.

    is_answered: None while it goes on, False where the agent failed.
    """

    checkpoint: str
    agent: Any
    begun_s: float
    is_answered: bool | None = None


class FolderCheckpoints:
    """Checkpoints in the run folder, which all nodes share."""

    def __init__(self, run_dir: str, agents: Agents, emit: Emit) -> None:
        self._store = LocalStore(run_dir)
        self._agents = agents
        self._emit = emit
        # In the order in which they were asked for.
        self._to_read: dict[str, None] = {}
        self._has_overtaken = False
        self._readings: list[_Reading] = []

    def verify(self, checkpoint: str) -> None:
        """Have the agent that serves rank 0 read the checkpoint back, one at a time.

        A reading may take longer than the run waits before it asks again, or than the next save: an
        agent that began another each time would have no thread left to be spoken to. One that takes
        too long is waited for no more, and its agent is asked for no other until it ends.
        """
        self._settle()
        if all(reading.checkpoint != checkpoint for reading in self._awaited()):
            self._to_read.setdefault(checkpoint)
        self._read_next()

    def _settle(self) -> None:
        """Let go of the readings that are over; what was answered late is not read once more."""
        over = [reading for reading in self._readings if reading.is_answered is not None]
        self._readings = [reading for reading in self._readings if reading not in over]
        for reading in over:
            if reading.is_answered:
                self._to_read.pop(reading.checkpoint, None)

    def _awaited(self) -> list[_Reading]:
        agents, now_s = self._agents(), time.monotonic()
        return [
            reading
            for reading in self._readings
            if now_s - reading.begun_s < VERIFY_PATIENCE_S
            and any(agent is reading.agent for _, agent in agents)
        ]

    def _read_next(self) -> None:
        busy = [reading.agent for reading in self._readings]
        free = [agent for _, agent in self._agents() if all(agent is not each for each in busy)]
        if not free or not self._to_read or self._awaited():
            return
        checkpoint = self._next_to_read()
        reading = _Reading(checkpoint, free[0], time.monotonic())
        self._readings.append(reading)

        def done(error: str) -> None:
            reading.is_answered = True
            self._emit(VerifyResult(checkpoint, error))

        def failed(error: BaseException) -> None:
            # An agent that dies says nothing about the checkpoint: it is asked for again.
            reading.is_answered = False
            ignore(error)

        on_result(reading.agent.verify.remote(checkpoint), done, failed)

    def _next_to_read(self) -> str:
        """Take the newest, but never twice in a row before the one that waits longest."""
        longest, newest = next(iter(self._to_read)), max(self._to_read)
        checkpoint = longest if self._has_overtaken else newest
        self._has_overtaken = checkpoint != longest
        del self._to_read[checkpoint]
        return checkpoint

    def prune(self, checkpoints: tuple[str, ...]) -> None:
        """Delete checkpoints on a thread of its own, however often it takes.

        A crash leaves whole ones or garbage; only what is gone is told of.
        """

        def work() -> None:
            left = tuple(name for name in checkpoints if not self._delete(name))
            gone = tuple(name for name in checkpoints if name not in left)
            if gone:
                self._emit(PruneResult(gone))
            if left:
                _later(self.prune, left)

        threading.Thread(target=work, name="prune", daemon=True).start()

    def _delete(self, checkpoint: str) -> bool:
        try:
            self._store.delete(checkpoint)
        except OSError as error:
            _log.warning("cannot delete %s yet: %s", checkpoint, error)
            return False
        return True

    def sweep(self, attempt: int) -> None:
        def work() -> None:
            try:
                collect_garbage(self._store, attempt)
            except OSError as error:
                _log.warning("cannot remove unfinished saves: %s", error)

        threading.Thread(target=work, name="sweep", daemon=True).start()

    def unknown(self, known: Sequence[str]) -> list[CheckpointCommitted]:
        return [
            CheckpointCommitted(
                attempt=manifest.attempt,
                checkpoint=manifest.id,
                step=manifest.step,
                bytes=manifest.total_bytes,
                blocked_s=0.0,
                save_s=0.0,
                tags=manifest.header.tags,
            )
            for manifest in self._store.listing().committed
            if manifest.id not in known
        ]

    def met(self, node: str, agent: Any) -> None:
        """The folder is the same whoever is there."""

    def note(self, report: PartHeld) -> None:
        """There are no parts."""

    def maintain(self, state: RunState) -> None:
        """Go on to what waits to be read back, if it is still there."""
        self._settle()
        self._to_read = {name: None for name in self._to_read if name in state.checkpoints}
        self._read_next()


class _Parts:
    """Who has which files of one checkpoint."""

    def __init__(self, commit: CheckpointCommitted, num_files: int) -> None:
        self.commit = commit
        self._num_files = num_files
        self._held: dict[str, frozenset[str]] = {}
        self.whole_s: float | None = None

    def add(self, node: str, held: Sequence[str]) -> None:
        self._held[node] = frozenset(held)
        if self.whole_s is None and self.is_whole(list(self._held)):
            self.whole_s = time.monotonic()

    def is_whole(self, nodes: Sequence[str]) -> bool:
        """Whether these nodes together have every file."""
        found = frozenset[str]().union(*(self._held.get(node, frozenset()) for node in nodes))
        return len(found) >= self._num_files


class TieredCheckpoints:
    """Checkpoints in parts on the nodes' disks, and whole in a durable store."""

    def __init__(self, agents: Agents, emit: Emit) -> None:
        self._agents = agents
        self._emit = emit
        self._lock = threading.Lock()
        self._parts: dict[str, _Parts] = {}
        self._verifying: dict[str, float] = {}

    # --- what lies where -------------------------------------------------------------------------

    def met(self, node: str, agent: Any) -> None:
        def told(parts: bytes) -> None:
            for part in _decode_parts(parts):
                self.note(msgspec.structs.replace(part, node=node))

        on_result(agent.parts.remote(), told, ignore)

    def note(self, report: PartHeld) -> None:
        name = report.commit.checkpoint
        with self._lock:
            parts = self._parts.setdefault(name, _Parts(report.commit, report.num_files))
            parts.add(report.node, report.held)
            while len(self._parts) > PARTS_MAX:
                del self._parts[min(self._parts, key=lambda n: self._parts[n].commit.step)]

    def maintain(self, state: RunState) -> None:
        """Tell of checkpoints that are whole on the nodes and whose reporter never spoke."""
        now_s = time.monotonic()
        with self._lock:
            settled = [
                parts.commit
                for name, parts in self._parts.items()
                if parts.whole_s is not None
                and now_s - parts.whole_s > SETTLE_S
                and name not in state.checkpoints
                and name not in state.pruned
            ]
        for commit in settled:
            self._emit(CommitFound(commit))

    def unknown(self, known: Sequence[str]) -> list[CheckpointCommitted]:
        nodes = [node for node, _ in self._agents()]
        with self._lock:
            return [
                parts.commit
                for name, parts in self._parts.items()
                if name not in known and parts.is_whole(nodes)
            ]

    # --- errands ---------------------------------------------------------------------------------

    def verify(self, checkpoint: str) -> None:
        """Have every node read its own part back, and one of them the rest from the store."""
        agents = self._agents()
        now_s = time.monotonic()
        with self._lock:
            begun_s = self._verifying.get(checkpoint)
            is_under_way = begun_s is not None and now_s - begun_s < VERIFY_PATIENCE_S
            if not agents or is_under_way:
                return
            self._verifying[checkpoint] = now_s

        def ended(result: VerifyResult | None) -> None:
            with self._lock:
                self._verifying.pop(checkpoint, None)
            if result is not None:
                self._emit(result)

        Verification(checkpoint, agents, ended).begin()

    def prune(self, checkpoints: tuple[str, ...]) -> None:
        """Delete the nodes' parts, and the checkpoints in the store however often it takes."""
        agents = self._agents()
        for _, agent in agents:
            on_result(run_errand(agent, Forget(checkpoints)), _told, ignore)

        def again(reason: object) -> None:
            _log.warning("cannot delete %s yet: %s", checkpoints, reason)
            _later(self.prune, checkpoints)

        def done(answer: bytes) -> None:
            error = answer_of(answer).error
            if error:
                again(error)
            else:
                self._emit(PruneResult(checkpoints))

        if agents:
            on_result(run_errand(agents[0][1], Delete(checkpoints)), done, again)
        else:
            again("no agent is there")

    def sweep(self, attempt: int) -> None:
        for _, agent in self._agents()[:1]:
            on_result(run_errand(agent, Sweep(attempt)), _told, ignore)


def _later(prune: Callable[[tuple[str, ...]], None], checkpoints: tuple[str, ...]) -> None:
    timer = threading.Timer(RETRY_S, prune, (checkpoints,))
    timer.daemon = True
    timer.start()


def _told(answer: bytes) -> None:
    error = answer_of(answer).error
    if error:
        _log.warning("an errand failed: %s", error)
