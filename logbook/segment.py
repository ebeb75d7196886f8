"""The files of a journal and the walk through one of them.

    journal-00000001.jsonl      a header line, then records; sealed by its successor's header
    journal-00000002.jsonl      the last one; only its writer knows where it ends
    journal-00000002.torn       what a crash left behind the last whole record, kept for a person
    lease/                      who may write (lease.py)
    snapshot-000000000500.bin   a reader's shortcut (snapshot.py)

A cursor never judges: at the first line that does not belong it stops and says where (Damage). Only
who knows whether the segment is sealed can tell a torn tail from corruption.
"""

from __future__ import annotations

import os
import re
from binascii import crc32
from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import msgspec

from .errors import IntegrityError
from .record import (
    CRC_BYTES,
    MAX_RECORD_BYTES,
    JournalCorrupt,
    SegmentHeader,
    decode_header,
    is_sound,
)

# Small enough that the records of a chunk stay in cache: larger ones read at half the speed.
CHUNK_BYTES = 1 << 17
UNFINISHED = "salvage-unfinished"
_NAME = re.compile(r"journal-(\d{8})\.jsonl")


class Numbered(Protocol):
    """What the walk needs to see of a decoded line."""

    @property
    def seq(self) -> int: ...

    @property
    def epoch(self) -> int: ...


R = TypeVar("R", bound=Numbered)


class Notice(msgspec.Struct, frozen=True):
    """Something a reader passed over rightly, but not silently.

    kind: "torn-tail"   bytes of a record that was never completed
          "stale"       records of a writer that had been superseded
          "lost"        records that a person's salvage gave up
    count is bytes for a torn tail, else records.
    """

    kind: str
    segment: int
    offset: int
    count: int
    message: str


class Damage(msgspec.Struct, frozen=True):
    """The first line of a segment that does not belong there."""

    segment: int
    line: int
    offset: int
    reason: str

    def error(self) -> JournalCorrupt:
        return JournalCorrupt(self.segment, self.line, self.offset, self.reason)


class Place(msgspec.Struct, frozen=True):
    """Where a cursor stands: everything before offset has been read and found sound.

    last_line is the line that ends at offset; stale_total counts the lines passed over because
    their writer had been superseded.
    """

    offset: int
    line: int
    next_seq: int
    last_line: bytes
    stale_total: int = 0


def segment_path(directory: Path, number: int) -> Path:
    return directory / f"journal-{number:08d}.jsonl"


def list_segments(directory: Path) -> list[int]:
    """Return the segment numbers, 1, 2, ... in order; empty when there is no journal yet.

    Raises: JournalCorrupt when one is missing, IntegrityError[journal-salvage-unfinished].
    """
    if (directory / UNFINISHED).exists():
        raise IntegrityError(
            "journal-salvage-unfinished",
            f"A salvage of {directory} was interrupted.",
            remedy="Call salvage again; it carries on from the originals it kept.",
        )
    numbers = numbers_present(directory)
    for expected, number in enumerate(numbers, 1):
        if number != expected:
            raise JournalCorrupt(
                expected, 1, 0, f"the file is missing, but segment {number} is not"
            )
    return numbers


def numbers_present(directory: Path) -> list[int]:
    """Return the segment numbers found, sorted, with no claim that they are complete."""
    if not directory.is_dir():
        return []
    matches = (_NAME.fullmatch(name) for name in os.listdir(directory))
    return sorted(int(match[1]) for match in matches if match)


def read_header(path: Path) -> tuple[SegmentHeader, bytes] | None:
    """Return the header and its line without the newline; None while it is not whole and sound.

    Raises: FileNotFoundError, IntegrityError[journal-format-unknown].
    """
    with path.open("rb") as file:
        line = file.readline(4096)
    if not line.endswith(b"\n") or not is_sound(line[:-1]):
        return None
    return decode_header(line[:-1]), line[:-1]


def segment_header(directory: Path, number: int) -> tuple[SegmentHeader, bytes] | None:
    """Return the header and its line; None when there is no such segment or it is only being born.

    Raises: JournalCorrupt when the header is damaged: records or a later segment follow it.
    """
    path = segment_path(directory, number)
    try:
        found = read_header(path)
    except FileNotFoundError:
        return None
    if found is None:
        is_last = not segment_path(directory, number + 1).exists()
        if not is_last or find_sound_record(path.read_bytes()) >= 0:
            raise JournalCorrupt(number, 1, 0, "the segment header is damaged")
    elif found[0].segment != number:
        raise JournalCorrupt(number, 1, 0, f"the header says segment {found[0].segment}")
    return found


