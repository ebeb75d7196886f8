"""Where a journal ends, settled by the writer that is about to carry it on.

Damage with nothing sound behind it is taken for the torn tail of a crash: the two look alike. So a
disk that spoils the very last records costs them; they are reported and kept, never lost silently.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from .diskio import replace_file, sync_directory
from .record import JournalCorrupt, RecordHead, decode_head
from .segment import (
    Notice,
    SegmentCursor,
    find_sound_record,
    list_segments,
    segment_header,
    segment_path,
)


class JournalEnd(msgspec.Struct, frozen=True):
    """The end of what a new writer carries on: segment 0 when there is no journal yet.

    bytes: the length of the segment up to its last whole record.
    """

    segment: int
    bytes: int
    next_seq: int
    notices: tuple[Notice, ...] = ()


def last_epoch(directory: Path) -> int:
    """Return the epoch of the newest segment with a whole header, 0 when there is none."""
    for number in reversed(list_segments(directory)):
        if found := segment_header(directory, number):
            return found[0].epoch
    return 0


def settle_end(directory: Path, *, may_cut: bool) -> JournalEnd:
    """Return the end of the journal, with everything before it durable and a torn tail put aside.

    may_cut: cut the torn tail from its segment too. Only with the lock: without it, the superseded
        writer may be about to finish that very line.
    Raises: JournalCorrupt when good records follow damage in the last segment; OSError.
    """
    notices: list[Notice] = []
    numbers = list_segments(directory)
    if numbers and segment_header(directory, numbers[-1]) is None:
        notices.append(_put_aside_headless(directory, numbers.pop()))
    if not numbers:
        return JournalEnd(0, 0, 1, tuple(notices))
    number = numbers[-1]
    found = segment_header(directory, number)
    if found is None:
        raise JournalCorrupt(number, 1, 0, "the segment header is damaged")
    path = segment_path(directory, number)
    cursor = SegmentCursor(path, *found, decode_head)
    try:
        notices += _settle_segment(cursor, path, may_cut=may_cut)
        return JournalEnd(number, cursor.place.offset, cursor.place.next_seq, tuple(notices))
    finally:
        cursor.close()


def _settle_segment(
    cursor: SegmentCursor[RecordHead], path: Path, *, may_cut: bool
) -> list[Notice]:
    _read_to_end(cursor)
    place, number = cursor.place, cursor.header.segment
    tail = cursor.rest()
    if cursor.damage and find_sound_record(tail) >= 0:
        raise cursor.damage.error()
    notices: list[Notice] = []
    if place.stale_total:
        message = f"{place.stale_total} records of a superseded writer in segment {number}"
        notices.append(Notice("stale", number, place.offset, place.stale_total, message))
    if tail:
        kept = _torn_path(path)
        replace_file(kept, tail)
        message = f"segment {number} ended in an unfinished record; it is kept in {kept.name}"
        notices.append(Notice("torn-tail", number, place.offset, len(tail), message))
    _make_durable(path, place.offset if may_cut and tail else None)
    return notices


def _read_to_end(cursor: SegmentCursor[RecordHead]) -> None:
    before = -1
    while cursor.damage is None and cursor.place.offset != before:
        before = cursor.place.offset
        cursor.read(None)


def _make_durable(path: Path, cut_at: int | None) -> None:
    """Sync the file: its last writer may have died with records that only memory held."""
    fd = os.open(path, os.O_RDWR)
    try:
        if cut_at is not None:
            os.ftruncate(fd, cut_at)
        os.fsync(fd)
    finally:
        os.close(fd)


def _put_aside_headless(directory: Path, number: int) -> Notice:
    """Rename a last segment whose header was never finished, so that its number is free."""
    path = segment_path(directory, number)
    size = path.stat().st_size
    kept = _torn_path(path)
    os.rename(path, kept)
    sync_directory(directory)
    message = f"segment {number} was never finished; it is kept in {kept.name}"
    return Notice("torn-tail", number, 0, size, message)


def _torn_path(path: Path) -> Path:
    kept, count = path.with_suffix(".torn"), 0
    while kept.exists():
        count += 1
        kept = path.with_suffix(f".{count}.torn")
    return kept
