"""Follow the kernel log: /dev/kmsg itself, or a file that somebody writes it to.

Never blocks: poll() returns what has arrived since the last call, at most RECORDS_MAX records.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

import msgspec

from ...logbook.errors import Fatal

KMSG = Path("/dev/kmsg")
RECORDS_MAX = 4096
# The kernel writes one record per read and none is longer than this.
_RECORD_BYTES = 8192
_CHUNK_BYTES = 1 << 20
_LINE_BYTES_MAX = 65536


class KernelLine(msgspec.Struct, frozen=True):
    """One message. boot_s and seq as the kernel gave them; None where the source has none."""

    text: str
    boot_s: float | None = None
    seq: int | None = None


class KernelReading(msgspec.Struct, frozen=True):
    """What arrived since the last poll. lost: records overwritten before they could be read."""

    lines: tuple[KernelLine, ...]
    lost: int = 0


def parse_record(record: bytes) -> KernelLine | None:
    """Return the message of a /dev/kmsg record ("level,seq,microseconds,flags;text"), or None.

    Continuation lines of a record (its dictionary) start with a blank and are left out.
    Source: Documentation/ABI/testing/dev-kmsg of the Linux kernel.
    """
    head, separator, rest = record.decode("utf-8", "replace").partition(";")
    fields = head.split(",")
    if not separator or len(fields) < 3 or not (fields[1].isdigit() and fields[2].isdigit()):
        return None
    text = rest.split("\n", 1)[0]
    return KernelLine(text=text, boot_s=int(fields[2]) / 1e6, seq=int(fields[1]))


class KernelLogFollower:
    """Reads one kernel log from its end (or, with from_start, from its beginning).

    Raises: Fatal[kernel-log-unreadable] when the log exists and may not be read, OSError when
        reading it fails; the next poll opens it again, and goes on where this one ended if it is
        the same log. A file that does not exist yet is waited for.
    """

    def __init__(self, path: Path = KMSG, *, from_start: bool = False) -> None:
        self._path = path
        self._fd = -1
        self._is_device = False
        self._identity = (0, 0)
        self._position = 0
        self._partial = b""
        self._next_seq: int | None = None
        self._open(from_start)

    def poll(self) -> KernelReading:
        """Return the records that have arrived."""
        if self._fd < 0:
            # Without a number to go on from, what a device still holds from before is no news.
            self._open(from_start=not self._is_device or self._next_seq is not None)
        if self._fd < 0:
            return KernelReading(())
        try:
            return self._poll_device() if self._is_device else self._poll_file()
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):
                # Nothing was written, so nothing is lost by a file system that is gone.
                os.close(fd)

    def _open(self, from_start: bool) -> None:
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            found = os.fstat(self._fd)
            self._is_device = stat.S_ISCHR(found.st_mode)
            known, self._identity = self._identity, (found.st_dev, found.st_ino)
            if known == self._identity and not self._is_device and self._position <= found.st_size:
                os.lseek(self._fd, self._position, os.SEEK_SET)
            else:
                self._partial = b""
                self._position = 0 if from_start else os.lseek(self._fd, 0, os.SEEK_END)
        except FileNotFoundError:
            self._fd = -1
        except OSError as error:
            self.close()
            raise Fatal(
                "kernel-log-unreadable",
                f"{self._path} cannot be read: {error.strerror}.",
                remedy="Run the agent as root, or point it at a readable copy of the kernel log.",
            ) from error

    def _poll_device(self) -> KernelReading:
        lines: list[KernelLine] = []
        lost = 0
        for _ in range(RECORDS_MAX):
            try:
                record = os.read(self._fd, _RECORD_BYTES)
            except BlockingIOError:
                break
            except BrokenPipeError:
                # The ring overtook this reader; the next read continues at its oldest record,
                # and the gap in the sequence numbers tells how many are gone.
                continue
            if not record:
                # A device that holds no kernel log, such as /dev/null.
                break
            line = parse_record(record)
            if line is None:
                continue
            if self._next_seq is not None and line.seq is not None:
                if line.seq < self._next_seq:
                    continue
                lost += line.seq - self._next_seq
            self._next_seq = None if line.seq is None else line.seq + 1
            lines.append(line)
        return KernelReading(tuple(lines), lost)

    def _poll_file(self) -> KernelReading:
        data = os.read(self._fd, _CHUNK_BYTES)
        if not data and self._is_replaced():
            self.close()
            self._open(from_start=True)
            data = os.read(self._fd, _CHUNK_BYTES) if self._fd >= 0 else b""
        self._position += len(data)
        *complete, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > _LINE_BYTES_MAX:
            complete.append(self._partial)
            self._partial = b""
        return KernelReading(
            tuple(KernelLine(line.decode("utf-8", "replace")) for line in complete if line)
        )

    def _is_replaced(self) -> bool:
        """Return whether the file was rotated away or cut short behind this reader's back."""
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return False
        is_other = (found.st_dev, found.st_ino) != self._identity
        return is_other or found.st_size < self._position
