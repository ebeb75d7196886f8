"""What a person adds to the record: through the desk of a living run, or by hand after its end."""

from __future__ import annotations

import getpass
import time
from pathlib import Path
from typing import Annotated

import typer

from ...logbook import events as ev
from ...logbook.errors import ConfigError, MidwatchError
from ...logbook.journal import Journal, JournalOptions
from ...logbook.state import Remark, RunState
from ..desk import FileDesk, post_request
from .output import Output, print_json
from .runs import NotFoundError, StateFollower

POLL_S = 0.1
MAX_CHARS = 8000

TimeoutOption = Annotated[
    float, typer.Option("--timeout-s", help="How long to wait for the controller; 0: do not.")
]


def add_remark(
    folder: Path, text: str, incident: str | None, timeout_s: float, output: Output
) -> None:
    """Add text to an incident's note, or to the run's record, and say where it stands.

    Raises: ConfigError[usage]; NotFoundError[no-such-incident]; MidwatchError[timed-out].
    """
    text = text.strip()
    if not text or len(text) > MAX_CHARS:
        raise ConfigError("usage", f"--add has {len(text)} characters, of 1 to {MAX_CHARS}.")
    follower = StateFollower(folder)
    follower.poll()
    if incident is not None and incident not in follower.state.incidents:
        known = ", ".join(list(follower.state.incidents)[-8:]) or "none"
        raise NotFoundError(
            "no-such-incident", f"the run has no incident {incident}.", remedy=f"Known: {known}."
        )
    note = ev.NoteAdded(by=getpass.getuser(), text=text, incident=incident)
    if follower.state.status.is_terminal and follower.state.is_at_rest:
        _append(folder, follower.state, note)
    else:
        post_request(folder, note, time_s=time.time())
        if timeout_s <= 0:
            _answer({"stage": "requested"}, "asked for; the controller will write it", output)
            return
    remark = _wait(follower, note, timeout_s)
    _answer(remark, f"added to {incident or 'the run'} as event #{remark.seq}", output)


def _append(folder: Path, state: RunState, note: ev.NoteAdded) -> None:
    """Write to the journal of a run that is over: it has no controller any more to do it."""
    journal: Journal[ev.Event] = Journal(
        folder / "journal", ev.Event, JournalOptions(wait_s=30.0, takeover=False)
    )
    try:
        journal.append([(time.time(), state.num_attempts, note)], sync=True)
    finally:
        journal.close()
    if note.incident is not None:
        follower = StateFollower(folder)
        follower.poll()
        FileDesk(folder).write_note(follower.state, follower.state.incidents[note.incident])


def _wait(follower: StateFollower, note: ev.NoteAdded, timeout_s: float) -> Remark:
    deadline_s = time.monotonic() + timeout_s
    while True:
        follower.poll()
        found = _find(follower.state, note)
        if found is not None:
            return found
        if time.monotonic() >= deadline_s:
            raise MidwatchError(
                "timed-out",
                f"no controller has taken the note within {timeout_s:g} s; it lies on the desk.",
                remedy="It is written down as soon as one looks there.",
            )
        time.sleep(POLL_S)


def _find(state: RunState, note: ev.NoteAdded) -> Remark | None:
    known = state.incidents.get(note.incident or "")
    remarks = known.remarks if known is not None else state.remarks
    return next((r for r in reversed(remarks) if (r.by, r.text) == (note.by, note.text)), None)


def _answer(value: object, text: str, output: Output) -> None:
    if output is Output.JSON:
        print_json(value)
    else:
        print(text)
