"""The folded state beside the journal it was folded from, so that a long history starts fast.

A snapshot (snapshot.py) whose payload is a RunState. Its version is a digest of this room's own
source: a fold that was changed never meets a state that it would not have made, and nobody has to
remember to raise a number.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import msgspec

from .decoding import prepared
from .snapshot import latest_snapshot, write_snapshot
from .state import RunState

EVERY_EVENTS = 5_000
"""Reading and folding so many takes a few hundredths of a second."""

_decode = msgspec.msgpack.Decoder(prepared(RunState)).decode


@functools.cache
def fold_version() -> str:
    """Return what names this fold and its state: a digest of every module in this room."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return f"fold-{digest.hexdigest()[:16]}"


def save_state(directory: Path, state: RunState) -> Path:
    """Store state beside the journal in directory; state.seq must be covered by a synced append.

    Raises: as snapshot.write_snapshot.
    """
    payload = msgspec.msgpack.encode(state)
    return write_snapshot(directory, state.seq, payload, version=fold_version())


def load_saved_state(directory: Path, *, up_to_seq: int) -> RunState:
    """Return the newest saved state of this fold, an empty one where there is none."""
    found = latest_snapshot(directory, version=fold_version(), up_to_seq=up_to_seq)
    if found is None:
        return RunState()
    seq, payload = found
    try:
        state = _decode(payload)
    except msgspec.MsgspecError:
        return RunState()
    return state if state.seq == seq else RunState()
