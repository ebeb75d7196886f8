"""Where this rank stands in its collectives, from torch's flight recorder.

A hung run has most ranks waiting in a collective for the one that never called it. The recorder of
NCCL and gloo counts, group by group, what was called and what came to its end; a thread can read it
while the rank itself is blocked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from torch._C import _distributed_c10d as c10d

from ..logbook.wire import CollectiveMark, CollectiveTrace

MARKS_MAX = 64
_ENVIRONMENT = {
    "TORCH_FR_BUFFER_SIZE": "512",
    # The watchdog's own dump, should it ever come before the agent's question.
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
}
# By backend: what returns the recorder's content as JSON; a build without NCCL lacks the first.
_DUMPS: dict[str, tuple[str, dict[str, bool]]] = {
    "nccl": ("_dump_nccl_trace_json", {"includeCollectives": True, "onlyActive": False}),
    "gloo": ("_dump_fr_trace_json", {"includeCollectives": True, "onlyActive": False}),
}


def enable_recorder(dump_prefix: str) -> None:
    """Have torch record collectives; to be called before the first process group is made.

    dump_prefix: where NCCL's watchdog writes its own dump, the rank's number appended. What the
        environment says already is left as it is.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", dump_prefix)


def take_trace(rank: int, backend: str) -> CollectiveTrace:
    """Return where the rank stands now; callable from any thread, never raises."""
    name, options = _DUMPS[backend]
    dump: Callable[..., str | bytes] | None = getattr(c10d, name, None)
    if dump is None:
        return CollectiveTrace(rank, error=f"this torch has no {name}")
    try:
        return CollectiveTrace(rank, read_dump(dump(**options)))
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        return CollectiveTrace(rank, error=f"{type(error).__name__}: {error}"[:500])


def read_dump(text: str | bytes) -> tuple[CollectiveMark, ...]:
    """Return a mark for each process group in a dump of the flight recorder (format 2.x, JSON).

    Raises: ValueError, KeyError or TypeError where it is no such dump.
    """
    dump: dict[str, Any] = json.loads(text)
    if not isinstance(dump, dict) or not isinstance(dump.get("pg_status"), dict):
        raise ValueError("no dump of the flight recorder")
    names: dict[str, str] = {}
    ops: dict[tuple[str, int], str] = {}
    for entry in dump.get("entries", ()):
        group = str(entry["pg_id"])
        name, description = entry["process_group"]
        names[group] = f"{name} ({description})" if description else str(name)
        if not entry.get("is_p2p"):
            ops[group, int(entry["collective_seq_id"])] = str(entry["profiling_name"])
    marks = [
        CollectiveMark(
            group=names.get(group, group),
            enqueued=int(status["last_enqueued_collective"]),
            completed=int(status["last_completed_collective"]),
            op=ops.get((group, int(status["last_enqueued_collective"])), ""),
        )
        for group, status in sorted(dump["pg_status"].items(), key=lambda pair: int(pair[0]))
    ]
    return tuple(marks[:MARKS_MAX])
