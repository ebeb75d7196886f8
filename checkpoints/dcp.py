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

from ..logbook.wire import CheckpointStage
from .dcp_exchange import GlooExchange, NoExchange
from .dcp_image import Image, describe_for_dcp
from .dcp_load import LoadReport, load, load_first
from .dcp_state import flatten, rank_file
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
    done: threading.Event


class _Job(msgspec.Struct, frozen=True):
    handle: SaveHandle
    header: SaveHeader
    staged: StagedFile
    begun_s: float


class Saver:
    """Write checkpoints of one attempt; every rank holds one and calls save at the same steps.

    The constructor is collective over the default process group (all ranks, same order).
    on_stage is called with "staged" on the caller's thread, then with "committed" or "failed" on
    the saving thread, so it must be thread-safe and quick; pass it on rank 0 only.
    """

    def __init__(
        self, config: SaverConfig, on_stage: Callable[[CheckpointStage], None] | None = None
    ) -> None:
        self._config = config
        self._on_stage = on_stage
        # A directory that cannot be made is reported by each save; training goes on without.
        with contextlib.suppress(OSError):
            (Path(config.root) / CHECKPOINTS_DIR).mkdir(parents=True, exist_ok=True)
        self._exchange = GlooExchange(config) if config.world_size > 1 else NoExchange()
        self._committer = committer_for(config, self._exchange, describe_for_dcp)
        self._image: Image | None = None
        self._preparation: threading.Event | None = None
        self._last: SaveHandle | None = None
        self._callback_error: Exception | None = None
        self._jobs: SimpleQueue[_Job | _Layout | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="midwatch-saver", daemon=True)
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """Whether a save is in flight on this rank (ranks may differ for a moment)."""
        return self._last is not None and not self._last.is_done()

    def prepare(self, state: dict[str, Any]) -> None:
        """Lay out the image of this rank's file on the saving thread, beside the first steps.

        Optional, once, before the first save, with a state of the same layout; without it the first
        save does this while the loop waits. Not collective.
        """
        flat, paths = flatten(state)
        self._preparation = threading.Event()
        self._jobs.put(_Layout(flat, paths, self._preparation))

    def save(self, state: dict[str, Any], header: SaveHeader, *, sync: bool = False) -> SaveHandle:
        """Copy the state to host memory, return, and write it on the saving thread.

        At most one save is in flight: a second request waits for the first to end (never skipped,
        so that ranks cannot disagree about which saves exist); that wait is in blocked_s. A step
        that is committed already is not saved again: its handle comes back. With sync, return only
        after the end. A save that fails (disk full, no permission) never raises: its stage is
        "failed" with a code, what it wrote is removed, and training goes on.

        state: nested dicts and lists whose leaves are DTensors, tensors or plain values (None,
            bool, int, float, str, bytes). Plain tensors and values must be equal on all ranks that
            use the same key.
        Raises: ConfigError[state-not-plain] for any other leaf; what on_stage raised on the saving
            thread.
        """
        begun_s = time.monotonic()
        checkpoint = checkpoint_id(header.step, self._config.attempt)
        if self._last is not None:
            outcome = self._last.result()
            if self._last.checkpoint == checkpoint and outcome.stage == "committed":
                return self._last
        if self._callback_error is not None:
            raise self._callback_error
        staged = self._stage(state)
        handle = SaveHandle(checkpoint)
        handle.blocked_s = time.monotonic() - begun_s
        self._last = handle
        self._report(
            CheckpointStage(
                checkpoint,
                header.step,
                "staged",
                bytes=len(staged.data),
                blocked_s=handle.blocked_s,
                tags=header.tags,
            )
        )
        self._jobs.put(_Job(handle, header, staged, begun_s))
        if sync:
            handle.result()
            handle.blocked_s = time.monotonic() - begun_s
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

    def _stage(self, state: dict[str, Any]) -> StagedFile:
        if self._preparation is not None:
            self._preparation.wait()
        flat, paths = flatten(state)
        image = self._image
        if image is None or not image.is_for(flat) or not image.stage(flat):
            self._image = None  # Its memory goes before the next one's comes.
            image = Image(flat, paths, rank_file(self._config.rank))
            image.stage(flat)
            self._image = image
        return StagedFile(image.part.file, image.view, image.part)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if isinstance(job, _Layout):
                self._lay_out(job)
                continue
            outcome = self._committer.run(job.header, job.staged, job.begun_s)
            outcome = msgspec.structs.replace(outcome, blocked_s=job.handle.blocked_s)
            try:
                self._report(outcome)
            except Exception as error:  # Whatever the caller's callback raises is the caller's.
                self._callback_error = error
            finally:
                job.handle._end(outcome)

    def _lay_out(self, layout: _Layout) -> None:
        try:
            self._image = Image(layout.flat, layout.paths, rank_file(self._config.rank))
        except Exception:
            self._image = None  # The first save meets the same error, where it can be answered.
        finally:
            layout.done.set()

    def _report(self, stage: CheckpointStage) -> None:
        if self._on_stage is not None:
            self._on_stage(stage)
