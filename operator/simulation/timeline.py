"""Virtual time: a heap of things to come, and a clock that jumps from one to the next."""

from __future__ import annotations

import heapq
from collections.abc import Callable

Action = Callable[[], None]


class Timeline:
    """The Clock port, and the only thing in the simulated world that makes anything happen.

    Actions due at one moment run in the order in which they were asked for, so that a seed decides
    everything.
    """

    def __init__(self, start_s: float = 1_700_000_000.0) -> None:
        self._start_s = start_s
        self._now_s = start_s
        self._count = 0
        self._coming: list[tuple[float, int, Action]] = []

    def now_s(self) -> float:
        return self._now_s

    @property
    def elapsed_s(self) -> float:
        """Virtual seconds since the world began."""
        return self._now_s - self._start_s

    def later(self, delay_s: float, action: Action) -> None:
        """Have action run delay_s from now."""
        self._count += 1
        heapq.heappush(self._coming, (self._now_s + max(delay_s, 0.0), self._count, action))

    def advance(self) -> bool:
        """Run the next action; return whether there was one."""
        if not self._coming:
            return False
        self._now_s, _, action = heapq.heappop(self._coming)
        action()
        return True
