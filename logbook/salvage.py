"""Saving what can be saved of a damaged journal. A person calls this; nothing else ever does.

The originals are kept in `salvage-<n>/`, where n is the epoch under which the salvage ran. Every
record whose checksum holds is copied byte for byte into new segments; where records are missing, a
new segment begins and its header says how many were lost, so that readers go on and say so.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from .diskio import create_file, replace_file, sync_directory, write_all
from .errors import ConfigError
from .lease import acquire_lease
from .record import FORMAT, SegmentHeader, decode_head, encode_header
from .segment import UNFINISHED, find_sound_record, numbers_present, read_header, segment_path
from .snapshot import discard_snapshots


class SalvageReport(msgspec.Struct, frozen=True):
    """What a salvage did. lost: inclusive ranges (first seq, last seq) that are gone.

    dropped_bytes: bytes of lines that were no sound record of the journal. originals: where the
    files are kept as they were.
    """

    kept_records: int
    lost: tuple[tuple[int, int], ...]
    dropped_bytes: int
    originals: Path

    def __str__(self) -> str:
        ranges = ", ".join(f"{a}-{b}" if a < b else str(a) for a, b in self.lost) or "none"
        return (
            f"{self.kept_records} records kept; lost seq: {ranges}; "
            f"{self.dropped_bytes} bytes dropped; originals in {self.originals}"
        )


class _Line(msgspec.Struct, frozen=True, gc=False):
    """Where a sound record stands."""

    segment: int
    offset: int
    size: int
    seq: int
    epoch: int


def salvage(
    directory: Path, *, segment_bytes: int = 64 << 20, wait_s: float = 0.0
) -> SalvageReport:
    """Rebuild the journal in directory from its sound records and return what was kept and lost.

    Safe to repeat, also after it was interrupted: it then starts from the originals it kept.
    Raises: Retryable[journal-locked] while a controller writes; ConfigError[journal-missing];
        OSError when the disk fails; the journal then refuses to open until salvage is repeated.
    """
    if not numbers_present(directory) and not (directory / UNFINISHED).exists():
        raise ConfigError("journal-missing", f"There is no journal in {directory}.")
    lease = acquire_lease(directory, above_epoch=_highest_epoch(directory), wait_s=wait_s)
    try:
        originals = _keep_originals(directory, lease.epoch)
        lines, dropped_bytes, next_seq = _sound_lines(originals)
        fresh = originals / "new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        rebuild = _Rebuild(originals, fresh, segment_bytes, lease.epoch)
        try:
            for line in lines:
                rebuild.add(line)
            rebuild.finish(next_seq)
        finally:
            rebuild.close()
        _swap(directory, originals, fresh)
        return SalvageReport(len(lines), tuple(rebuild.lost), dropped_bytes, originals)
    finally:
        lease.release()


def _highest_epoch(directory: Path) -> int:
    paths = (segment_path(directory, number) for number in numbers_present(directory))
    return max((found[0].epoch for path in paths if (found := read_header(path))), default=0)


def _keep_originals(directory: Path, epoch: int) -> Path:
    """Return the folder with the original segments, linked there unless a salvage before did."""
    unfinished = directory / UNFINISHED
    if unfinished.exists():
        return directory / unfinished.read_text().strip()
    originals = directory / f"salvage-{epoch:08d}"
    originals.mkdir()
    for number in numbers_present(directory):
        path = segment_path(directory, number)
        try:
            os.link(path, originals / path.name)
        except OSError:
            shutil.copy2(path, originals / path.name)
    sync_directory(originals)
    sync_directory(directory)
    return originals


def _sound_lines(folder: Path) -> tuple[list[_Line], int, int]:
    """Return the records that belong to the journal, the bytes dropped, and the seq to go on at."""
    kept: list[_Line] = []
    dropped_bytes, next_seq = 0, 1
    numbers = numbers_present(folder)
    headers = {number: read_header(segment_path(folder, number)) for number in numbers}
    for number in numbers:
        data = segment_path(folder, number).read_bytes()
        found, successor = headers[number], headers.get(number + 1)
        start = 0
        if found:
            start = len(found[1]) + 1
            next_seq = max(next_seq, found[0].first_seq)
        end = min(len(data), successor[0].previous_bytes) if successor else len(data)
        dropped_bytes += len(data) - start
        for line in _records_in(number, data, start, end):
            while kept and kept[-1].seq >= line.seq and kept[-1].epoch < line.epoch:
                dropped_bytes += kept.pop().size
            if not kept or (kept[-1].seq < line.seq and kept[-1].epoch <= line.epoch):
                kept.append(line)
                dropped_bytes -= line.size
    return kept, dropped_bytes, max(next_seq, kept[-1].seq + 1 if kept else 1)


def _records_in(segment: int, data: bytes, start: int, end: int) -> Iterator[_Line]:
    """Yield the sound records between two offsets, wherever they begin."""
    while (at := find_sound_record(data, start, end)) >= 0:
        start = data.index(b"\n", at) + 1
        head = decode_head(data[at : start - 1])
        yield _Line(segment, at, start - at, head.seq, head.epoch)


class _Rebuild:
    """Copies records into new segments; a gap, a new epoch and a full segment begin another."""

    def __init__(self, source: Path, target: Path, segment_bytes: int, epoch: int) -> None:
        self.lost: list[tuple[int, int]] = []
        self._source, self._target = source, target
        self._segment_bytes = segment_bytes
        self._epoch = epoch
        self._next_seq = 1
        self._number = self._size = 0
        self._fd = self._source_fd = -1
        self._open_source = 0

    def add(self, line: _Line) -> None:
        is_full = self._size + line.size > self._segment_bytes
        if not self._number or is_full or (line.seq, line.epoch) != (self._next_seq, self._epoch):
            self._begin(line.seq, line.epoch)
        write_all(self._fd, self._bytes_of(line))
        self._size += line.size
        self._next_seq += 1

    def finish(self, next_seq: int) -> None:
        """End so that the journal goes on at next_seq, even if what came before is lost."""
        if not self._number or next_seq > self._next_seq:
            self._begin(next_seq, self._epoch)
        os.fsync(self._fd)
        sync_directory(self._target)

    def close(self) -> None:
        for fd in (self._fd, self._source_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._source_fd = -1

    def _begin(self, first_seq: int, epoch: int) -> None:
        if self._fd >= 0:
            os.fsync(self._fd)
            os.close(self._fd)
            self._fd = -1
        lost = first_seq - self._next_seq
        if lost:
            self.lost.append((self._next_seq, first_seq - 1))
        self._number += 1
        header = encode_header(
            SegmentHeader(FORMAT, self._number, first_seq, epoch, time.time(), self._size, lost)
        )
        self._fd = create_file(segment_path(self._target, self._number), header)
        self._size, self._next_seq, self._epoch = len(header), first_seq, epoch

    def _bytes_of(self, line: _Line) -> bytes:
        if self._open_source != line.segment:
            if self._source_fd >= 0:
                os.close(self._source_fd)
            self._source_fd = os.open(segment_path(self._source, line.segment), os.O_RDONLY)
            self._open_source = line.segment
        return os.pread(self._source_fd, line.size, line.offset)


def _swap(directory: Path, originals: Path, fresh: Path) -> None:
    """Put the new segments in place of the old; until it is done the journal refuses to open."""
    replace_file(directory / UNFINISHED, originals.name.encode())
    numbers = numbers_present(fresh)
    for number in numbers:
        os.replace(segment_path(fresh, number), segment_path(directory, number))
    for number in numbers_present(directory):
        if number not in numbers:
            segment_path(directory, number).unlink()
    discard_snapshots(directory)
    sync_directory(directory)
    (directory / UNFINISHED).unlink()
    sync_directory(directory)
    fresh.rmdir()
