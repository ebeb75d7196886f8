"""What lies on the desk of a run and was not taken by a controller yet."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ...logbook.decoding import prepared
from ...logbook.events import InterventionRequested
from ...logbook.state import Intervention
from ..desk import MAX_REQUEST_BYTES, Request

_decode = msgspec.json.Decoder(prepared(Request)).decode


def waiting_requests(run_dir: Path) -> list[Intervention]:
    """Return the changes asked for that lie on the desk, oldest first, as if journaled just now."""
    found = []
    for path in sorted((run_dir / "requests").glob("*.json")):
        try:
            status = path.stat()
            if status.st_size > MAX_REQUEST_BYTES:
                continue
            request = _decode(path.read_bytes())
        except (OSError, ValueError):
            # Taken just now, or nothing that a controller would read either.
            continue
        if isinstance(request, InterventionRequested):
            found.append(Intervention(request=request, requested_s=status.st_mtime))
    return found


def count_waiting(run_dir: Path) -> int:
    """Return how many requests of any kind lie on the desk."""
    return sum(1 for _ in (run_dir / "requests").glob("*.json"))
