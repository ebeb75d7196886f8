"""Who may write a journal: a lock for the living, a numbered claim against the presumed dead.

Two things, because neither is enough alone:

1. `lease/lock` is flock-ed by the writer for as long as it lives. The kernel lets go of it when the
   process ends, however it ends, so nobody ever clears a stale lock by hand.
2. `lease/epoch-00000007.json` is created exclusively by each new writer: its epoch. A writer whose
   successor's claim exists has been superseded and is fenced: Fatal[journal-fenced].

Protocol. A writer waits up to wait_s for the lock, since a restarted controller may race its
dying predecessor, then claims the next epoch, and only then looks at what the journal holds. If
the lock stays held, the opening is refused (Retryable[journal-locked]), unless the caller knows
that the holder is superseded (Ray has declared that actor dead, and it may be stopped, or out of
reach on another host) and asks for takeover: then the claim alone makes it the writer. A holder
looks for a successor before each write and again after each sync. The second look is what counts:
a synced append that returned was on disk before any successor claimed, so the successor read it;
one that was not is refused, and its effect must not be carried out. Every opening begins a new
segment whose header fixes where the previous one ended, so what a fenced writer's last write
still leaves behind lies beyond that mark, and readers pass over it and say so.

A writer that took over without the lock picks the lock up when the old holder is gone, so that
a later opening without takeover is refused as it should be.

Limits. On one host, or on a file system with coherent locks and names (ext4, xfs, CephFS, Lustre
mounted with flock), the protocol is exact. Over NFS, flock works between hosts from Linux 2.6.12
on unless mounted with local_lock, and the server keeps the lock of a host that vanished until its
lease runs out (about 90 s): wait longer or take over. An NFS client may cache "no such file" for
up to acdirmax (60 s), so a superseded writer on another host may go on that long unless mounted
with lookupcache=positive; attempts fence its commands in the meantime. Object stores mounted as
files have neither append nor locks: not supported. A child forked without exec inherits the lock,
so a holder must not fork.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from .decoding import prepared
from .diskio import create_file
from .errors import Fatal, Retryable

KEPT_CLAIMS = 16
_POLL_S = 0.01
_CLAIM = re.compile(r"epoch-(\d{8})\.json")


class Claim(msgspec.Struct, frozen=True):
    """Who claimed an epoch, for a person; the file's existence is what counts."""

    epoch: int
    host: str
    pid: int
    time_s: float


class Lease:
    """The right to write one journal under one epoch. Get one from acquire_lease."""

    def __init__(self, folder: Path, lock_fd: int, epoch: int, *, is_locked: bool) -> None:
        self.epoch = epoch
        self.is_locked = is_locked
        self._lock_fd = lock_fd
        self._own = _claim_path(folder, epoch)
        self._next = _claim_path(folder, epoch + 1)

    def is_current(self) -> bool:
        """Return whether nobody has claimed a later epoch. Costs two stat calls."""
        # The own claim is looked at because a writer stopped for long may find that its
        # successor's has been pruned; claims go oldest first, so its own went before.
        return not self._next.exists() and self._own.exists()

    def check(self) -> None:
        """Raises: Fatal[journal-fenced] when another writer has taken over."""
        if not self.is_current():
            raise Fatal(
                "journal-fenced",
                f"Another controller has taken over this journal; epoch {self.epoch} has passed.",
                remedy="This controller must end; the run is in the other one's hands.",
            )
        if not self.is_locked:
            self.is_locked = _try_lock(self._lock_fd)

    def release(self) -> None:
        """Let go of the lock; the claim stays, so no epoch is ever used twice."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def acquire_lease(
    directory: Path,
    *,
    above_epoch: int = 0,
    wait_s: float = 10.0,
    takeover: bool = False,
    clock: Callable[[], float] = time.time,
) -> Lease:
    """Return the lease on the journal in directory, under an epoch nobody had before.

    above_epoch: the highest epoch seen in the journal itself; guards against lost claims.
    wait_s:      how long to wait for the holder of the lock to go.
    takeover:    claim even if the lock is still held then. For a caller who knows that the
                 holder has been superseded.
    Raises: Retryable[journal-locked] when the lock is held and takeover is not asked for; OSError.
    """
    folder = directory / "lease"
    folder.mkdir(parents=True, exist_ok=True)
    lock_fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        is_locked = _wait_for_lock(lock_fd, wait_s)
        if not is_locked and not takeover:
            raise _locked(folder, wait_s)
        epoch = _claim(folder, above_epoch, clock())
    except BaseException:
        os.close(lock_fd)
        raise
    _prune(folder, epoch)
    return Lease(folder, lock_fd, epoch, is_locked=is_locked)


def read_claim(directory: Path) -> Claim | None:
    """Return the newest claim on the journal in directory, or None when there is none to read."""
    folder = directory / "lease"
    epochs = _claimed_epochs(folder)
    if not epochs:
        return None
    try:
        return msgspec.json.decode(
            _claim_path(folder, epochs[-1]).read_bytes(), type=prepared(Claim)
        )
    except (OSError, ValueError, msgspec.MsgspecError):
        return None


def _claim_path(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch:08d}.json"


def _claimed_epochs(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    matches = (_CLAIM.fullmatch(name) for name in os.listdir(folder))
    return sorted(int(match[1]) for match in matches if match)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_for_lock(fd: int, wait_s: float) -> bool:
    deadline_s = time.monotonic() + wait_s
    while not _try_lock(fd):
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(_POLL_S)
    return True


def _claim(folder: Path, above_epoch: int, time_s: float) -> int:
    """Create the next claim; exclusive creation means that no two writers share an epoch."""
    epoch = max([above_epoch, *_claimed_epochs(folder)])
    while True:
        epoch += 1
        claim = Claim(epoch, socket.gethostname(), os.getpid(), time_s)
        try:
            os.close(create_file(_claim_path(folder, epoch), msgspec.json.encode(claim)))
        except FileExistsError:
            continue
        return epoch


def _prune(folder: Path, epoch: int) -> None:
    """Remove old claims, oldest first (is_current relies on the order)."""
    for old in _claimed_epochs(folder):
        if old > epoch - KEPT_CLAIMS:
            break
        with contextlib.suppress(FileNotFoundError):
            _claim_path(folder, old).unlink()


def _locked(folder: Path, wait_s: float) -> Retryable:
    claim = read_claim(folder.parent)
    holder = f"process {claim.pid} on {claim.host}" if claim else "another process"
    return Retryable(
        "journal-locked",
        f"The journal {folder.parent} is still being written by {holder} after {wait_s} s.",
        delay_s=max(wait_s, 1.0),
        remedy="Only one controller may run it: use that one, or end it first.",
    )
