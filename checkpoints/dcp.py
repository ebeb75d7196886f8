"""Save and load sharded training state: torch DCP's files, our manifest, no wait for the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ..logbook.wire import CheckpointStage
from .manifest import FileEntry, Fingerprint, SaveHeader, SaverConfig

__all__ = [
    "FileEntry",
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
    """One save under way; the state may be changed as soon as the caller holds it."""

    checkpoint: str
    blocked_s: float

    def is_done(self) -> bool:
        """Return whether the save has ended, well or badly, without waiting."""
        raise NotImplementedError

    def result(self, timeout_s: float | None = None) -> CheckpointStage:
        """Wait for the end and return it: stage "committed" or "failed", the same on every rank.

        Raises: TimeoutError.
        """
        raise NotImplementedError


class Saver:
    """Write checkpoints of one attempt; every rank holds one and calls save at the same steps.

    The constructor is collective over the default process group (all ranks, same order).
    on_stage is called with "staged" on the caller's thread, then with "committed" or "failed" on
    the saving thread, so it must be thread-safe and quick; pass it on rank 0 only.
    """

    def __init__(
        self, config: SaverConfig, on_stage: Callable[[CheckpointStage], None] | None = None
    ) -> None:
        raise NotImplementedError

    @property
    def is_busy(self) -> bool:
        """Whether a save is in flight on this rank (ranks may differ for a moment)."""
        raise NotImplementedError

    def save(self, state: dict[str, Any], header: SaveHeader, *, sync: bool = False) -> SaveHandle:
        """Copy the state to host memory, return, and write it on another thread.

        At most one save is in flight: a second request waits for the first to end (the same on
        every rank, so ranks cannot disagree about which saves exist); that wait is in blocked_s.
        With sync, return only after the commit or the failure. A save that fails (disk full, no
        permission) never raises: its stage is "failed" with a code, and training goes on.

        state: nested dicts and lists whose leaves are DTensors, tensors or plain values (None,
            bool, int, float, str, bytes). Plain tensors and values must be equal on all ranks
            that use the same key; one copy is kept.
        Raises: ConfigError[state-not-plain] for any other leaf.
        """
        raise NotImplementedError

    def close(self, timeout_s: float = 30.0) -> None:
        """Wait for the save in flight, then end the saving thread."""
        raise NotImplementedError


class LoadReport(msgspec.Struct, frozen=True):
    """What load did. checkpoint "" means that no candidate was given.

    passed_over: (checkpoint id, "code: message") of every candidate that could not be loaded.
    """

    checkpoint: str
    header: SaveHeader | None
    load_s: float
    read_bytes: int
    passed_over: tuple[tuple[str, str], ...] = ()


def load(directory: str, state: dict[str, Any], *, rank: int = 0) -> LoadReport:
    """Verify one checkpoint and copy it into state, in place; any mesh loads any checkpoint.

    Tensors of state are written through; plain values are replaced in the dict that holds them.
    No collective is used. Nothing in state is touched before every byte needed is verified.
    Raises: IntegrityError (see verify.py for the codes); ConfigError[state-mismatch] when a key is
        missing in the checkpoint or has another shape.
    """
    raise NotImplementedError


def load_first(
    run_dir: str, checkpoints: Sequence[str], state: dict[str, Any], *, rank: int = 0
) -> LoadReport:
    """Load the first candidate that every rank can verify; collective over the default group.

    All ranks load the same one: each verifies what it needs, then they vote, then they copy.
    Raises: IntegrityError[no-usable-checkpoint] when candidates were given and none is usable.
    """
    raise NotImplementedError
