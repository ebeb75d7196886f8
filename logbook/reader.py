"""Reading a journal: all of it, its end, or whatever is new since the last look.

Readers take no lock and may run beside the writer. What is reported through on_notice was passed
over rightly: an unfinished last line, records of a superseded writer, records a salvage gave up.
Anything else that does not belong raises JournalCorrupt.

A record seen beside a living writer is not yet for ever: when the writer runs out of disk, or is
superseded, records it never acknowledged are withdrawn. A Follower notices and raises Rewound.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Generic

from .errors import Retryable
from .record import Codec, E, JournalCorrupt, Record, SegmentHeader, decode_head
from .seek import find_last_seq, seek
from .segment import (
    Notice,
    SegmentCursor,
    find_sound_record,
    list_segments,
    segment_header,
    segment_path,
)

OnNotice = Callable[[Notice], None]


class Rewound(Retryable):
    """Records already handed out have been withdrawn; the follower starts over.

    The reader must drop what it built from them. The next poll begins again at from_seq.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(
            "journal-rewound",
            f"Records already read are no longer in the journal: {reason}.",
            delay_s=0.0,
            remedy="Drop the state folded from them and read again from the start.",
        )


def ignore_notice(notice: Notice) -> None:
    """The default on_notice: say nothing."""


class Follower(Generic[E]):
    """Hands out records in order, each once, as they appear; works across rotation.

    An idle poll costs two stat calls. A poll returns at most a chunk of records (segment.py), so
    poll until it returns nothing. from_seq: records before it are not handed out, and the segments
    before its own are not opened.
    """

    def __init__(
        self,
        directory: Path,
        event_type: Any,
        from_seq: int = 1,
        on_notice: OnNotice = ignore_notice,
    ) -> None:
        self._directory = directory
        self._codec: Codec[E] = Codec(event_type)
        self._from_seq = from_seq
        self._on_notice = on_notice
        self._cursor: SegmentCursor[Record[E]] | None = None
        self._stale_reported = 0

    @property
    def next_seq(self) -> int:
        """The seq of the next record to come; from_seq before the first poll."""
        return max(self._from_seq, self._cursor.place.next_seq if self._cursor else 1)

    def close(self) -> None:
        if self._cursor is not None:
            self._cursor.close()
            self._cursor = None

    def poll(self) -> list[Record[E]]:
        """Return the next records, or [] when there is nothing new.

        Raises: JournalCorrupt, Rewound, IntegrityError[journal-event-unknown,
        journal-format-unknown, journal-salvage-unfinished].
        """
        while True:
            cursor = self._cursor or self._begin()
            if cursor is None:
                return []
            successor = self._successor(cursor)
            if successor is None and not cursor.has_news():
                return []
            self._refuse_rewound(cursor, successor)
            before = cursor.place
            cursor.damage = None
            records = cursor.read(successor.previous_bytes if successor else None)
            if successor is None and self._successor(cursor) is not None:
                # The segment was sealed meanwhile: read again, knowing where it ends.
                cursor.place = before
                continue
            self._report_stale(cursor)
            if records:
                if records[0].seq < self._from_seq:
                    records = [record for record in records if record.seq >= self._from_seq]
                if records:
                    return records
            elif cursor.place.offset > before.offset:
                continue
            elif not self._go_on(cursor, successor):
                return []

    def report_tail(self) -> None:
        """Report what stands behind the last whole record, for a reader that stops there."""
        number = 0
        if self._cursor is not None:
            place, number = self._cursor.place, self._cursor.header.segment
            if tail := len(self._cursor.rest()):
                message = f"segment {number} ends with {tail} bytes of an unfinished record"
                self._on_notice(Notice("torn-tail", number, place.offset, tail, message))
        unborn = segment_path(self._directory, number + 1)
        if unborn.exists() and segment_header(self._directory, number + 1) is None:
            message = f"segment {number + 1} has no header yet, and no records"
            size = unborn.stat().st_size
            self._on_notice(Notice("torn-tail", number + 1, 0, size, message))

    def _begin(self) -> SegmentCursor[Record[E]] | None:
        """Open the segment that holds from_seq; None while there is no journal."""
        for number in reversed(list_segments(self._directory)):
            found = segment_header(self._directory, number)
            if found is not None and (number == 1 or found[0].first_seq < self._from_seq):
                cursor = self._open(number, *found)
                successor = self._successor(cursor)
                seek(cursor, self._from_seq, successor.previous_bytes if successor else None)
                return cursor
        return None

    def _open(self, number: int, header: SegmentHeader, line: bytes) -> SegmentCursor[Record[E]]:
        if number == 1 and header.first_seq != 1 + header.lost:
            raise JournalCorrupt(1, 1, 0, f"the header starts at seq {header.first_seq}, not 1")
        if header.lost:
            message = f"{header.lost} records before seq {header.first_seq} were lost"
            self._on_notice(Notice("lost", number, 0, header.lost, message))
        path = segment_path(self._directory, number)
        self._cursor = SegmentCursor(path, header, line, self._codec.decode)
        self._stale_reported = 0
        return self._cursor

    def _successor(self, cursor: SegmentCursor[Record[E]]) -> SegmentHeader | None:
        """Return the header that seals the cursor's segment; None while it is the last."""
        found = segment_header(self._directory, cursor.header.segment + 1)
        return found[0] if found else None

    def _refuse_rewound(
        self, cursor: SegmentCursor[Record[E]], successor: SegmentHeader | None
    ) -> None:
        reason = ""
        if successor is not None and successor.previous_bytes < cursor.place.offset:
            reason = f"a new writer took over at seq {successor.first_seq}"
        elif cursor.is_rewritten():
            reason = f"segment {cursor.header.segment} was cut back or replaced"
        if reason:
            self.close()
            raise Rewound(reason)

    def _report_stale(self, cursor: SegmentCursor[Record[E]]) -> None:
        count = cursor.place.stale_total - self._stale_reported
        if count > 0:
            number, offset = cursor.header.segment, cursor.place.offset
            message = f"{count} records of a superseded writer before byte {offset} were ignored"
            self._on_notice(Notice("stale", number, offset, count, message))
        self._stale_reported = cursor.place.stale_total

    def _go_on(self, cursor: SegmentCursor[Record[E]], successor: SegmentHeader | None) -> bool:
        """Move to the next segment. Returns False when there is none and the end is reached."""
        if successor is None:
            if cursor.damage and find_sound_record(cursor.rest()) >= 0:
                raise cursor.damage.error()
            return False
        place, number = cursor.place, cursor.header.segment
        if cursor.damage:
            raise cursor.damage.error()
        if place.offset != successor.previous_bytes:
            reason = f"the segment ends before byte {successor.previous_bytes}, where it was sealed"
            raise JournalCorrupt(number, place.line, place.offset, reason)
        if successor.first_seq != place.next_seq + successor.lost:
            reason = f"the header starts at seq {successor.first_seq}, not {place.next_seq}"
            raise JournalCorrupt(number + 1, 1, 0, reason)
        if successor.epoch < cursor.header.epoch:
            reason = f"epoch {successor.epoch} follows epoch {cursor.header.epoch}"
            raise JournalCorrupt(number + 1, 1, 0, reason)
        self._report_beyond_seal(cursor)
        found = segment_header(self._directory, number + 1)
        self.close()
        if found is None:
            raise Rewound(f"segment {number + 1} vanished")
        self._open(number + 1, *found)
        return True

    def _report_beyond_seal(self, cursor: SegmentCursor[Record[E]]) -> None:
        tail = cursor.rest()
        if tail:
            count, place = tail.count(b"\n"), cursor.place
            message = f"{len(tail)} bytes ({count} lines) of a superseded writer were ignored"
            self._on_notice(Notice("stale", cursor.header.segment, place.offset, count, message))


