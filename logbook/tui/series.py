"""The figures of every step ever told, compact enough to keep and quick enough to draw.

A million steps fit in memory as plain columns of doubles. Drawing them all at once would take
seconds, so every FANOUT values also keep their least and greatest, and so do every FANOUT of those,
and so on: a chart reads single steps where it is zoomed in, and ever longer stretches where it is
not. A spike of one step is in all of them.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import msgspec

from ..wire import StepSample

StepOf = tuple[int, StepSample]
"""The attempt of a step, and the step."""

FANOUT = 4
COLUMNS = ("loss", "grad_norm", "activation_norm", "loss_scale", "lr")


class Point(msgspec.Struct, frozen=True):
    """One stretch of steps [first, last] of a chart with its least and greatest value.

    Both are NaN where no value of the stretch is finite. is_abandoned: a rollback left it behind.
    """

    first: int
    last: int
    low: float
    high: float
    is_abandoned: bool = False


class Column:
    """The values of one figure in step order, NaN where one is not finite, and their ranges.

    lows[k], highs[k]: of every whole stretch of FANOUT ** k values; k = 0 are the values.
    """

    def __init__(self) -> None:
        values = array("d")
        self.lows, self.highs = [values], [values]

    def extend(self, values: Iterable[float]) -> None:
        self.lows[0].extend(v if -math.inf < v < math.inf else math.nan for v in values)
        level = 0
        while len(self.lows[level]) >= FANOUT:
            if len(self.lows) == level + 1:
                self.lows.append(array("d"))
                self.highs.append(array("d"))
            self._sum_up(level)
            level += 1

    def _sum_up(self, level: int) -> None:
        """Bring the ranges of the level above up to date."""
        lows, highs = self.lows[level], self.highs[level]
        above, below = self.highs[level + 1], self.lows[level + 1]
        for at in range(len(below) * FANOUT, len(lows) - FANOUT + 1, FANOUT):
            low: Sequence[float] = lows[at : at + FANOUT]
            high: Sequence[float] = highs[at : at + FANOUT]
            total = sum(low)
            if total != total:
                low, high = _finite(low), _finite(high)
            below.append(min(low))
            above.append(max(high))


class Lane:
    """The steps of one attempt; their numbers rise."""

    def __init__(self, attempt: int) -> None:
        self.attempt = attempt
        self.steps = array("q")
        self.columns = {name: Column() for name in COLUMNS}

    def extend(self, samples: Sequence[StepSample]) -> None:
        self.steps.extend(sample.step for sample in samples)
        for name, column in self.columns.items():
            values = (getattr(sample, name) for sample in samples)
            column.extend(math.nan if value is None else value for value in values)

    def count(self, first: int, last: int) -> int:
        """Return how many steps there are from step first to step last."""
        return bisect_left(self.steps, last + 1) - bisect_left(self.steps, first)

    def points(self, name: str, first: int, last: int, level: int) -> Iterator[Point]:
        """Yield steps first to last in stretches of FANOUT ** level, what is left in shorter ones.

        The first stretch may begin before first.
        """
        begin, end = bisect_left(self.steps, first), bisect_left(self.steps, last + 1)
        column, steps = self.columns[name], self.steps
        level = min(level, len(column.lows) - 1)
        at = begin - begin % FANOUT**level
        while at < end:
            size, lows, highs = FANOUT**level, column.lows[level], column.highs[level]
            for index in range(at // size, min(end // size, len(lows))):
                at += size
                yield Point(steps[at - size], steps[at - 1], lows[index], highs[index])
            level -= 1


class Series:
    """All steps of a run: the history as it is read, and the end of the journal as it grows."""

    def __init__(self) -> None:
        self._past: list[Lane] = []
        self._tail: list[Lane] = []

    @property
    def lanes(self) -> list[Lane]:
        """The lanes in the order in which they were trained."""
        return [*self._past, *self._tail]

    @property
    def last_step(self) -> int:
        lanes = self.lanes
        return lanes[-1].steps[-1] if lanes else 0

    @property
    def first_step(self) -> int:
        """The least step known, 1 before any is."""
        return min((lane.steps[0] for lane in self.lanes), default=1)

    def add(self, steps: Sequence[StepOf]) -> None:
        """Take steps that are newer than all others."""
        _extend(self._tail, steps)

    def add_past(self, steps: Sequence[StepOf]) -> None:
        """Take the next steps of the history."""
        _extend(self._past, steps)

    def points(self, name: str, first: int, last: int, most: int) -> list[Point]:
        """Return a figure from step first to step last in about most points, oldest lane first."""
        lanes = self.lanes
        total, level = sum(lane.count(first, last) for lane in lanes), 0
        while total > most:
            total //= FANOUT
            level += 1
        found: list[list[Point]] = []
        # A lane was left behind from where a later one begins.
        left_from: float = math.inf
        for lane in reversed(lanes):
            points = lane.points(name, first, last, level)
            found.append([_left(p) if p.last >= left_from else p for p in points])
            left_from = min(left_from, lane.steps[0])
        return [point for points in reversed(found) for point in points]


def _left(point: Point) -> Point:
    return Point(point.first, point.last, point.low, point.high, True)


def _extend(lanes: list[Lane], steps: Sequence[StepOf]) -> None:
    for attempt, group in groupby(steps, key=lambda step: step[0]):
        rising: list[StepSample] = []
        before = lanes[-1].steps[-1] if lanes and lanes[-1].attempt == attempt else -1
        for _, sample in group:
            if sample.step <= before:
                _put(lanes, attempt, rising)
                rising = []
                lanes.append(Lane(attempt))
            rising.append(sample)
            before = sample.step
        _put(lanes, attempt, rising)


def _put(lanes: list[Lane], attempt: int, rising: list[StepSample]) -> None:
    if not rising:
        return
    if not lanes or lanes[-1].attempt != attempt:
        lanes.append(Lane(attempt))
    lanes[-1].extend(rising)


def _finite(values: Sequence[float]) -> list[float]:
    """Return the values that are numbers, one NaN where there is none."""
    return [value for value in values if value == value] or [math.nan]
