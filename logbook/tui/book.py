"""All that the terminal logbook knows of a run, put together from updates. Imports no widget."""

from __future__ import annotations

import json

import msgspec

from .. import events as ev
from ..record import Record, to_json
from ..render_text import line_of
from ..state import RunState
from .measured import Measurements
from .series import Series
from .source import DENSE_KINDS, Update

MAX_TAIL = 20_000
"""Records kept of what happens while watching; older ones of dense kinds go first."""


class Sieve(msgspec.Struct, frozen=True):
    """Which records the timeline shows: those with every word in their line, dense ones or not."""

    words: tuple[str, ...] = ()
    with_dense: bool = False

    def match(self, record: Record[ev.Event]) -> bool:
        if not self.with_dense and record.kind in DENSE_KINDS:
            return False
        if not self.words:
            return True
        line = line_of(record).lower()
        return all(word in line for word in self.words)


class Book:
    """The state, the figures and the records of a run as far as they are known.

    version rises with every change, so a view can tell whether it is out of date. generation rises
    when everything known before was forgotten, num_trims when old records were moved.
    """

    def __init__(self) -> None:
        self.version = 0
        self.generation = 0
        self.num_trims = 0
        self._forget()
        self.state = RunState()
        self.is_whole = False
        self.read_frac = 0.0
        self.trouble = ""
        self.alive_s = 0.0

    @property
    def total_steps(self) -> int:
        """How many steps the run is to make, 0 when its trainer does not say."""
        trainer = self.state.spec.get("trainer")
        steps = trainer.get("steps") if isinstance(trainer, dict) else None
        return steps if isinstance(steps, int) else 0

    def take(self, update: Update) -> bool:
        """Add what an update tells; return whether anything has changed.

        The pulse of the controller alone is no change: it only tells that there is none to tell.
        """
        if update.trouble:
            changed = update.trouble != self.trouble
            self.trouble = update.trouble
            self.version += changed
            return changed
        if update.is_anew:
            self._forget()
        self.alive_s = update.alive_s
        before = (self.state, self.is_whole, self.read_frac, self.trouble, self.generation)
        self.state, self.is_whole = update.state, update.is_whole
        self.read_frac, self.trouble = update.read_frac, ""
        self.series.add_past(update.past_steps)
        self.series.add(update.steps)
        self.measurements.add_past(update.past)
        self.measurements.add(update.records)
        self.past += update.past
        self.tail += update.records
        self._trim()
        after = (self.state, self.is_whole, self.read_frac, self.trouble, self.generation)
        changed = update.is_anew or any(
            a is not b and a != b for a, b in zip(before, after, strict=True)
        )
        self.version += changed
        return changed

    def latest(self, sieve: Sieve, most: int) -> list[Record[ev.Event]]:
        """Return the newest records that a sieve lets through, oldest first."""
        found: list[Record[ev.Event]] = []
        for part in (self.tail, self.past):
            for record in reversed(part):
                if len(found) == most:
                    break
                if sieve.match(record):
                    found.append(record)
        return found[::-1]

    def _forget(self) -> None:
        self.series = Series()
        self.measurements = Measurements()
        self.past: list[Record[ev.Event]] = []
        self.tail: list[Record[ev.Event]] = []
        self.generation += 1

    def _trim(self) -> None:
        if len(self.tail) <= MAX_TAIL:
            return
        half = MAX_TAIL // 2
        older = [record for record in self.tail[:-half] if record.kind not in DENSE_KINDS]
        self.past += older
        self.tail = self.tail[-half:]
        self.num_trims += 1


class Sifted:
    """The records of a book that a sieve lets through; what was sifted once is not looked at again.

    Made anew for another sieve.
    """

    def __init__(self, book: Book, sieve: Sieve) -> None:
        self._book = book
        self._sieve = sieve
        self._begin()

    def rows(self) -> list[Record[ev.Event]]:
        """Return all of them as of now, oldest first."""
        book = self._book
        if self._generation != (book.generation, book.num_trims):
            self._begin()
        past = book.past[self._num_past :]
        self._num_past += len(past)
        self._past += filter(self._sieve.match, past)
        tail = book.tail[self._num_tail :]
        self._num_tail += len(tail)
        self._tail += filter(self._sieve.match, tail)
        return self._past + self._tail

    def _begin(self) -> None:
        self._generation = (self._book.generation, self._book.num_trims)
        self._num_past = self._num_tail = 0
        self._past: list[Record[ev.Event]] = []
        self._tail: list[Record[ev.Event]] = []


def details_of(record: Record[ev.Event]) -> str:
    """Return everything that a record holds, for a person who wants to see it all."""
    return json.dumps(json.loads(to_json(record)), indent=2, ensure_ascii=True)
