"""Worker logs on disk: where they lie, their last lines, and a bound on their size."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

TAIL_BYTES_MAX = 16 << 10
_CUT_KEEP_BYTES = 1 << 20
_ATTEMPTS_KEPT = 32
_NAME = re.compile(r"^attempt-(\d+)\.rank-\d+\.(?:log|stack)$")


def log_path(folder: str | Path, attempt: int, rank: int) -> Path:
    """Return the path of a worker's standard output and error."""
    return Path(folder) / f"attempt-{attempt:05d}.rank-{rank:05d}.log"


def stack_path(folder: str | Path, attempt: int, rank: int) -> Path:
    """Return the path into which a worker dumps its stacks."""
    return Path(folder) / f"attempt-{attempt:05d}.rank-{rank:05d}.stack"


def log_tail(path: Path, bytes_max: int = TAIL_BYTES_MAX) -> str:
    """Return the end of a log, from a line start where possible; "" when there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - bytes_max, 0))
            data = file.read(bytes_max)
    except OSError:
        return ""
    if size > bytes_max and b"\n" in data:
        data = data.partition(b"\n")[2]
    return data.decode(errors="replace")


def cut_log(path: Path, bytes_max: int) -> int:
    """Shorten a log that has grown past bytes_max to its last part, in place.

    The writer appends, so it goes on at the new end; lines that it writes between the copy and
    the truncation are lost. Returns the bytes removed, 0 when nothing was done.
    """
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size <= bytes_max:
            return 0
        kept = min(_CUT_KEEP_BYTES, bytes_max // 2)
        file.seek(size - kept)
        tail = file.read(kept)
        file.truncate(0)
        with path.open("ab") as appended:
            appended.write(f"[midwatch: {size - kept} bytes cut here]\n".encode() + tail)
        return size - kept
    return 0


def prune_logs(folder: Path, attempt: int) -> None:
    """Remove logs of attempts long past; incidents carry the lines that mattered."""
    for path in folder.iterdir():
        match = _NAME.match(path.name)
        if match and int(match[1]) <= attempt - _ATTEMPTS_KEPT:
            path.unlink(missing_ok=True)
