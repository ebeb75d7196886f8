"""Bytes to disk and back: files hashed while written, a commit by rename, reads that verify.

Nothing here knows what the bytes mean. A file is synced before the manifest that names it, the
manifest before its rename, the directory after it; so after a power cut a manifest that can be
seen names only files that are whole.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..logbook.errors import Fatal, IntegrityError, MidwatchError, Retryable
from .manifest import MANIFEST_NAME, MANIFEST_TEMPORARY, FileEntry, Manifest, encode

BLOCK_BYTES = 1 << 20
RETRY_DELAY_S = 30.0

_ANOTHER = "Load another checkpoint."


# --- writing -------------------------------------------------------------------------------------


def write_file(path: Path, data: memoryview, *, sync: bool = True) -> FileEntry:
    """Write data to path and return its entry; hashed block by block while still in cache.

    Raises: OSError.
    """
    digest = hashlib.sha256()
    view = data.cast("B")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        for start in range(0, len(view), BLOCK_BYTES):
            block = view[start : start + BLOCK_BYTES]
            digest.update(block)
            while block:
                block = block[os.write(fd, block) :]
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)
    return FileEntry(path.name, len(view), digest.hexdigest())


def entry_of(name: str, data: memoryview) -> FileEntry:
    """Return the entry that a file of that content would have."""
    return FileEntry(name, data.nbytes, hashlib.sha256(data).hexdigest())


def commit_manifest(directory: Path, manifest: Manifest, *, sync: bool = True) -> None:
    """Make the checkpoint exist: its manifest appears, whole, in one rename.

    Call only when every file that it names is written and synced. Raises: OSError.
    """
    temporary = directory / MANIFEST_TEMPORARY
    write_file(temporary, memoryview(encode(manifest)), sync=sync)
    if sync:
        sync_directory(directory)
    os.rename(temporary, directory / MANIFEST_NAME)
    if sync:
        sync_directory(directory)
        sync_directory(directory.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable. Raises: OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_uncommitted(directory: Path) -> None:
    """Delete what a failed save left behind; a committed checkpoint is never touched.

    Best effort: what cannot be removed stays as garbage for retention.
    """
    if (directory / MANIFEST_NAME).exists():
        return
    with contextlib.suppress(OSError):
        for path in directory.iterdir():
            path.unlink(missing_ok=True)
        directory.rmdir()


def save_error(error: OSError, directory: Path) -> MidwatchError:
    """Return what a failed write means to the run, with its code and cure."""
    detail = f"checkpoint {directory.name} could not be written to {directory.parent}: {error}."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Retryable(
            "disk-full",
            detail,
            delay_s=RETRY_DELAY_S,
            remedy="Free space or lower the retention counts; training goes on.",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Fatal(
            "checkpoint-not-writable", detail, remedy="Make the directory writable by the run."
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return Fatal("checkpoint-dir-missing", detail, remedy="Restore the run directory.")
    if error.errno == errno.EFBIG:
        return Fatal("file-too-large", detail, remedy="Raise the file size limit (ulimit -f).")
    return Retryable(
        "checkpoint-write-failed", detail, delay_s=RETRY_DELAY_S, remedy="Check the disk."
    )


# --- reading -------------------------------------------------------------------------------------


def read_verified(directory: Path, entry: FileEntry) -> memoryview:
    """Return the bytes of a file, of which exactly these were hashed and found right.

    Raises: IntegrityError[shard-missing], [shard-size], [shard-checksum], [shard-unreadable].
    """
    data = np.empty(entry.bytes, np.uint8).data
    digest = hashlib.sha256()
    position = 0
    for fd, path in _opened(directory, entry):
        while position < entry.bytes:
            block = data[position : position + BLOCK_BYTES]
            count = os.readv(fd, [block])
            if count == 0:
                raise _wrong_size(path, entry, position)
            digest.update(block[:count])
            position += count
    _check_digest(directory, entry, digest.hexdigest())
    return data


def verify_file(directory: Path, entry: FileEntry, *, deep: bool = True) -> None:
    """Check the size of a file and, with deep, its SHA-256, in constant memory.

    Raises: as read_verified.
    """
    digest = hashlib.sha256()
    block = memoryview(bytearray(BLOCK_BYTES))
    for fd, _ in _opened(directory, entry):
        while deep and (count := os.readv(fd, [block])):
            digest.update(block[:count])
    if deep:
        _check_digest(directory, entry, digest.hexdigest())


def check_data(path: Path, entry: FileEntry, data: memoryview) -> None:
    """Check bytes that came from elsewhere.

    Raises: IntegrityError[shard-size], [shard-checksum].
    """
    if len(data) != entry.bytes:
        raise _wrong_size(path, entry, len(data))
    _check_digest(path.parent, entry, hashlib.sha256(data).hexdigest())


def _opened(directory: Path, entry: FileEntry) -> Iterator[tuple[int, Path]]:
    # One turn of a for loop around an open file, so that every OSError inside it is translated.
    path = directory / entry.name
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            if size != entry.bytes:
                raise _wrong_size(path, entry, size)
            yield fd, path
        finally:
            os.close(fd)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise IntegrityError("shard-missing", f"{path} is missing.", remedy=_ANOTHER) from error
    except OSError as error:
        raise IntegrityError(
            "shard-unreadable", f"{path} cannot be read: {error}.", remedy=_ANOTHER
        ) from error


def _wrong_size(path: Path, entry: FileEntry, size: int) -> IntegrityError:
    return IntegrityError(
        "shard-size", f"{path} has {size} bytes, its manifest says {entry.bytes}.", remedy=_ANOTHER
    )


def _check_digest(directory: Path, entry: FileEntry, actual: str) -> None:
    if actual != entry.sha256:
        raise IntegrityError(
            "shard-checksum",
            f"{directory / entry.name} has SHA-256 {actual[:16]}..., "
            f"its manifest says {entry.sha256[:16]}...",
            remedy=_ANOTHER,
        )
