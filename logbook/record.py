"""One line of the journal: its shape, its checksum, and how it becomes a Record again.

    {"seq":7,"time_s":1764000000.25,"attempt":2,"epoch":3,"event":{"kind":"note",...},"crc":"9c0f3a1b"}

The field order is fixed, so a person can grep and the checksum needs no parsing: crc is the CRC-32
of every byte before `,"crc"`, in lower-case hex, and always the last 18 bytes of the line. One
decode of the line gives the record and its event together.

Losses do become NaN, and JSON has no word for that. A non-finite float is written as one of the
strings "NaN", "Infinity", "-Infinity" and comes back as a float wherever the event's type says
float. Under a field typed Any (or a union of float and str) it stays a string: type such fields.
"""

from __future__ import annotations

import math
from binascii import crc32
from typing import Any, Generic, TypeVar

import msgspec

from .decoding import prepared
from .errors import IntegrityError

E = TypeVar("E", bound=msgspec.Struct)

FORMAT = 1
MAX_RECORD_BYTES = 4 << 20
CRC_BYTES = len(b',"crc":"00000000"}')


class Record(msgspec.Struct, Generic[E], frozen=True, gc=False):
    """One event as it stands in the journal.

    seq counts from 1 without gaps over the life of a run. epoch is the writer's lease; attempt the
    restart the event belongs to. time_s is seconds since the Unix epoch.
    """

    seq: int
    time_s: float
    attempt: int
    epoch: int
    event: E

    @property
    def kind(self) -> str:
        """The tag of the event, as it stands on the line."""
        return str(self.event.__struct_config__.tag)


class RecordHead(msgspec.Struct, frozen=True, gc=False):
    """What a scan needs of a record when nobody asks for the event."""

    seq: int
    epoch: int


class SegmentHeader(msgspec.Struct, frozen=True):
    """The first line of every segment: how it joins the one before.

    previous_bytes: length of the previous segment when this one was begun. Whatever stands beyond
        was written by a writer already superseded, and is not part of the journal.
    lost: records missing just before first_seq, given up by a person's salvage; 0 otherwise.
    """

    journal: int
    segment: int
    first_seq: int
    epoch: int
    time_s: float
    previous_bytes: int
    lost: int = 0


class JournalCorrupt(IntegrityError):
    """Bytes that were once written are gone or changed; nothing is skipped.

    segment and line count from 1, offset in bytes from the start of the segment's file.
    """

    def __init__(self, segment: int, line: int, offset: int, reason: str) -> None:
        super().__init__(
            "journal-corrupt",
            f"Journal segment {segment}, line {line} (byte {offset}): {reason}.",
            remedy="Restore the file from a copy, or give the damaged records up with "
            "midwatch.logbook.salvage.salvage(), which keeps the originals.",
        )
        self.segment = segment
        self.line = line
        self.offset = offset


_head_decoder = msgspec.json.Decoder(prepared(RecordHead))


def decode_head(line: bytes) -> RecordHead:
    """Return seq and epoch of a sound line. Raises IntegrityError[journal-format-unknown]."""
    try:
        return _head_decoder.decode(line)
    except (ValueError, msgspec.MsgspecError) as error:
        raise _format_unknown(f"an intact line is no record ({error}): {line[:200]!r}") from error


def with_crc(body: bytes) -> bytes:
    """Return the complete line for body, which is the JSON object without its closing brace."""
    return b'%b,"crc":"%08x"}\n' % (body, crc32(body))


def is_sound(line: bytes) -> bool:
    """Return whether line (without its newline) carries the checksum of its own bytes."""
    return line[-CRC_BYTES:] == b',"crc":"%08x"}' % crc32(line[:-CRC_BYTES])


def to_json(value: Any) -> bytes:
    """Return value as JSON, every non-finite float as its word instead of msgspec's null."""
    blob = msgspec.json.encode(value)
    # Only where there is a null can there have been one, so the slow way is seldom taken.
    if b"null" in blob:
        blob = msgspec.json.encode(_spell_out(msgspec.to_builtins(value)))
    return blob


def encode_header(header: SegmentHeader) -> bytes:
    return with_crc(msgspec.json.encode(header)[:-1])


def decode_header(line: bytes) -> SegmentHeader:
    """Return the header on a sound line. Raises IntegrityError[journal-format-unknown]."""
    try:
        header = msgspec.json.decode(line, type=prepared(SegmentHeader))
    except (ValueError, msgspec.MsgspecError) as error:
        raise _format_unknown(f"its first line is no segment header ({error})") from error
    if header.journal != FORMAT:
        raise _format_unknown(f"it has format {header.journal}, this version reads {FORMAT}")
    return header


def _format_unknown(reason: str) -> IntegrityError:
    return IntegrityError(
        "journal-format-unknown",
        f"The journal cannot be read: {reason}.",
        remedy="Use the version of midwatch that wrote it, or a newer one.",
    )


class Codec(Generic[E]):
    """Events to lines and back, for one union of tagged structs (or a single tagged struct)."""

    def __init__(self, event_type: Any) -> None:
        # Not strict: that is what reads "NaN" into a float field, at no cost that can be measured.
        self._decoder: msgspec.json.Decoder[Record[E]] = msgspec.json.Decoder(
            prepared(Record[event_type]), strict=False
        )

    def encode(self, seq: int, time_s: float, attempt: int, epoch: int, event: E) -> bytes:
        """Return the complete line.

        Raises: ValueError when the line is longer than MAX_RECORD_BYTES (a bug of ours).
        """
        line = with_crc(
            b'{"seq":%d,"time_s":%b,"attempt":%d,"epoch":%d,"event":%b'
            % (seq, repr(float(time_s)).encode(), attempt, epoch, to_json(event))
        )
        if len(line) > MAX_RECORD_BYTES:
            raise ValueError(f"record of {len(line)} bytes exceeds {MAX_RECORD_BYTES}")
        return line

    def decode(self, line: bytes) -> Record[E]:
        """Return the record on a sound line. Raises IntegrityError[journal-event-unknown]."""
        try:
            return self._decoder.decode(line)
        except (ValueError, msgspec.MsgspecError) as error:
            raise IntegrityError(
                "journal-event-unknown",
                f"A journal record is intact but cannot be understood: {error}: {line[:200]!r}.",
                remedy="Use the version of midwatch that wrote it, or a newer one.",
            ) from error


def _spell_out(value: Any) -> Any:
    """Return plain data with every non-finite float replaced by its word."""
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _spell_out(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_spell_out(item) for item in value]
    return value
