"""Save and load sharded training state: torch DCP's files, our manifest, no wait for the loop.

The loop waits only while its state is copied into an image of this rank's file (dcp_image.py); the
copying thread then passes that image to the next node's memory, and the writing thread hashes and
writes it, both without touching a Python object, so they hardly ever hold the interpreter lock that
the loop needs. However long a write takes, copies of later steps go on in the other buffer. Any
torch.distributed.checkpoint.load can read the files. Loading is in dcp_load.py.
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
from ..logbook.wire import CheckpointStage
from .cadence import Cadence
from .dcp_exchange import exchange_for
from .dcp_image import describe_for_dcp
from .dcp_load import LoadReport, load, load_first
from .dcp_memory import Kept, MemoryTier
from .dcp_stage import Stage
from .dcp_state import flatten
from .manifest import CHECKPOINTS_DIR, Fingerprint, SaveHeader, SaverConfig, checkpoint_id
from .memory import Generation
from .node_commit import committer_for
from .saving import StagedFile

__all__ = [
    "BESIDE_SAVE",
    "COPY_NOW",
    "Fingerprint",
    "LoadReport",
    "SaveHandle",
    "SaveHeader",
    "Saver",
    "SaverConfig",
    "load",
    "load_first",
]

BESIDE_SAVE, COPY_NOW = 2, 3
"""The memory levels at which all ranks copy their states to memory; see Saver.memory_level."""


class SaveHandle:
    """One save under way; the state may be changed as soon as the caller holds it.

    blocked_s: how long save() kept the caller.
    """

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint = checkpoint
        self.blocked_s = 0.0
        self._copied = threading.Event()
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
    """What becomes of a state that is staged: a copy in memory, a file on disk, or both.

    stays: the generation that the copy must spare, as in MemoryTier.next_buffer.
    """

    handle: SaveHandle
    header: SaveHeader
    staged: StagedFile
    begun_s: float
    to_memory: bool
    to_disk: bool
    stays: Generation | None


class Saver:
    """Write checkpoints of one attempt; every rank holds one and calls save at the same steps.

    The constructor is collective over the default process group (all ranks, same order).
    on_stage is called with "staged" on the caller's thread, then with "committed" or "failed" on
    the writing thread, so it must be thread-safe and quick; pass it on rank 0 only.
    memory: how to use the memory tier; None does without. Its part of this rank is `memory`.

    _last is the newest save of any kind, _in_flight the newest to disk, and _saved what that is in
    memory, None where not all ranks have it there whole.
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
        # Copies go on beside a save, so neither may meet a message of the other.
        self._exchanges = [exchange_for(config) for _ in range(1 if memory is None else 2)]
        self._committer = committer_for(config, self._exchanges[0], describe_for_dcp)
        order = memory or MemoryOrder(ranks_per_node=1, since=0)
        self.memory = MemoryTier(order, config, self._exchanges[-1]) if memory is not None else None
        self.cadence = Cadence(order.every_steps, order.cost_frac)
        self._stage = Stage(config.rank, self.memory)
        self._copied_step = 0
        self._last: SaveHandle | None = None
        self._in_flight: SaveHandle | None = None
        self._saved: Generation | None = None
        self._callback_error: Exception | None = None
        self._jobs: SimpleQueue[_Job | _Layout | None] = SimpleQueue()
        self._writes: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=work, name=f"midwatch-{name}", daemon=True)
            for name, work in (("copier", self._copy_all), ("writer", self._write_all))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_busy(self) -> bool:
        """Whether a save is in flight on this rank (ranks may differ for a moment)."""
        return self._in_flight is not None and not self._in_flight.is_done()

    @property
    def memory_step(self) -> int | None:
        """Newest step whose state this attempt has whole in memory, None before there is one."""
        newest = self.memory.newest if self.memory is not None else None
        return newest.step if newest is not None else None

    def prepare(self, state: dict[str, Any]) -> None:
        """Lay out the image of this rank's file on the copying thread, beside the first steps.

        Optional, once, before the first save, with a state of the same layout; without it the first
        save does this while the loop waits. Not collective.
        """
        flat, paths = flatten(state)
        self._stage.announce()
        self._jobs.put(_Layout(flat, paths))

    def memory_level(self, step: int, until_save_steps: int) -> int:
        """Return what this rank can do for the memory tier after step: what all ranks agree on.

        0: nothing; 1: its part of a save to disk can be copied to memory as well; it is time for a
        copy, and one would not wait: BESIDE_SAVE, while the buffer of a save is being written to
        disk, or COPY_NOW. All ranks act on the lowest.
        until_save_steps: as in Cadence.is_due.
        """
        is_busy = self.is_busy
        stays = self._saved if is_busy else None
        if self.memory is None or self.memory.refusal or not self._stage.is_laid_out(stays):
            return 0
        if not self.cadence.is_due(step - self._copied_step, until_save_steps) or self._is_copying:
            return 1
        if not is_busy:
            return COPY_NOW
        # Where the save is not whole in memory, the other buffer has the only state that is.
        return BESIDE_SAVE if self._saved is not None else 1

    @property
    def _is_copying(self) -> bool:
        return self._last is not None and not self._last._copied.is_set()

    def keep(
        self,
        state: dict[str, Any],
        header: SaveHeader,
        *,
        beside_save: bool = False,
    ) -> SaveHandle:
        """Copy the state to the nodes' memory only, without waiting for the copies to end.

        Every rank calls it at the steps for which all have memory_level COPY_NOW, or, with
        beside_save on all of them, at least BESIDE_SAVE: until the copies are whole, the state that
        was saved last is then what a restart finds. Its handle ends in stage "kept" or "failed";
        the outcome stands in memory.newest, and nothing is reported.
        """
        if not beside_save:
            self._await_save()
        stays = self._saved if beside_save else None
        return self._begin(state, header, to_memory=True, to_disk=False, stays=stays)

    def save(
        self,
        state: dict[str, Any],
        header: SaveHeader,
        *,
        sync: bool = False,
        to_memory: bool = False,
    ) -> SaveHandle:
        """Copy the state to host memory, return, and write it on the writing thread.

        At most one save is in flight: a second request waits for the first to end (never skipped,
        so that ranks cannot disagree about which saves exist); that wait is in blocked_s. A step
        that is committed already is not saved again: its handle comes back. With sync, return only
        after the end. A save that fails (disk full, no permission) never raises: its stage is
        "failed" with a code, what it wrote is removed, and training goes on. With
        to_memory, on all ranks, which needs memory_level 1, it is first copied to memory as well.

        state: nested dicts and lists whose leaves are DTensors, tensors or plain values (None,
            bool, int, float, str, bytes). Plain tensors and values must be equal on all ranks that
            use the same key.
        Raises: ConfigError[state-not-plain] for any other leaf; what on_stage raised on the writing
            thread.
        """
        checkpoint = checkpoint_id(header.step, self._config.attempt)
        last = self._await_save()
        is_again = last is not None and last.checkpoint == checkpoint
        if last is not None and is_again and last.result().stage == "committed":
            return last
        handle = self._begin(state, header, to_memory=to_memory, to_disk=True, stays=None)
        if sync:
            begun_s = time.monotonic()
            handle.result()
            handle.blocked_s += time.monotonic() - begun_s
        return handle

    def _await_save(self) -> SaveHandle | None:
        if self._in_flight is not None:
            self._in_flight.result()
        return self._in_flight

    def _begin(
        self,
        state: dict[str, Any],
        header: SaveHeader,
        *,
        to_memory: bool,
        to_disk: bool,
        stays: Generation | None,
    ) -> SaveHandle:
        begun_s = time.monotonic()
        if self._last is not None:
            self._last._copied.wait()
        if self._callback_error is not None:
            raise self._callback_error
        staged = self._stage.stage(state, stays)
        handle = SaveHandle(checkpoint_id(header.step, self._config.attempt))
        handle.blocked_s = time.monotonic() - begun_s
        self._last = handle
        if to_memory:
            self._copied_step = header.step
        if to_disk:
            self._in_flight = handle
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
        self._jobs.put(_Job(handle, header, staged, begun_s, to_memory, to_disk, stays))
        return handle

    def close(self, timeout_s: float = 30.0) -> None:
        """Wait for the copy and the save in flight, then end their threads and process groups.

        A save that does not end in time is left to the daemon thread: without a manifest it never
        existed.
        """
        self._jobs.put(None)
        until_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(until_s - time.monotonic(), 0.0))
        if not any(thread.is_alive() for thread in self._threads):
            for exchange in self._exchanges:
                exchange.close()

    def _copy_all(self) -> None:
        while (job := self._jobs.get()) is not None:
            if isinstance(job, _Layout):
                self._stage.lay_out(job.flat, job.paths)
                continue
            stage = self._copy(job) if job.to_memory else "kept"
            if job.to_disk:
                is_whole = job.to_memory and stage == "kept"
                self._saved = self.memory.newest if self.memory and is_whole else None
                self._writes.put(job)
            job.handle._copied.set()
            if not job.to_disk:
                job.handle._end(CheckpointStage(job.handle.checkpoint, job.header.step, stage))
        self._writes.put(None)

    def _copy(self, job: _Job) -> str:
        """Copy what is staged to memory, here and on the next node; return how that ended."""
        begun_s, worked_s = time.monotonic(), time.thread_time()
        try:
            is_kept = self._stage.keep_staged(Kept(job.header, job.stays))
        except Exception:  # The death of a peer has no type of its own in torch.
            return "failed"
        # On a CPU this thread takes its time from the training; beside a GPU it does not.
        worked_s = time.thread_time() - worked_s if self._stage.is_on_cpu else 0.0
        self.cadence.copy_done(job.handle.blocked_s + worked_s, time.monotonic() - begun_s)
        return "kept" if is_kept else "failed"

    def _write_all(self) -> None:
        while (job := self._writes.get()) is not None:
            outcome = self._committer.run(job.header, job.staged, job.begun_s)
            outcome = msgspec.structs.replace(outcome, blocked_s=job.handle.blocked_s)
            try:
                self._report(outcome)
            except Exception as error:  # Whatever the caller's callback raises is the caller's.
                self._callback_error = error
            finally:
                job.handle._end(outcome)

    def _report(self, stage: CheckpointStage) -> None:
        if self._on_stage is not None:
            self._on_stage(stage)
