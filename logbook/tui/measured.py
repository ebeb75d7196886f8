"""The measurements on held-out text, few and far between, as points of a chart. No widget here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .. import events as ev
from ..record import Record
from .series import Point


class Measurements:
    """All of them: the history as it is read, and the end of the journal as it grows."""

    def __init__(self) -> None:
        self._past: list[ev.ValidationDone] = []
        self._tail: list[ev.ValidationDone] = []

    def __bool__(self) -> bool:
        return bool(self._past or self._tail)

    def add(self, records: Iterable[Record[ev.Event]]) -> None:
        """Take what is newer than everything else."""
        self._tail += _measured(records)

    def add_past(self, records: Iterable[Record[ev.Event]]) -> None:
        """Take what comes next in the history."""
        self._past += _measured(records)

    def points(self, first: int, last: int, lineage: Sequence[tuple[int, int]]) -> list[Point]:
        """Return the perplexities from step first to step last, oldest first.

        Each stands for the steps since the one before, so that the curve is a flight of stairs.
        lineage: as in RunState; what a later attempt went back past is left behind.
        """
        found: list[Point] = []
        standing = [0]
        for each in (*self._past, *self._tail):
            while standing[-1] >= max(each.step, 1):
                standing.pop()
            begin = standing[-1] + 1
            standing.append(each.step)
            if first <= each.step and begin <= last:
                value = each.perplexity
                low = value if value < float("inf") else float("nan")
                is_left = any(a > each.attempt and step < each.step for a, step in lineage)
                found.append(Point(max(begin, first), min(each.step, last), low, low, is_left))
        return found


def _measured(records: Iterable[Record[ev.Event]]) -> list[ev.ValidationDone]:
    return [r.event for r in records if isinstance(r.event, ev.ValidationDone)]
