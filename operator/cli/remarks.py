"""What a person adds to the record: through the desk of a living run, or by hand after its end."""

from __future__ import annotations

import getpass
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...logbook import events as ev
from ...logbook.errors import ConfigError, MidwatchError
from ...logbook.state import Remark, RunState
from ..remarks import MAX_CHARS, make_remark, record_remark
from .output import Output, print_json
from .runs import NotFoundError, StateFollower

POLL_S = 0.1

if TYPE_CHECKING:
    from ..api.client import ApiClient

TimeoutOption = Annotated[
    float, typer.Option("--timeout-s", help="How long to wait for the controller; 0: do not.")
]


def add_remark(
    folder: Path, text: str, incident: str | None, timeout_s: float, output: Output
) -> None:
    """Add text to an incident's note, or to the run's record, and say where it stands.

    Raises: ConfigError[usage]; NotFoundError[no-such-incident]; MidwatchError[timed-out].
    """
    text = _checked(text)
    follower = StateFollower(folder)
    follower.poll()
    if incident is not None and incident not in follower.state.incidents:
        known = ", ".join(list(follower.state.incidents)[-8:]) or "none"
        raise NotFoundError(
            "no-such-incident", f"the run has no incident {incident}.", remedy=f"Known: {known}."
        )
    note = make_remark(getpass.getuser(), text, incident)
    is_written = record_remark(folder, follower.state, note)
    if not is_written and timeout_s <= 0:
        _answer({"stage": "requested"}, "asked for; the controller will write it", output)
        return
    remark = _wait(follower, note, timeout_s)
    _answer(remark, f"added to {incident or 'the run'} as event #{remark.seq}", output)


def send_remark(client: ApiClient, text: str, incident: str | None, output: Output) -> None:
    """Add text to the note of an incident of a served run. Raises: ConfigError[usage]."""
    if incident is None:
        raise ConfigError("usage", "over --url only the notes of incidents are added to.")
    client.remark(incident, _checked(text), getpass.getuser())
    _answer({"stage": "requested"}, "asked for; the controller will write it", output)


def _checked(text: str) -> str:
    text = text.strip()
    if not text or len(text) > MAX_CHARS:
        raise ConfigError("usage", f"--add has {len(text)} characters, of 1 to {MAX_CHARS}.")
    return text


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
    return next((r for r in reversed(remarks) if r.id == note.id), None)


def _answer(value: object, text: str, output: Output) -> None:
    if output is Output.JSON:
        print_json(value)
    else:
        print(text)
