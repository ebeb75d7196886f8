"""A sliding window that always knows its quantiles."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque


class SortedWindow:
    """The last `size` values, kept in arrival order and in sorted order.

    Costs about a microsecond a value at 64 values, which is why quantiles are affordable at every
    point and numpy, at several microseconds a call, is not. Values must be finite.
    """

    __slots__ = ("_arrival", "_size", "ordered")

    def __init__(self, size: int) -> None:
        self._size = size
        self._arrival: deque[float] = deque()
        self.ordered: list[float] = []

    def __len__(self) -> int:
        return len(self.ordered)

    def push(self, value: float) -> None:
        """Add value; the oldest leaves once the window is full."""
        arrival, ordered = self._arrival, self.ordered
        if len(ordered) == self._size:
            del ordered[bisect_left(ordered, arrival.popleft())]
        arrival.append(value)
        insort(ordered, value)

    def median(self) -> float:
        """Return the middle value (the upper of two). The window must not be empty."""
        return self.ordered[len(self.ordered) >> 1]

    def quantile(self, frac: float) -> float:
        """Return the value below which frac of the window lies. It must not be empty."""
        ordered = self.ordered
        return ordered[min(len(ordered) - 1, int(frac * len(ordered)))]

    def clear(self) -> None:
        """Forget every value."""
        self._arrival.clear()
        self.ordered.clear()
