"""Save and load sharded training state: torch DCP's files, our manifest, no wait for the loop.

The loop waits only while its state is copied into an image of this rank's file (dcp_image.py); the
saving thread then hashes and writes that image without touching a Python object, so it hardly ever
holds the interpreter lock that the loop needs. Any torch.distributed.checkpoint.load can read the
files. Loading is in dcp_load.py.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec

from ..logbook.tiers import MemoryOrder
from ..logbook.wire import CheckpointStage, StepSample
from .cadence import Cadence
from .dcp_exchange import GlooExchange, NoExchange
from .dcp_image import describe_for_dcp
from .dcp_load import LoadReport, load, load_first
from .dcp_memory import Kept, MemoryTier
from .dcp_stage import Stage
from .dcp_state import flatten
from .manifest import CHECKPOINTS_DIR, Fingerprint, SaveHeader, SaverConfig, checkpoint_id
from .node_commit import committer_for
from .saving import StagedFile

__all__ = [
    "Fingerprint",
    "LoadReport",
    "SaveHandle",
    "SaveHeader",
    "Saver",
    "SaverConfig",
    "load",
    "load_first",
]


class SaveHandle:
    """One save under way; the state may be changed as soon as the caller holds it.

    blocked_s: how long save() kept the caller.
    """

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint = checkpoint
        self.blocked_s = 0.0
        self._ended = threading.Event()
        self._outcome: CheckpointStage | None = None

    def is_done(self) -> bool:
        """Return whether the save has ended, well or badly, without waiting."""
        return self._ended.is_set()

    def result(self, timeout_s: float | None = None) -> CheckpointStage:
        """Wait for the end and return it: stage "committed" or "failed", the same on every rank.

        Raises: TimeoutError.
        """
        if not self._ended.wait(timeout_s) or self._outcome is None:
            raise TimeoutError(f"checkpoint {self.checkpoint} is not finished after {timeout_s} s")
        return self._outcome

    def _end(self, outcome: CheckpointStage) -> None:
        self._outcome = outcome
        self._ended.set()


class _Layout(msgspec.Struct, frozen=True):
    flat: dict[str, Any]
    paths: dict[str, Any]


class _Job(msgspec.Struct, frozen=True):
    handle: SaveHandle
    header: SaveHeader
    staged: StagedFile
    begun_s: float
    recent: tuple[StepSample, ...] | None
    to_disk: bool


class Saver:
    """Write checkpoints of one attempt; every rank holds one and calls save at the same steps.

    The constructor is collective over the default process group (all ranks, same order).
    on_stage is called with "staged" on the caller's thread, then with "committed" or "failed" on
    the saving thread, so it must be thread-safe and quick; pass it on rank 0 only.
    memory: how to use the memory tier; None does without. Its part of this rank is `memory`.
    """

    def __init__(
        self,
        config: SaverConfig,
        on_stage: Callable[[CheckpointStage], None] | None = None,
        memory: MemoryOrder | None = None,
    ) -> None:
        self._config = config
        self._on_stage = on_stage
        # A directory that cannot be made is reported by each save; training goes on without.
        with contextlib.suppress(OSError):
            (Path(config.root) / CHECKPOINTS_DIR).mkdir(parents=True, exist_ok=True)
        self._exchange = GlooExchange(config) if config.world_size > 1 else NoExchange()
        self._committer = committer_for(config, self._exchange, describe_for_dcp)
        order = memory or MemoryOrder(ranks_per_node=1, since=0)
        self.memory = MemoryTier(order, config, self._exchange) if memory is not None else None
        self.cadence = Cadence(order.every_steps, order.cost_frac)
        self._stage = Stage(config.rank, self.memory)
        self._copied_step = 0
        self._last: SaveHandle | None = None
        self._callback_error: Exception | None = None
        self._jobs: SimpleQueue[_Job | _Layout | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="midwatch-saver", daemon=True)
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """Whether a save is in flight on this rank (ranks may differ for a moment)."""
        return self._last is not None and not self._last.is_done()

    @property
    def memory_step(self) -> int | None:
        """Newest step whose state this attempt has whole in memory, None before there is one."""
        newest = self.memory.newest if self.memory is not None else None
        return newest.step if newest is not None else None

    def prepare(self, state: dict[str, Any]) -> None:
        """Lay out the image of this rank's file on the saving thread, beside the first steps.

        Optional, once, before the first save, with a state of the same layout; without it the first
        save does this while the loop waits. Not collective.
        """
        flat, paths = flatten(state)
        self._stage.announce()
        self._jobs.put(_Layout(flat, paths))

    def memory_level(self, step: int, until_save_steps: int) -> int:
        """Return what this rank can do for the memory tier after step: what all ranks agree on.

        0: nothing; 1: its part of a save to disk can be copied to memory as well; 2: it is time for
        a copy, and one would not wait. All ranks act on the lowest.
        until_save_steps: as in Cadence.is_due.
        """
        if self.memory is None or self.memory.refusal or not self._stage.is_laid_out:
            return 0
        is_due = self.cadence.is_due(step - self._copied_step, until_save_steps)
        return 2 if is_due and not self.is_busy else 1

    def keep(
        self, state: dict[str, Any], header: SaveHeader, recent: tuple[StepSample, ...] = ()
    ) -> SaveHandle:
        """Copy the state to the nodes' memory only, without waiting for the copies to end.

        Every rank calls it at the steps for which all have memory_level 2. Its handle ends in
        stage "kept" or "failed"; the outcome stands in memory.newest, and nothing is reported.
        recent: samples of the last steps, on the rank that reports them.
        """
        return self._begin(state, header, recent, to_disk=False)

    def save(
        self,
        state: dict[str, Any],
        header: SaveHeader,
        *,
        sync: bool = False,
        recent: tuple[StepSample, ...] | None = None,
    ) -> SaveHandle:
        """Copy the state to host memory, return, and write it on the saving thread.

        At most one save is in flight: a second request waits for the first to end (never skipped,
        so that ranks cannot disagree about which saves exist); that wait is in blocked_s. A step
        that is committed already is not saved again: its handle comes back. With sync, return only
        after the end. A save that fails (disk full, no permission) never raises: its stage is
        "failed" with a code, what it wrote is removed, and training goes on. With recent (on
        all ranks, as in keep), which needs memory_level 1, it is first copied to memory as well.

        state: nested dicts and lists whose leaves are DTensors, tensors or plain values (None,
            bool, int, float, str, bytes). Plain tensors and values must be equal on all ranks that
            use the same key.
        Raises: ConfigError[state-not-plain] for any other leaf; what on_stage raised on the saving
            thread.
        """
        checkpoint = checkpoint_id(header.step, self._config.attempt)
        if self._last is not None:
            outcome = self._last.result()
            if self._last.checkpoint == checkpoint and outcome.stage == "committed":
                return self._last
        handle = self._begin(state, header, recent, to_disk=True)
        if sync:
            begun_s = time.monotonic()
            handle.result()
            handle.blocked_s += time.monotonic() - begun_s
        return handle

    def _begin(
        self,
        state: dict[str, Any],
        header: SaveHeader,
        recent: tuple[StepSample, ...] | None,
        *,
        to_disk: bool,
    ) -> SaveHandle:
        begun_s = time.monotonic()
        if self._last is not None:
            self._last.result()
        if self._callback_error is not None:
            raise self._callback_error
        staged = self._stage.stage(state)
        handle = SaveHandle(checkpoint_id(header.step, self._config.attempt))
        handle.blocked_s = time.monotonic() - begun_s
        self._last = handle
        if recent is not None:
            self._copied_step = header.step
        if to_disk:
            self._report(
                CheckpointStage(
                    handle.checkpoint,
                    header.step,
                    "staged",
                    bytes=len(staged.data),
                    blocked_s=handle.blocked_s,
                    tags=header.tags,
                )
            )
        self._jobs.put(_Job(handle, header, staged, begun_s, recent, to_disk))
        return handle

    def close(self, timeout_s: float = 30.0) -> None:
        """Wait for the save in flight, then end the saving thread and its process group.

        A save that does not end in time is left to the daemon thread: without a manifest it never
        existed.
        """
        self._jobs.put(None)
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            self._exchange.close()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if isinstance(job, _Layout):
                self._stage.lay_out(job.flat, job.paths)
                continue
            stage = "kept" if job.recent is None else self._copy(job, job.recent)
            outcome = CheckpointStage(job.handle.checkpoint, job.header.step, stage)
            if job.to_disk:
                outcome = self._committer.run(job.header, job.staged, job.begun_s)
                outcome = msgspec.structs.replace(outcome, blocked_s=job.handle.blocked_s)
            try:
                if job.to_disk:
                    self._report(outcome)
            except Exception as error:  # Whatever the caller's callback raises is the caller's.
                self._callback_error = error
            finally:
                job.handle._end(outcome)

    def _copy(self, job: _Job, recent: tuple[StepSample, ...]) -> str:
        """Copy what is staged to memory, here and on the next node; return how that ended."""
        begun_s, worked_s = time.monotonic(), time.thread_time()
        try:
            is_kept = self._stage.keep_staged(Kept(job.header, recent))
        except Exception:  # The death of a peer has no type of its own in torch.
            return "failed"
        # On a CPU this thread takes its time from the training; beside a GPU it does not.
        worked_s = time.thread_time() - worked_s if self._stage.is_on_cpu else 0.0
        self.cadence.copy_done(job.handle.blocked_s + worked_s, time.monotonic() - begun_s)
        return "kept" if is_kept else "failed"

    def _report(self, stage: CheckpointStage) -> None:
        if self._on_stage is not None:
            self._on_stage(stage)
