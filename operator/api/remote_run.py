"""A run that is served somewhere else, as its folder would show it here: followed and folded.

Each look is a request of its own, so a server that goes away and comes back is looked at again as
if nothing had been. What was read stays read; nothing is read twice.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from ...logbook import events as ev
from ...logbook.chapter import LOOK_BACK_RECORDS, RECORDS_MAX, Chapter, chapter_of
from ...logbook.errors import MidwatchError
from ...logbook.fold import evolve
from ...logbook.reader import Rewound
from ...logbook.record import Record
from ...logbook.state import Incident, RunState
from ...logbook.tui.source import DENSE_KINDS, TAIL_RECORDS, Update, steps_of
from .client import ApiClient

PAGE_RECORDS = 5000
PULSE_EVERY_S = 5.0
Records = list[Record[ev.Event]]


class RemoteJournal:
    """Hands out the records behind a sequence number in order, each once, as Follower does."""

    def __init__(self, client: ApiClient, after: int) -> None:
        self._client = client
        self._after = after
        self._last: Record[ev.Event] | None = None

    def poll(self) -> Records:
        """Return the next records, [] when there is nothing new.

        Raises: Rewound when one already handed out is not there any more; as ApiClient.
        """
        last = self._last
        if last is None:
            found = self._client.events(self._after, PAGE_RECORDS)
        else:
            # The last one once more: whether it is still the same tells of a journal cut back.
            found = self._client.events(last.seq - 1, PAGE_RECORDS)
            if not found or _key(found[0]) != _key(last):
                raise Rewound("the server has others in their place")
            found = found[1:]
        if found:
            self._last = found[-1]
        return found

    def drain(self) -> Records:
        """Return all that is new; what came before a failure is not lost. Raises: as poll."""
        records: Records = []
        try:
            while batch := self.poll():
                records += batch
        except Rewound:
            raise
        except MidwatchError:
            # The next call will meet it again, if it has not passed.
            if not records:
                raise
        return records


class RemoteState:
    """The RunState of a served run, brought up to date by poll(), as cli.runs.StateFollower is."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client
        self._begin()

    def _begin(self) -> None:
        self.state = self._client.state()
        self._journal = RemoteJournal(self._client, self.state.seq)

    def poll(self) -> Records:
        """Fold everything new and return it. Raises: as ApiClient."""
        try:
            new = self._journal.drain()
        except Rewound:
            self._begin()
            return self.poll()
        self.state = folded(self.state, new)
        return new


class RemoteSource:
    """Tells the terminal logbook of a served run: the end of it first, the history behind it."""

    def __init__(
        self,
        client: ApiClient,
        *,
        tail: int = TAIL_RECORDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._tail = tail
        self._clock = clock
        self._is_open = False
        self._state = RunState()
        self._alive_s, self._asked_s = 0.0, -PULSE_EVERY_S

    def advance(self, budget_s: float) -> Update:
        """Return what is new; a server that does not answer is told of as trouble."""
        until_s = self._clock() + budget_s
        is_anew = not self._is_open
        try:
            if is_anew:
                self._open()
            records = self._read_live()
            past = self._read_past(until_s) if not is_anew else []
        except Rewound:
            self._is_open = False
            return Update(RunState(), is_whole=False, is_anew=True, has_more=True)
        except MidwatchError as error:
            return Update(self._state, trouble=str(error))
        return Update(
            state=self._state,
            records=tuple(records),
            steps=tuple(steps_of(records)),
            past=tuple(record for record in past if record.kind not in DENSE_KINDS),
            past_steps=tuple(steps_of(past)),
            read_frac=(self._next_past - 1) / (self._first - 1) if self._first > 1 else 1.0,
            is_anew=is_anew,
            has_more=self._next_past < self._first,
            alive_s=self._alive_s if records else self._pulse_s(),
        )

    def chapter(self, incident: Incident) -> Chapter:
        """Return an incident's part of the journal, an empty one while that cannot be read.

        What threads stood in is told by the note alone: the dumps lie beside the server.
        """
        first = max(1, incident.opened_seq - LOOK_BACK_RECORDS)
        try:
            return chapter_of(self._from(first), incident)
        except MidwatchError:
            return Chapter()

    def _from(self, first: int) -> Iterator[Record[ev.Event]]:
        journal, left = RemoteJournal(self._client, first - 1), RECORDS_MAX
        while left > 0 and (page := journal.poll()):
            yield from page[:left]
            left -= len(page)

    def _pulse_s(self) -> float:
        """Return when the server last saw the controller turn, asked for now and then."""
        now_s = self._clock()
        if now_s - self._asked_s >= PULSE_EVERY_S and not self._state.is_at_rest:
            self._asked_s = now_s
            # A server that is gone is told of by the next look for records.
            with contextlib.suppress(MidwatchError):
                self._alive_s = self._client.status().heard_s
        return self._alive_s

    def _open(self) -> None:
        state = self._client.state()
        self._first = max(1, state.seq - self._tail + 1)
        self._next_past = 1
        self._past, self._live = (
            RemoteJournal(self._client, 0),
            RemoteJournal(self._client, self._first - 1),
        )
        self._state = state
        self._is_open = True

    def _read_live(self) -> Records:
        records = self._live.drain()
        self._state = folded(self._state, records)
        return records

    def _read_past(self, until_s: float) -> Records:
        """Return the next records of the history, for as long as there is time."""
        found: Records = []
        while self._next_past < self._first and self._clock() < until_s:
            try:
                page = self._past.poll()
            except Rewound:
                raise
            except MidwatchError:
                # What is new goes first; if this does not pass, the next look for that tells.
                break
            batch = [record for record in page if record.seq < self._first]
            # Records that a salvage gave up are in nobody's hands: the history has none of them.
            self._next_past = batch[-1].seq + 1 if batch else self._first
            found += batch
        return found


def folded(state: RunState, records: Records) -> RunState:
    """Return the state after records, those left out that it has already."""
    for record in records:
        if record.seq > state.seq:
            state = evolve(state, record.event, seq=record.seq, time_s=record.time_s)
    return state


def _key(record: Record[ev.Event]) -> tuple[int, int, float]:
    return record.seq, record.epoch, record.time_s
