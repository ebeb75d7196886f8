"""Where the terminal logbook gets a run from: the end of its journal first, its history after.

A long journal cannot be read within the blink of an eye, but its end can. The first update tells
what the end of the journal says, and the whole state where the controller has saved one lately.
Later updates bring the history from the first record on, a slice at a time, and whatever is new.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec.structs import replace

from .. import events as ev
from ..chapter import Chapter, read_chapter
from ..errors import MidwatchError
from ..fold import evolve
from ..pulse import pulse_s
from ..reader import Follower, Rewound, last_seq, read
from ..record import Record
from ..state import RECENT_STEPS, Incident, RunState
from ..state_file import load_saved_state
from .series import StepOf

TAIL_RECORDS = 2000
DENSE_KINDS = frozenset({"step", "rank-times", "validation-under-way"})
"""Kinds with a record every step or few seconds: of the history only their figures are kept."""

Records = tuple[Record[ev.Event], ...]


class Update(msgspec.Struct, frozen=True):
    """What has become known since the last update.

    state:    the run. is_whole: folded from every record; before, it is only a glimpse of the end.
    records:  new ones, oldest first. steps: (attempt, sample) of those among them.
    past:     records of the history in its order, dense kinds left out; past_steps: its steps.
    read_frac: how much of the journal has been read.
    is_anew:  everything told before is to be forgotten.
    has_more: whether another call would find more at once.
    trouble:  why the journal cannot be read now, "" while it can.
    alive_s:  the last pulse of the controller, 0.0 where it is not known.
    """

    state: RunState
    is_whole: bool = True
    records: Records = ()
    steps: tuple[StepOf, ...] = ()
    past: Records = ()
    past_steps: tuple[StepOf, ...] = ()
    read_frac: float = 1.0
    is_anew: bool = False
    has_more: bool = False
    trouble: str = ""
    alive_s: float = 0.0


class Source(Protocol):
    """Anything that can tell of a run."""

    def advance(self, budget_s: float) -> Update:
        """Return what is new, after working for about budget_s at most."""
        ...

    def chapter(self, incident: Incident) -> Chapter:
        """Return what the record holds around an incident; may be called from any thread."""
        ...


class JournalSource:
    """Tells of the run whose journal lies in a folder. It may be called from any one thread."""

    def __init__(
        self,
        directory: Path,
        *,
        tail: int = TAIL_RECORDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._tail = tail
        self._clock = clock
        self._is_open = False
        self._state = RunState()

    def advance(self, budget_s: float) -> Update:
        """Return what is new; a journal that cannot be read is told of as trouble."""
        until_s = self._clock() + budget_s
        is_anew = not self._is_open
        try:
            if is_anew:
                self._open()
            update = self._read(until_s)
        except Rewound:
            # Records the writer never acknowledged were withdrawn: what was built on them goes.
            self._close()
            return Update(RunState(), is_whole=False, is_anew=True, has_more=True)
        except (MidwatchError, OSError) as error:
            self._close()
            return Update(self._state, trouble=str(error))
        return replace(update, is_anew=is_anew, alive_s=pulse_s(self._directory))

    def chapter(self, incident: Incident) -> Chapter:
        """Return an incident's part of the journal, an empty one while that cannot be read."""
        try:
            return read_chapter(self._directory, incident)
        except (MidwatchError, OSError):
            return Chapter()

    # --- opening ---------------------------------------------------------------------------------

    def _open(self) -> None:
        """Begin at the end of the journal, or at the saved state where that is further back."""
        last = last_seq(self._directory)
        saved = load_saved_state(self._directory, up_to_seq=last)
        first = max(1, last - self._tail + 1)
        if saved.seq:
            first = min(first, saved.seq + 1)
        self._state, self._first = saved, first
        self._live: Follower[ev.Event] = Follower(self._directory, ev.Event, from_seq=first)
        self._past: Follower[ev.Event] | None = None
        self._is_whole = bool(saved.seq) or first == 1
        if first > 1:
            self._past = Follower(self._directory, ev.Event)
        self._unfolded: list[Record[ev.Event]] = []
        self._is_open = True
        self._has_caught_up = False

    def _close(self) -> None:
        if self._is_open:
            self._live.close()
            if self._past is not None:
                self._past.close()
        self._is_open = False

    # --- reading ---------------------------------------------------------------------------------

    def _read(self, until_s: float) -> Update:
        records = self._read_live()
        steps = tuple(steps_of(records))
        past: list[Record[ev.Event]] = []
        past_steps: list[StepOf] = []
        # The first look is for the screen: the history waits until something is on it.
        while self._past is not None and self._has_caught_up and self._clock() < until_s:
            batch = self._read_past()
            past += [record for record in batch if record.kind not in DENSE_KINDS]
            past_steps += steps_of(batch)
        self._has_caught_up = True
        done = self._past.next_seq - 1 if self._past is not None else self._first - 1
        return Update(
            state=self._state if self._is_whole else self._glimpse(),
            is_whole=self._is_whole,
            records=tuple(records),
            steps=steps,
            past=tuple(past),
            past_steps=tuple(past_steps),
            read_frac=done / (self._first - 1) if self._first > 1 else 1.0,
            has_more=self._past is not None,
        )

    def _read_live(self) -> list[Record[ev.Event]]:
        records: list[Record[ev.Event]] = []
        while batch := self._live.poll():
            records += batch
        if self._is_whole:
            self._fold(records)
        else:
            self._unfolded += records
        return records

    def _read_past(self) -> list[Record[ev.Event]]:
        """Return the next records of the history; the last of them complete the state."""
        assert self._past is not None
        batch = self._past.poll()
        kept = [record for record in batch if record.seq < self._first]
        if not self._is_whole:
            self._fold(kept)
        if len(kept) < len(batch) or not batch or kept[-1].seq == self._first - 1:
            self._past.close()
            self._past = None
            if not self._is_whole:
                self._is_whole = True
                self._fold(self._unfolded)
                self._unfolded.clear()
        return kept

    def _fold(self, records: list[Record[ev.Event]]) -> None:
        state = self._state
        for record in records:
            if record.seq > state.seq:
                state = evolve(state, record.event, seq=record.seq, time_s=record.time_s)
        self._state = state

    def _glimpse(self) -> RunState:
        """What the first record and the end of the journal say by themselves."""
        state = RunState()
        for record in read(self._directory, ev.Event):
            state = evolve(state, record.event, seq=record.seq, time_s=record.time_s)
            break
        samples = tuple(sample for _, sample in steps_of(self._unfolded))[-RECENT_STEPS:]
        newest = self._unfolded[-1] if self._unfolded else None
        return replace(
            state,
            seq=newest.seq if newest else 0,
            time_s=newest.time_s if newest else 0.0,
            num_attempts=newest.attempt if newest else 0,
            recent=samples,
            last=samples[-1] if samples else None,
            step=samples[-1].step if samples else 0,
        )


def steps_of(records: list[Record[ev.Event]]) -> Iterator[StepOf]:
    """Yield the steps that records tell of, and the attempt of each."""
    for record in records:
        event = record.event
        if isinstance(event, ev.StepDone):
            yield event.attempt, event.sample
        elif isinstance(event, ev.StepsRecalled):
            yield from ((event.attempt, sample) for sample in event.samples)