def find_sound_record(data: bytes, begin: int = 0, end: int | None = None) -> int:
    """Return where between two offsets the first whole and sound record begins, or -1.

    Looks inside lines too, because a damaged newline joins a good record to a bad one.
    """
    stop = len(data) if end is None else end
    start = data.find(b'{"seq":', begin, stop)
    while start >= 0:
        newline = data.find(b"\n", start, stop)
        if newline < 0:
            return -1
        if is_sound(data[start:newline]):
            return start
        start = data.find(b'{"seq":', start + 1, stop)
    return -1


class SegmentCursor(Generic[R]):
    """Reads one segment from its first record on, chunk by chunk, checking every line."""

    def __init__(
        self, path: Path, header: SegmentHeader, header_line: bytes, decode: Callable[[bytes], R]
    ) -> None:
        self.header = header
        self.place = Place(len(header_line) + 1, 2, header.first_seq, header_line)
        self.damage: Damage | None = None
        self._decode = decode
        self._fd = os.open(path, os.O_RDONLY)
        self._seen = (-1, -1)
        self._took_all = True

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def stat(self) -> os.stat_result:
        return os.fstat(self._fd)

    def has_news(self) -> bool:
        """Return whether a read may find more than the last one did. Costs one fstat."""
        status = self.stat()
        now = (status.st_size, status.st_mtime_ns)
        if now == self._seen and status.st_nlink > 0:
            return False
        self._seen = now
        return True

    def is_rewritten(self) -> bool:
        """Return whether bytes already read are gone, replaced or different."""
        status, place = self.stat(), self.place
        if status.st_nlink == 0 or status.st_size < place.offset:
            return True
        line = place.last_line + b"\n"
        return self.bytes_at(place.offset - len(line), len(line)) != line

    def bytes_at(self, offset: int, size: int) -> bytes:
        """Return up to size bytes of the file from offset on, fewer at its end."""
        return os.pread(self._fd, size, offset)

    def rest(self) -> bytes:
        """Return the bytes from here to the end of the file."""
        return self.bytes_at(self.place.offset, self.stat().st_size - self.place.offset)

    def read(self, limit: int | None) -> list[R]:
        """Return the records of the next chunk; stops before an unfinished line and at Damage.

        limit: where the segment is sealed, in bytes; None reads as far as there is.
        Returns: empty when nothing more is there, or when damage says why.
        """
        left = MAX_RECORD_BYTES if limit is None else limit - self.place.offset
        size = min(CHUNK_BYTES, left)
        data = self.bytes_at(self.place.offset, size)
        end = data.rfind(b"\n") + 1
        if end == 0 and size == CHUNK_BYTES == len(data):
            size = min(MAX_RECORD_BYTES, left)
            data = self.bytes_at(self.place.offset, size)
            end = data.rfind(b"\n") + 1
        if end == 0:
            if len(data) == MAX_RECORD_BYTES:
                self._stop("the line has no end")
            return []
        lines = data[:end].split(b"\n")
        lines.pop()
        before = self.place
        records = self._take(lines)
        if len(data) == size or (self.place is not before and not self._took_all):
            self._seen = (-1, -1)
        return records

    def _take(self, lines: list[bytes]) -> list[R]:
        """Check and decode lines, and move past those that belong."""
        decode, epoch, expected = self._decode, self.header.epoch, self.place.next_seq
        records: list[R] = []
        stale = 0
        reason = ""
        for line in lines:
            # is_sound, spelled out: the call would cost as much as the checksum.
            if line[-CRC_BYTES:] != b',"crc":"%08x"}' % crc32(line[:-CRC_BYTES]):
                reason = "the checksum does not match"
                break
            try:
                record = decode(line)
            except IntegrityError:
                if not records:
                    raise
                break  # Hand out what comes before; the next read raises.
            if record.epoch == epoch and record.seq == expected:
                expected += 1
                records.append(record)
            elif record.epoch < epoch:
                stale += 1
            else:
                found = f"seq {record.seq} of epoch {record.epoch}"
                reason = f"{found} stands where seq {expected} of epoch {epoch} belongs"
                break
        taken = len(records) + stale
        self._took_all = taken == len(lines)
        self._move(lines[:taken], expected, stale)
        if reason:
            self._stop(reason)
        return records

    def _move(self, lines: list[bytes], next_seq: int, stale: int) -> None:
        if lines:
            self.place = Place(
                offset=self.place.offset + sum(map(len, lines)) + len(lines),
                line=self.place.line + len(lines),
                next_seq=next_seq,
                last_line=lines[-1],
                stale_total=self.place.stale_total + stale,
            )

    def _stop(self, reason: str) -> None:
        place = self.place
        self.damage = Damage(self.header.segment, place.line, place.offset, reason)
