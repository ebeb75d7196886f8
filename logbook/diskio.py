"""Durable writes, and what a failed one means."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from .errors import Fatal, Retryable

# EFBIG is a quota of another kind (ulimit -f): room that a person can make.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_RETRY_S = 5.0


def disk_error(error: OSError, what: str) -> Retryable | Fatal:
    """Return what error means: Retryable[journal-disk-full] or Fatal[journal-write-failed]."""
    if error.errno in _NO_ROOM:
        return Retryable(
            "journal-disk-full",
            f"No room to {what}: {error}.",
            delay_s=_RETRY_S,
            remedy="Free space on that file system; nothing already written is damaged.",
        )
    return Fatal(
        "journal-write-failed",
        f"Could not {what}: {error}.",
        remedy="Check the file system, then start the controller again.",
    )


def write_all(fd: int, data: bytes) -> None:
    """Write all of data: one write() unless the system takes less. Raises OSError."""
    done = os.write(fd, data)
    while done < len(data):
        done += os.write(fd, memoryview(data)[done:])


def sync_directory(directory: Path) -> None:
    """Make the names in directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def create_file(path: Path, data: bytes) -> int:
    """Create path with data, durable together with its name, and return it open for appending.

    Leaves nothing behind when it fails. Raises FileExistsError, OSError.
    """
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        write_all(fd, data)
        os.fsync(fd)
        sync_directory(path.parent)
    except BaseException:
        _remove_own(path, fd)
        os.close(fd)
        raise
    return fd


def _remove_own(path: Path, fd: int) -> None:
    """Remove path if it still names the file behind fd, and not somebody else's."""
    with contextlib.suppress(OSError):
        if os.path.samestat(os.fstat(fd), os.stat(path)):
            path.unlink()


def replace_file(path: Path, data: bytes) -> None:
    """Give path the content data, atomically and durably. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        os.close(create_file(temporary, data))
        os.replace(temporary, path)
        sync_directory(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