def read(
    directory: Path, event_type: Any, from_seq: int = 1, on_notice: OnNotice = ignore_notice
) -> Generator[Record[Any], None, None]:
    """Yield every record from from_seq on, in order; nothing when there is no journal yet.

    event_type: the union of tagged structs that the journal holds.
    Raises: as Follower.poll, at the record where reading has to stop.
    """
    follower: Follower[Any] = Follower(directory, event_type, from_seq, on_notice)
    try:
        while batch := follower.poll():
            yield from batch
        follower.report_tail()
    finally:
        follower.close()


def read_last(
    directory: Path, event_type: Any, count: int, on_notice: OnNotice = ignore_notice
) -> list[Record[Any]]:
    """Return the last count records (fewer when there are fewer), oldest first.

    Finds them by bisection: time does not grow with the journal. Records before are not checked.
    Raises: as Follower.poll.
    """
    if count < 1:
        return []
    first = last_seq(directory) - count + 1
    return list(read(directory, event_type, max(1, first), on_notice))[-count:]


def last_seq(directory: Path) -> int:
    """Return the seq of the last record, 0 when there is none; reads only the end of the journal.

    Raises: JournalCorrupt, IntegrityError.
    """
    for number in reversed(list_segments(directory)):
        if found := segment_header(directory, number):
            cursor = SegmentCursor(segment_path(directory, number), *found, decode_head)
            try:
                return find_last_seq(cursor)
            finally:
                cursor.close()
    return 0
