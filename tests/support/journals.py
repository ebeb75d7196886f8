"""A small union of events for journal tests, and journals made of them.

Its own, so that the journal is tested as what it is: generic over any tagged union.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from midwatch.logbook.journal import Journal, JournalOptions
from midwatch.logbook.reader import read
from midwatch.logbook.record import Record
from midwatch.logbook.segment import Notice


class Stepped(msgspec.Struct, frozen=True, tag_field="kind", tag="stepped"):
    step: int
    loss: float
    scale: float | None = None
    extra: dict[str, float] = {}


class Noted(msgspec.Struct, frozen=True, tag_field="kind", tag="noted"):
    text: str


AnyEvent = Stepped | Noted
NO_WAIT = JournalOptions(wait_s=0.0)


def open_journal(directory: Path, **options: object) -> Journal[AnyEvent]:
    """Open for writing without waiting for a lock; options as in JournalOptions."""
    return Journal(directory, AnyEvent, msgspec.structs.replace(NO_WAIT, **options))


def stepped(*steps: int) -> list[tuple[float, int, AnyEvent]]:
    """Triples to append, one per step number."""
    return [(1000.0 + step, 1, Stepped(step, 1.0 / (1 + step))) for step in steps]


def write_steps(directory: Path, count: int, **options: object) -> None:
    """Write count records with steps 1..count in one session."""
    with open_journal(directory, **options) as journal:
        for step in range(journal.next_seq, journal.next_seq + count):
            journal.append(stepped(step))


def read_steps(directory: Path, from_seq: int = 1) -> list[int]:
    """Return the step of every record; raises as reader.read."""
    return [step_of(record) for record in read(directory, AnyEvent, from_seq)]


def step_of(record: Record[AnyEvent]) -> int:
    assert isinstance(record.event, Stepped)
    return record.event.step


def read_with_notices(directory: Path) -> tuple[list[int], list[Notice]]:
    """Return the seqs read and what the reader reported on the way."""
    notices: list[Notice] = []
    seqs = [record.seq for record in read(directory, AnyEvent, on_notice=notices.append)]
    return seqs, notices


def flip_bit(path: Path, offset: int, bit: int = 0) -> None:
    """Damage one bit in place."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)
