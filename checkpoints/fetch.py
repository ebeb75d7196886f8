"""From the store to this node's disk: in parallel ranges, taken up again where a fetch stopped.

Finished ranges are noted beside the growing file. Nothing is trusted for that: the file gets its
name only when all of it has the SHA-256 that the manifest says.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..logbook.errors import IntegrityError
from .manifest import FileEntry
from .objects import MIB, ObjectStore
from .retrying import Backoff, persist
from .shardfile import check_data, verify_file

PART_SUFFIX = ".part"
NOTES_SUFFIX = ".part.done"
LOCK_SUFFIX = ".lock"


class Fetcher:
    """Fetches objects of one store. patience_s: how long a range is worth trying."""

    def __init__(
        self, store: ObjectStore, *, part_mib: int, concurrency: int, patience_s: float
    ) -> None:
        self._store = store
        self._part_bytes = part_mib * MIB
        self._concurrency = concurrency
        self.patience_s = patience_s

    def to_file(self, key: str, path: Path, entry: FileEntry) -> int:
        """Bring an object to path, verified; return how many bytes came over the wire.

        Raises: IntegrityError as verify_file when what the store has is not what was written,
            [object-missing], [object-size]; Retryable and Fatal of the store; OSError.
        """
        part = path.with_name(path.name + PART_SUFFIX)
        notes = path.with_name(path.name + NOTES_SUFFIX)
        is_taken_up = part.exists()
        fetched = self._fill(key, part, notes, entry)
        try:
            _verify_as(part, path, entry)
        except IntegrityError:
            _forget(part, notes)
            if not is_taken_up:
                raise
            # What was here before may have been of another try or rotten: once more from nothing.
            return fetched + self.to_file(key, path, entry)
        os.rename(part, path)
        notes.unlink(missing_ok=True)
        return fetched

    def to_memory(self, key: str, entry: FileEntry) -> memoryview:
        """Return an object, verified, without leaving it on the disk. Raises: as to_file."""
        data = np.empty(entry.bytes, np.uint8).data

        def keep(first: int, piece: bytes) -> None:
            data[first : first + len(piece)] = piece

        for first, piece in self._ranges(key, entry, frozenset()):
            keep(first, piece)
        check_data(Path(key), entry, data)
        return data

    def _fill(self, key: str, part: Path, notes: Path, entry: FileEntry) -> int:
        stamp = f"{entry.sha256} {self._part_bytes}\n"
        done = _noted(notes, stamp) if part.exists() else frozenset()
        if not done:
            _forget(part, notes)
        fetched = 0
        with part.open("r+b" if done else "wb", buffering=0) as file, notes.open("a") as log:
            if not done:
                log.write(stamp)
            for first, piece in self._ranges(key, entry, done):
                _write_at(file.fileno(), piece, first)
                log.write(f"{first}\n")
                log.flush()
                fetched += len(piece)
            os.fsync(file.fileno())
        return fetched

    def _ranges(
        self, key: str, entry: FileEntry, done: frozenset[int]
    ) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, bytes) of every range that is not done, a few at a time."""
        wanted = [at for at in range(0, entry.bytes, self._part_bytes) if at not in done]

        def get(first: int) -> tuple[int, bytes]:
            count = min(self._part_bytes, entry.bytes - first)
            return first, persist(
                lambda: self._store.read_range(key, first, count),
                Backoff(0.1, 5.0),
                self.patience_s,
            )

        with ThreadPoolExecutor(self._concurrency, "fetch") as pool:
            for start in range(0, len(wanted), self._concurrency):
                yield from pool.map(get, wanted[start : start + self._concurrency])


@contextlib.contextmanager
def fetch_lock(path: Path) -> Iterator[None]:
    """Hold the right to fetch path; ranks of one node that want the same file take turns.

    Raises: OSError.
    """
    with path.with_name(path.name + LOCK_SUFFIX).open("w") as file:
        # Let go by the kernel with the descriptor, however its holder ends.
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        yield


def _noted(notes: Path, stamp: str) -> frozenset[int]:
    try:
        first, *lines = notes.read_text().splitlines(keepends=True)
    except (OSError, ValueError):
        return frozenset()
    if first != stamp:
        return frozenset()
    # The last line may have been cut off in the middle of its number.
    whole = [line.strip() for line in lines if line.endswith("\n")]
    return frozenset(int(line) for line in whole if line.isdecimal())


def _verify_as(part: Path, path: Path, entry: FileEntry) -> None:
    verify_file(part.parent, FileEntry(part.name, entry.bytes, entry.sha256))


def _forget(part: Path, notes: Path) -> None:
    # The notes first: without its file a note must not survive.
    notes.unlink(missing_ok=True)
    part.unlink(missing_ok=True)


def _write_at(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
