"""Where a worker stands, as its agent reads it at any moment; part of wire.py, whence all read."""

from __future__ import annotations

import mmap
import struct
import time
from enum import IntEnum


class Phase(IntEnum):
    """Where a worker is. Everything below TRAINING is start-up, when no hang deadline is armed."""

    BORN = 0
    RENDEZVOUS = 1
    BUILDING = 2
    LOADING = 3
    TRAINING = 10
    DATA = 11
    FORWARD = 12
    BACKWARD = 13
    VOTE = 14
    OPTIMIZER = 15
    SAVING = 16
    VALIDATING = 17
    DONE = 20


_PROGRESS = struct.Struct("<qqdq")
PROGRESS_BYTES = 4096


class ProgressPage:
    """A shared page in which a worker notes (steps completed, phase, monotonic time) as it goes.

    A validation lasts for many steps' time and completes none: its rounds are counted beside.

    Costs a microsecond a note, and the agent can read it while the worker is stopped or stuck in
    a collective. Both sides map the same file descriptor (a memfd of PROGRESS_BYTES).
    """

    def __init__(self, fd: int) -> None:
        self._page = mmap.mmap(fd, PROGRESS_BYTES)

    def note(self, step: int, phase: Phase, rounds: int = 0) -> None:
        """Record that the worker with step completed steps entered phase now.

        rounds: of a validation after that step that are completed, also once it is over.
        """
        _PROGRESS.pack_into(self._page, 0, step, phase, time.monotonic(), rounds)

    def read(self) -> tuple[int, Phase, float, int]:
        """Return (steps completed, phase, monotonic seconds of the last note, rounds completed).

        The seconds are 0.0 before any note.
        """
        step, phase, noted_s, rounds = _PROGRESS.unpack_from(self._page, 0)
        return step, Phase(phase), noted_s, rounds

    def close(self) -> None:
        self._page.close()
