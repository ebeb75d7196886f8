"""A running quantile in constant memory, as an immutable value, for use inside a fold."""

from __future__ import annotations

import msgspec


class RunningMedian(msgspec.Struct, frozen=True):
    """The P-square estimate of the median of a stream of numbers.

    Exact up to five values; afterwards five markers follow the stream, moved by a parabolic
    prediction, without storing it. Source: Jain and Chlamtac, "The P2 algorithm for dynamic
    calculation of quantiles", CACM 28(10), 1985.
    """

    count: int = 0
    heights: tuple[float, ...] = ()
    positions: tuple[int, ...] = (1, 2, 3, 4, 5)

    def add(self, value: float) -> RunningMedian:
        """Return the estimate with one more value."""
        if self.count < 5:
            heights = tuple(sorted((*self.heights, value)))
            return RunningMedian(self.count + 1, heights, self.positions)
        q, n = list(self.heights), list(self.positions)
        q[0], q[4] = min(q[0], value), max(q[4], value)
        cell = next((i for i in (1, 2, 3) if value < q[i]), 4)
        for i in range(cell, 5):
            n[i] += 1
        count = self.count + 1
        for i, share in ((1, 0.25), (2, 0.5), (3, 0.75)):
            drift = 1 + (count - 1) * share - n[i]
            room = n[i + 1] - n[i] if drift > 0 else n[i] - n[i - 1]
            if abs(drift) >= 1 and room > 1:
                _move_marker(q, n, i, 1 if drift > 0 else -1)
        return RunningMedian(count, tuple(q), tuple(n))

    @property
    def value(self) -> float | None:
        """The median so far; None before any value."""
        if not self.count:
            return None
        if self.count >= 5:
            return self.heights[2]
        low, high = self.heights[(self.count - 1) // 2], self.heights[self.count // 2]
        return (low + high) / 2


def _move_marker(q: list[float], n: list[int], i: int, d: int) -> None:
    below, above = n[i] - n[i - 1], n[i + 1] - n[i]
    slope_above, slope_below = (q[i + 1] - q[i]) / above, (q[i] - q[i - 1]) / below
    parabola = q[i] + d / (above + below) * ((below + d) * slope_above + (above - d) * slope_below)
    if q[i - 1] < parabola < q[i + 1]:
        q[i] = parabola
    else:
        q[i] += slope_above if d > 0 else -slope_below
    n[i] += d
