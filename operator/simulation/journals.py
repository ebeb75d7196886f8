"""Where a simulated run is written down: in its folder, or nowhere; and its ledger kept on the way.

The journal in a folder is the ordinary one, in virtual time: the same seed gives the same bytes.
Nothing of a simulation has to survive the machine, so it is not synced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ...logbook import events as ev
from ...logbook.fold import evolve
from ...logbook.journal import Journal, JournalOptions
from ...logbook.ledger import Ledger
from ...logbook.record import Record
from ...logbook.state import RunState
from ..ports import RunJournal

Batch = Sequence[tuple[float, int, ev.Event]]


class NoJournal:
    """Numbers records and forgets them: for runs of which only the figures are wanted."""

    def __init__(self) -> None:
        self.epoch = 0
        self._seq = 0

    def reopen(self) -> NoJournal:
        """Open it for the next controller."""
        self.epoch += 1
        return self

    def append(self, events: Batch, sync: bool = False) -> list[Record[ev.Event]]:
        first = self._seq + 1
        self._seq += len(events)
        return [
            Record(first + index, time_s, attempt, self.epoch, event)
            for index, (time_s, attempt, event) in enumerate(events)
        ]

    def close(self) -> None:
        return None


class FolderJournal:
    """The ordinary journal in a folder, on the world's clock."""

    def __init__(self, folder: Path, now_s: Callable[[], float]) -> None:
        self.epoch = 0
        self._folder = folder
        self._now_s = now_s
        self._open: Journal[ev.Event] | None = None

    def reopen(self) -> FolderJournal:
        """Close what a lost controller left open, and open it for the next."""
        self.close()
        options = JournalOptions(wait_s=0.0, takeover=True, clock=self._now_s)
        self._open = Journal(self._folder, ev.Event, options)
        self.epoch = self._open.epoch
        return self

    def append(self, events: Batch, sync: bool = False) -> list[Record[ev.Event]]:
        assert self._open is not None
        return self._open.append(events)

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


class Booked:
    """A journal whose records are entered into a ledger as well. state_of: the controller's state.

    A record is entered once the state after it is there, which is when the next one comes, so that
    nothing is folded twice.
    """

    def __init__(
        self, journal: NoJournal | FolderJournal, state_of: Callable[[], RunState]
    ) -> None:
        self.ledger = Ledger()
        self._journal = journal
        self._state_of = state_of
        self._before = RunState()
        self._open: list[Record[ev.Event]] = []

    @property
    def epoch(self) -> int:
        return self._journal.epoch

    def reopen(self) -> RunJournal:
        """Open it for the next controller."""
        self.settle()
        self._journal.reopen()
        return self

    def append(self, events: Batch, sync: bool = False) -> list[Record[ev.Event]]:
        self.settle()
        self._before = self._state_of()
        self._open = self._journal.append(events)
        return self._open

    def settle(self) -> None:
        """Enter what was appended last."""
        before, records = self._before, self._open
        self._open = []
        for record in records[:-1]:
            after = evolve(before, record.event, seq=record.seq, time_s=record.time_s)
            self.ledger.take(before, after, record)
            before = after
        if records:
            self.ledger.take(before, self._state_of(), records[-1])

    def close(self) -> None:
        """Enter what is left, and close what is open."""
        self.settle()
        self._journal.close()
