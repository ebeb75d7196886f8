"""Curves as characters, each with two by four dots: 40 x 10 of them draw 80 x 40. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from .series import Point

_BLANK = 0x2800
# Bits of a braille character by column and row of its dots.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
LOG_RATIO = 50.0
"""Where the scale is left to the values, those that span more than this go on a logarithmic one."""


class Scale(StrEnum):
    """How values lie between the bottom and the top; only positive ones have a logarithm."""

    LINEAR = "linear"
    LOG = "log"
    AUTO = "auto"


class Frame(msgspec.Struct, frozen=True):
    """What a chart shows: steps first to last on width x height characters.

    marks: steps at which an incident began.
    """

    first: int
    last: int
    width: int
    height: int
    marks: tuple[int, ...] = ()
    scale: Scale = Scale.LINEAR


class Cell(msgspec.Struct, frozen=True):
    """A character and what it belongs to: "curve", "left" (abandoned), "mark", "bad" or ""."""

    char: str
    kind: str = ""


class Drawing(msgspec.Struct, frozen=True):
    """Rows of cells, top first, and the scale: the values of the bottom and the top edge."""

    rows: tuple[tuple[Cell, ...], ...]
    low: float
    high: float
    is_log: bool


def draw(points: Sequence[Point], frame: Frame) -> Drawing:
    """Return the curve through points; a stretch without a finite value shows as "!" on top."""
    low, high = _range_of(points)
    is_log = low > 0 and (
        frame.scale is Scale.LOG or (frame.scale is Scale.AUTO and high / low > LOG_RATIO)
    )
    rule = _Rule(low, high, is_log, frame.height * 4)
    canvas = _Canvas(frame)
    for index, point in enumerate(points):
        if math.isnan(point.low):
            canvas.bad.add(_x_of(point.first, frame) // 2)
            continue
        top, bottom = rule.y_of(point.high), rule.y_of(point.low)
        before = points[index - 1] if index else None
        if before is not None and before.last + 1 == point.first and not math.isnan(before.low):
            # Steps that follow each other are joined: zoomed in, they would be scattered dots.
            start = (_x_of(before.last, frame), rule.y_of((before.low + before.high) / 2))
            end = (_x_of(point.first, frame), (top + bottom) // 2)
            canvas.join(start, end, lasts=not point.is_abandoned)
        for x in range(_x_of(point.first, frame), _x_of(point.last, frame) + 1):
            canvas.bar(x, top, bottom, lasts=not point.is_abandoned)
    marks = frozenset(
        _x_of(step, frame) // 2 for step in frame.marks if frame.first <= step <= frame.last
    )
    rows = tuple(
        tuple(
            _cell(canvas.dots[y][x], canvas.lasting[y][x], x in marks, y == 0 and x in canvas.bad)
            for x in range(frame.width)
        )
        for y in range(frame.height)
    )
    return Drawing(rows, low, high, is_log)


class _Canvas:
    """The dots of a drawing; lasting: characters in which some dot is of the lineage."""

    def __init__(self, frame: Frame) -> None:
        self.dots = [[0] * frame.width for _ in range(frame.height)]
        self.lasting = [[False] * frame.width for _ in range(frame.height)]
        self.bad: set[int] = set()

    def bar(self, x: int, top: int, bottom: int, *, lasts: bool) -> None:
        """Set the dots of column x from row top to row bottom."""
        for y in range(top, bottom + 1):
            self.dots[y // 4][x // 2] |= _DOTS[x % 2][y % 4]
            if lasts:
                self.lasting[y // 4][x // 2] = True

    def join(self, start: tuple[int, int], end: tuple[int, int], *, lasts: bool) -> None:
        """Draw a line between two dots (column, row), from left to right."""
        (x_from, y_from), (x_to, y_to) = start, end
        if x_from == x_to:
            self.bar(x_to, min(y_from, y_to), max(y_from, y_to), lasts=lasts)
        y_before = y_from
        for x in range(x_from + 1, x_to + 1):
            y = y_from + round((y_to - y_from) * (x - x_from) / (x_to - x_from))
            self.bar(x, min(y_before, y), max(y_before, y), lasts=lasts)
            y_before = y


class _Rule(msgspec.Struct, frozen=True):
    low: float
    high: float
    is_log: bool
    num_dots: int

    def y_of(self, value: float) -> int:
        """Return the row of dots for a value, 0 at the top."""
        low, high = (
            (math.log(self.low), math.log(self.high)) if self.is_log else (self.low, self.high)
        )
        if high <= low:
            return self.num_dots // 2
        at = math.log(value) if self.is_log else value
        return round((high - at) / (high - low) * (self.num_dots - 1))


def _range_of(points: Sequence[Point]) -> tuple[float, float]:
    finite = [point for point in points if not math.isnan(point.low)]
    if not finite:
        return math.nan, math.nan
    return min(point.low for point in finite), max(point.high for point in finite)


def _x_of(step: int, frame: Frame) -> int:
    """Return the column of dots for a step, kept inside the frame."""
    span = max(frame.last - frame.first, 1)
    x = int((step - frame.first) * (frame.width * 2 - 1) / span)
    return min(max(x, 0), frame.width * 2 - 1)


def _cell(dots: int, lasts: bool, is_mark: bool, is_bad: bool) -> Cell:
    if is_bad:
        return Cell("!", "bad")
    if dots:
        return Cell(chr(_BLANK + dots), "curve" if lasts else "left")
    return Cell("┊", "mark") if is_mark else Cell(" ")
