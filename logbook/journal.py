"""The write-ahead log of one run: its only writer.

Append the decision with sync, do it, append the outcome. A synced append that returned survives the
loss of power; one without sync survives the death of the process, and becomes durable with the
next synced one. Each batch is one write(). What append returns was decoded from the very
bytes written, so a state folded from it equals the state a later reader folds.

Opening begins a new segment, whose header fixes where the previous one ended: see lease.py for why.
A torn tail behind the last whole record is put aside in a .torn file and cut. Damage with good
records behind it raises JournalCorrupt, and a person decides (salvage.py).

One thread, and no fork while it is open.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Generic

import msgspec

from .diskio import create_file, disk_error, write_all
from .errors import Fatal, IntegrityError, Retryable
from .lease import Lease, acquire_lease
from .opening import last_epoch, settle_end
from .reader import read
from .record import FORMAT, Codec, E, Record, SegmentHeader, encode_header
from .segment import Notice, segment_path

_OPENING_TRIES = 5


class JournalOptions(msgspec.Struct, frozen=True):
    """How a journal is opened.

    segment_bytes: a new segment is begun when the next batch would pass this size.
    wait_s, takeover: see lease.acquire_lease.
    """

    segment_bytes: int = 64 << 20
    wait_s: float = 10.0
    takeover: bool = False
    clock: Callable[[], float] = time.time


class Journal(Generic[E]):
    """The writer. epoch is its lease, next_seq the seq of the next record, notices what it cut.

    Raises on opening: Retryable[journal-locked, journal-disk-full], JournalCorrupt,
    Fatal[journal-fenced, journal-write-failed], IntegrityError[journal-format-unknown,
    journal-salvage-unfinished].
    """

    def __init__(
        self, directory: Path, event_type: Any, options: JournalOptions | None = None
    ) -> None:
        self.directory = directory
        self.options = options or JournalOptions()
        self.notices: tuple[Notice, ...] = ()
        self._event_type = event_type
        self._codec: Codec[E] = Codec(event_type)
        self._unusable = ""
        self._fd = -1
        try:
            self._lease = self._acquire()
            self.epoch = self._lease.epoch
            try:
                self._open()
            except BaseException:
                self.close()
                raise
        except OSError as error:
            raise disk_error(error, f"open the journal {directory}") from error

    def __enter__(self) -> Journal[E]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def records(self, from_seq: int = 1) -> Iterator[Record[E]]:
        """Yield what the journal holds, to fold on opening. Raises: as reader.read."""
        return read(self.directory, self._event_type, from_seq)

    def append(self, events: Sequence[tuple[float, int, E]], sync: bool = False) -> list[Record[E]]:
        """Write (time_s, attempt, event) triples as one batch and return their records.

        sync: return only when the batch and everything before it is on disk.
        Raises: Retryable[journal-disk-full]: nothing of the batch remains, later appends work.
            Fatal[journal-fenced]: another controller has taken over; do not act on the batch.
            Fatal[journal-write-failed]: the disk failed; this journal writes no more.
            ValueError: an event is too long or would not decode (a bug of ours); nothing written.
        """
        self._require_usable()
        self._check_lease()
        lines, records = self._encode(events)
        batch = b"".join(lines)
        if self._size > self._header_bytes and (
            self._size + len(batch) > self.options.segment_bytes
        ):
            self._rotate()
        self._write(batch)
        self.next_seq += len(records)
        if sync:
            self._sync()
        return records

    def sync(self) -> None:
        """Make everything appended so far durable, and know that no other writer has taken over.

        Raises: Fatal[journal-fenced, journal-write-failed].
        """
        self._require_usable()
        self._sync()

    def close(self) -> None:
        """Sync, close and let go of the lease. Harmless when repeated."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.fsync(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._unusable = self._unusable or "it is closed"
        self._lease.release()

    # --- writing ---------------------------------------------------------------------------------

    def _encode(
        self, events: Sequence[tuple[float, int, E]]
    ) -> tuple[list[bytes], list[Record[E]]]:
        encode, decode = self._codec.encode, self._codec.decode
        lines: list[bytes] = []
        records: list[Record[E]] = []
        for seq, (time_s, attempt, event) in enumerate(events, self.next_seq):
            line = encode(seq, time_s, attempt, self.epoch, event)
            try:
                records.append(decode(line[:-1]))
            except IntegrityError as error:
                raise ValueError(f"event would not read back: {error}") from error
            lines.append(line)
        return lines, records

    def _write(self, batch: bytes) -> None:
        try:
            write_all(self._fd, batch)
        except BaseException as error:
            self._cut_back()
            if isinstance(error, OSError):
                raise self._failed(error) from error
            raise
        self._size += len(batch)

    def _cut_back(self) -> None:
        """Take back what a failed write left, so the file ends with the last whole record."""
        try:
            os.ftruncate(self._fd, self._size)
        except OSError as error:
            self._unusable = f"a failed write could not be taken back ({error})"

    def _failed(self, error: OSError) -> Exception:
        verdict = disk_error(error, f"append to {segment_path(self.directory, self._segment)}")
        if isinstance(verdict, Fatal):
            self._unusable = str(error)
        return verdict

    def _sync(self) -> None:
        """Make everything written durable, then look once more for a successor (lease.py)."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            # After a failed sync the system may have dropped the data and forgotten the failure:
            # a second try would succeed and mean nothing.
            self._unusable = f"a sync failed ({error})"
            raise Fatal(
                "journal-write-failed",
                f"The journal {self.directory} could not be synced to disk: {error}.",
                remedy="Check the file system, then start the controller again.",
            ) from error
        self._check_lease()

    def _check_lease(self) -> None:
        try:
            self._lease.check()
        except Fatal:
            self._unusable = "another controller has taken over"
            raise

    def _require_usable(self) -> None:
        if self._unusable:
            raise Fatal(
                "journal-closed",
                f"The journal {self.directory} takes no more records: {self._unusable}.",
                remedy="Open it anew.",
            )

    def _rotate(self) -> None:
        """Seal the segment and begin the next. On Retryable the old one stays in use."""
        self._sync()
        try:
            self._begin_segment(self._segment + 1, self._size)
        except OSError as error:
            if isinstance(error, FileExistsError):
                self._check_lease()
            raise disk_error(error, f"begin a journal segment in {self.directory}") from error

    def _begin_segment(self, number: int, previous_bytes: int) -> None:
        header = encode_header(
            SegmentHeader(
                FORMAT, number, self.next_seq, self.epoch, self.options.clock(), previous_bytes
            )
        )
        fd = create_file(segment_path(self.directory, number), header)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._segment = fd, number
        self._size = self._header_bytes = len(header)

    # --- opening ---------------------------------------------------------------------------------

    def _acquire(self) -> Lease:
        options = self.options
        self.directory.mkdir(parents=True, exist_ok=True)
        return acquire_lease(
            self.directory,
            above_epoch=last_epoch(self.directory),
            wait_s=options.wait_s,
            takeover=options.takeover,
            clock=options.clock,
        )

    def _open(self) -> None:
        """Settle where the journal ends and begin the next segment."""
        for _ in range(_OPENING_TRIES):
            end = settle_end(self.directory, may_cut=self._lease.is_locked)
            self.next_seq = end.next_seq
            self.notices += end.notices
            try:
                self._begin_segment(end.segment + 1, end.bytes)
            except FileExistsError:
                # The superseded writer began it first; it cannot once a later one exists.
                continue
            self._check_lease()
            return
        raise Retryable(
            "journal-locked",
            f"Another writer keeps adding segments to {self.directory}.",
            delay_s=self.options.wait_s,
            remedy="Only one controller may run it: use that one, or end it first.",
        )
