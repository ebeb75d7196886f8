"""What a person adds to the record: by way of a living run's desk, or by hand after its end."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from ..logbook import events as ev
from ..logbook.journal import Journal, JournalOptions
from ..logbook.state import RunState
from .cli.runs import load_state
from .desk import FileDesk, post_request

MAX_CHARS = 8000


def make_remark(by: str, text: str, incident: str | None, name: str | None = None) -> ev.NoteAdded:
    """Return a remark to be recorded; name: its id where the author chose one."""
    return ev.NoteAdded(by, text, incident, name or f"remark-{secrets.token_hex(8)}")


def record_remark(run_dir: Path, state: RunState, note: ev.NoteAdded) -> bool:
    """Have a remark written down; return whether it was at once, as nobody else will do it.

    Raises: ConfigError[no-such-run]; as Journal where the run is over.
    """
    if not (state.status.is_terminal and state.is_at_rest):
        post_request(run_dir, note, time_s=time.time())
        return False
    # A run that is over has no controller any more to do it.
    journal: Journal[ev.Event] = Journal(
        run_dir / "journal", ev.Event, JournalOptions(wait_s=30.0, takeover=False)
    )
    try:
        journal.append([(time.time(), state.num_attempts, note)], sync=True)
    finally:
        journal.close()
    if note.incident is not None:
        told = load_state(run_dir)
        FileDesk(run_dir).write_note(told, told.incidents[note.incident])
    return True
