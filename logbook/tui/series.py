"""The figures of every step ever told, compact enough to keep and quick enough to draw.

A million steps fit in memory as plain columns of doubles. Drawing them all at once would take a
second, so every block of BLOCK steps also keeps its least and greatest value: a chart reads
single steps where it is zoomed in, and blocks where it is not. A spike of one step is in both.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterator

import msgspec

from ..wire import StepSample

BLOCK = 32
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
    """The values of one figure in step order, and the range of every full block of them."""

    def __init__(self) -> None:
        self.values = array("d")
        self.lows = array("d")
        self.highs = array("d")

    def append(self, value: float) -> None:
        self.values.append(value)
        if len(self.values) % BLOCK == 0:
            low, high = extent(self.values[-BLOCK:])
            self.lows.append(low)
            self.highs.append(high)


class Lane:
    """The steps of one attempt; their numbers rise."""

    def __init__(self, attempt: int) -> None:
        self.attempt = attempt
        self.steps = array("q")
        self.columns = {name: Column() for name in COLUMNS}

    def append(self, sample: StepSample) -> None:
        self.steps.append(sample.step)
        for name, column in self.columns.items():
            value = getattr(sample, name)
            column.append(value if value is not None else math.nan)

    def points(self, name: str, first: int, last: int, most: int) -> Iterator[Point]:
        """Yield the points of steps first to last, single ones where those are at most most."""
        begin, end = bisect_left(self.steps, first), bisect_left(self.steps, last + 1)
        column, steps = self.columns[name], self.steps
        at = begin
        if end - begin > most:
            whole = -(-begin // BLOCK)
            stop = min(end // BLOCK, len(column.lows))
            if whole < stop:
                yield from self._single(column, begin, whole * BLOCK)
                for block in range(whole, stop):
                    start = block * BLOCK
                    low, high = column.lows[block], column.highs[block]
                    yield Point(steps[start], steps[start + BLOCK - 1], low, high)
                at = stop * BLOCK
        yield from self._single(column, at, end)

    def _single(self, column: Column, begin: int, end: int) -> Iterator[Point]:
        for index in range(begin, end):
            step, value = self.steps[index], column.values[index]
            finite = value if math.isfinite(value) else math.nan
            yield Point(step, step, finite, finite)


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

    def add(self, attempt: int, sample: StepSample) -> None:
        """Take a step that is newer than all others."""
        _append(self._tail, attempt, sample)

    def add_past(self, attempt: int, sample: StepSample) -> None:
        """Take the next step of the history."""
        _append(self._past, attempt, sample)

    def points(self, name: str, first: int, last: int, most: int) -> list[Point]:
        """Return the points of a figure from step first to step last, oldest lane first."""
        lanes = self.lanes
        # A lane was left behind from where a later one begins.
        found: list[Point] = []
        left_from = math.inf
        for lane in reversed(lanes):
            mine = [
                msgspec.structs.replace(point, is_abandoned=True)
                if point.last >= left_from
                else point
                for point in lane.points(name, first, last, most)
            ]
            found[:0] = mine
            left_from = min(left_from, lane.steps[0])
        return found


def _append(lanes: list[Lane], attempt: int, sample: StepSample) -> None:
    lane = lanes[-1] if lanes else None
    if lane is None or lane.attempt != attempt or sample.step <= lane.steps[-1]:
        lane = Lane(attempt)
        lanes.append(lane)
    lane.append(sample)


def extent(values: array[float]) -> tuple[float, float]:
    """Return the least and the greatest finite value, NaN twice where there is none."""
    low, high = min(values), max(values)
    if math.isfinite(low) and math.isfinite(high) and not any(map(math.isnan, values)):
        return low, high
    finite = [value for value in values if math.isfinite(value)]
    return (min(finite), max(finite)) if finite else (math.nan, math.nan)
