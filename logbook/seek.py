"""Finding a record in a segment without reading the segment: by its seq, or the last one.

Lines are unequal, but their seqs rise, so a bisection over byte offsets works: at each probe the
first sound record behind the offset says on which side to go on.
"""

from __future__ import annotations

from typing import Any

from .record import decode_head, is_sound
from .segment import Place, SegmentCursor

_NEAR_BYTES = 1 << 16
_START = b'{"seq":'


def seek(cursor: SegmentCursor[Any], seq: int, limit: int | None) -> None:
    """Move a fresh cursor to a record at or shortly before seq; the lines between are not checked.

    limit: where the segment is sealed, in bytes; None when it is the last.
    """
    place = cursor.place
    low, high = place.offset, cursor.stat().st_size if limit is None else limit
    while high - low > _NEAR_BYTES and place.next_seq < seq:
        middle = (low + high) // 2
        found = _first_sound(cursor, middle, high)
        if found is None or found.next_seq > seq:
            high = middle
        else:
            low, place = found.offset, found
    cursor.place = place


def find_last_seq(cursor: SegmentCursor[Any]) -> int:
    """Return the seq of the last segment's last sound record; first_seq - 1 if it has none."""
    first, end = cursor.place.offset, cursor.stat().st_size
    size = _NEAR_BYTES
    while True:
        begin = max(first - 1, end - size)
        seq = _last_sound(cursor.bytes_at(begin, end - begin), cursor.header.epoch)
        if seq is not None:
            return seq
        if begin < first:
            return cursor.header.first_seq - 1
        size *= 4


def _first_sound(cursor: SegmentCursor[Any], begin: int, end: int) -> Place | None:
    """Return the place before the first sound record that starts behind begin and ends by end."""
    size = _NEAR_BYTES
    while True:
        data = cursor.bytes_at(begin, min(size, end - begin))
        at = data.find(b"\n" + _START)
        while at >= 0 and (stop := data.find(b"\n", at + 1)) >= 0:
            seq = _seq_of(data[at + 1 : stop], cursor.header.epoch)
            if seq is not None:
                line = 2 + seq - cursor.header.first_seq
                return Place(begin + at + 1, line, seq, b"")
            at = data.find(b"\n" + _START, stop)
        if size >= end - begin:
            return None
        size *= 4


def _last_sound(data: bytes, epoch: int) -> int | None:
    """Return the seq of the last sound record in data, None when it holds none."""
    stop = data.rfind(b"\n")
    while stop >= 0:
        start = data.rfind(b"\n", 0, stop)
        seq = _seq_of(data[start + 1 : stop], epoch)
        if seq is not None:
            return seq
        stop = start
    return None


def _seq_of(line: bytes, epoch: int) -> int | None:
    """Return the seq of a sound record of this epoch, else None."""
    if not line.startswith(_START) or not is_sound(line):
        return None
    head = decode_head(line)
    return head.seq if head.epoch == epoch else None
