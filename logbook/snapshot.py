"""A side-car for fast starts: state folded up to some record, so a reader need not fold it again.

Optional and never trusted: a snapshot without the right checksum, length and version is passed over
for an older one or none, and the journal alone stays the truth. What the payload means is the
caller's business, and so is its version: change it with every change of the fold or its state.

    {"snapshot":1,"seq":500,"version":"fold-3","bytes":81920,"digest":"<SHA-256>"}\\n<payload>

Write one only at a record that a synced append has covered; records that are withdrawn later
(reader.Rewound) would live on in it otherwise.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from pathlib import Path

import msgspec

from .decoding import prepared
from .diskio import disk_error, replace_file

FORMAT = 1
KEPT = 2
_NAME = re.compile(r"snapshot-(\d{12})\.bin")


class _Header(msgspec.Struct, frozen=True):
    snapshot: int
    seq: int
    version: str
    bytes: int
    digest: str


def write_snapshot(directory: Path, seq: int, payload: bytes, *, version: str) -> Path:
    """Store payload as the state after record seq, atomically, and prune to the newest KEPT.

    Raises: Retryable[journal-disk-full], Fatal[journal-write-failed]. Neither harms the journal.
    """
    digest = hashlib.sha256(payload).hexdigest()
    header = msgspec.json.encode(_Header(FORMAT, seq, version, len(payload), digest))
    path = _path(directory, seq)
    try:
        replace_file(path, header + b"\n" + payload)
        for old in _seqs(directory)[:-KEPT]:
            with contextlib.suppress(FileNotFoundError):
                _path(directory, old).unlink()
    except OSError as error:
        raise disk_error(error, f"write the snapshot {path}") from error
    return path


def latest_snapshot(
    directory: Path, *, version: str, up_to_seq: int | None = None
) -> tuple[int, bytes] | None:
    """Return (seq, payload) of the newest sound snapshot of this version, or None.

    up_to_seq: pass the journal's last seq to leave out snapshots of records that it does not hold.
    """
    for seq in reversed(_seqs(directory)):
        if up_to_seq is not None and seq > up_to_seq:
            continue
        payload = _payload(_path(directory, seq), seq, version)
        if payload is not None:
            return seq, payload
    return None


def discard_snapshots(directory: Path) -> None:
    """Remove every snapshot: the records they were folded from have changed."""
    for seq in _seqs(directory):
        _path(directory, seq).unlink()


def _payload(path: Path, seq: int, version: str) -> bytes | None:
    try:
        line, _, payload = path.read_bytes().partition(b"\n")
        header = msgspec.json.decode(line, type=prepared(_Header))
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
    expected = _Header(FORMAT, seq, version, len(payload), hashlib.sha256(payload).hexdigest())
    return payload if header == expected else None


def _path(directory: Path, seq: int) -> Path:
    return directory / f"snapshot-{seq:012d}.bin"


def _seqs(directory: Path) -> list[int]:
    if not directory.is_dir():
        return []
    matches = (_NAME.fullmatch(name) for name in os.listdir(directory))
    return sorted(int(match[1]) for match in matches if match)
