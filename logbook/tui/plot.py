"""Curves as characters, each with two by four dots: 40 x 10 of them draw 80 x 40. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from ..y_range import YRange, y_range
from .series import Point

_BLANK = 0x2800
# Bits of a braille character by column and row of its dots.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
LOG_RATIO = 50.0
"""Where the scale is left to the values, those that span more than this go on a logarithmic one."""
MARKS_FRAC = 1 / 6
"""Where marks would fill more of the width than this, they keep to the bottom row."""


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
    """A character and its kind: "curve", "left" (abandoned), "cut", "mark", "bad" or ""."""

    char: str
    kind: str = ""


class Drawing(msgspec.Struct, frozen=True):
    """Rows of cells, top first, and the values of the bottom and the top edge, None without any."""

    rows: tuple[tuple[Cell, ...], ...]
    shown: YRange | None
    is_log: bool


def draw(points: Sequence[Point], frame: Frame) -> Drawing:
    """Return the curve through points; a stretch without a finite value shows as "!" on top.

    Where the curve leaves the picture it shows as "^" at the upper edge, as "v" at the lower.
    """
    shown, is_log = _range_of(points, frame.scale)
    rule = _Rule(shown.low, shown.high, is_log, frame.height * 4)
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
            canvas.leave(x, above=point.high > shown.high, below=point.low < shown.low)
    marks = frozenset(
        _x_of(step, frame) // 2 for step in frame.marks if frame.first <= step <= frame.last
    )
    marked_from = frame.height - 1 if len(marks) > frame.width * MARKS_FRAC else 0
    rows = tuple(
        tuple(canvas.cell(x, y, y >= marked_from and x in marks) for x in range(frame.width))
        for y in range(frame.height)
    )
    return Drawing(rows, None if math.isnan(shown.low) else shown, is_log)


class _Canvas:
    """The dots of a drawing; lasting: characters in which some dot is of the lineage."""

    def __init__(self, frame: Frame) -> None:
        self.dots = [[0] * frame.width for _ in range(frame.height)]
        self.lasting = [[False] * frame.width for _ in range(frame.height)]
        self.bad: set[int] = set()
        self._above: set[int] = set()
        self._below: set[int] = set()

    def leave(self, x: int, *, above: bool, below: bool) -> None:
        """Remember that in column x of dots something lies beyond an edge."""
        if above:
            self._above.add(x // 2)
        if below:
            self._below.add(x // 2)

    def cell(self, x: int, y: int, is_mark: bool) -> Cell:
        """Return the character at column x of row y."""
        dots = self.dots[y][x]
        if y == 0 and x in self.bad:
            return Cell("!", "bad")
        if y == 0 and x in self._above:
            return Cell("^", "cut")
        if y == len(self.dots) - 1 and x in self._below:
            return Cell("v", "cut")
        if dots:
            return Cell(chr(_BLANK + dots), "curve" if self.lasting[y][x] else "left")
        return Cell("┊", "mark") if is_mark else Cell(" ")

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
        value = min(max(value, self.low), self.high)
        at = math.log(value) if self.is_log else value
        return round((high - at) / (high - low) * (self.num_dots - 1))


def _range_of(points: Sequence[Point], scale: Scale) -> tuple[YRange, bool]:
    """Return the range, NaN where no value is finite, and whether it is logarithmic."""
    finite = [(point.low, point.high) for point in points if not math.isnan(point.low)]
    if not finite:
        return YRange(math.nan, math.nan, math.nan, math.nan), False
    low, high = min(low for low, _ in finite), max(high for _, high in finite)
    is_wide = scale is Scale.LOG or (scale is Scale.AUTO and low > 0 and high / low > LOG_RATIO)
    if is_wide and low > 0:
        # There is room for everything on it.
        return YRange(low, high, low, high), True
    return y_range(finite), False


def _x_of(step: int, frame: Frame) -> int:
    """Return the column of dots for a step, kept inside the frame."""
    span = max(frame.last - frame.first, 1)
    x = int((step - frame.first) * (frame.width * 2 - 1) / span)
    return min(max(x, 0), frame.width * 2 - 1)
