"""midwatch watch: the terminal logbook, or plain lines where there is no terminal.

What it needs from policy and spec is imported when somebody asks for it: the first screen is not
to wait for that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...logbook.errors import MidwatchError
from ...logbook.events import InterventionRequested
from ...logbook.live_view import render_live
from ...logbook.render_text import line_of
from ...logbook.state import RunState
from ...logbook.tui.controls import Ask, Places
from ...logbook.tui.source import DENSE_KINDS
from .output import RunArgument, console, wide_console
from .places import (
    FolderPlace,
    Patient,
    Place,
    ServedPlace,
    TokenFileOption,
    UrlOption,
    client_of,
)
from .runs import find_run, load_state

if TYPE_CHECKING:
    from ...logbook.tui.app import WatchApp

PLAIN_POLL_S = 0.5


class FolderControls:
    """The way to the controller of a run in a folder: its desk, and a dry run of the policy."""

    def __init__(self, run_dir: Path, clock: Callable[[], float] = time.time) -> None:
        self._run_dir = run_dir
        self._clock = clock

    def preview(self, state: RunState, ask: Ask) -> str:
        """Return what would be decided about a request now."""
        from .steer import plan_request, plan_text

        try:
            request = _request_of(ask)
            return plan_text(request, plan_request(state, request, self._clock()))
        except ValueError as error:
            raise MidwatchError(
                "spec-invalid",
                f"the spec of this run is not understood here: {error}.",
                remedy="Use the version of midwatch that runs it.",
            ) from error

    def submit(self, ask: Ask) -> str:
        """Lay the request on the run's desk, or settle it where the run is over; return its id."""
        from ..aftermath import hand_in

        request = _request_of(ask)
        hand_in(self._run_dir, request, load_state(self._run_dir))
        return request.id

    def switches(self, state: RunState) -> tuple[str, ...]:
        """Return every NAME=MODE that a detector can be switched to."""
        return _all_switches()

    def places(self, state: RunState) -> Places:
        """List every tier of the run that is seen from here."""
        from ..checkpoint_places import look_for_checkpoints

        return look_for_checkpoints(state, self._run_dir)


def _all_switches() -> tuple[str, ...]:
    from ..policy.detectors import MODES, NODE_DETECTORS, NUMERIC_DETECTORS

    names = (*NUMERIC_DETECTORS, *NODE_DETECTORS)
    return tuple(f"{name}={mode}" for name in names for mode in MODES)


def _request_of(ask: Ask) -> InterventionRequested:
    from .steer import make_request

    return make_request(
        ask.form.action,
        ask.reason,
        value=ask.answers.value,
        values=ask.answers.values,
        target=ask.answers.target,
        at_step=ask.answers.at_step,
        for_steps=ask.answers.for_steps,
        expect_attempt=ask.expect_attempt,
        seen_seq=ask.seen_seq,
    )


def watch(
    run: RunArgument = None,
    once: Annotated[
        bool, typer.Option("--once", help="Print the picture of this moment and leave.")
    ] = False,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
) -> None:
    """Watch a run and steer it; without a terminal, print its picture and what happens."""
    client = client_of(run, url, token_file)
    place = ServedPlace(client) if client is not None else FolderPlace(find_run(run))
    if once or not _has_screen():
        _watch_plain(place, once)
        return
    app = _screen(place)
    app.run()
    if app.return_code:
        raise SystemExit(app.return_code)


def _screen(place: FolderPlace | ServedPlace) -> WatchApp:
    """Return the screen on a run."""
    from ...logbook.tui.app import WatchApp
    from ...logbook.tui.source import JournalSource

    if isinstance(place, FolderPlace):
        return WatchApp(JournalSource(place.folder / "journal"), FolderControls(place.folder))
    from ..api.remote_run import RemoteSource
    from .remote import RemoteControls

    controls = RemoteControls(place.client, _request_of, _all_switches)
    return WatchApp(RemoteSource(place.client), controls)


def _has_screen() -> bool:
    return console.is_terminal and not console.is_dumb_terminal and os.isatty(0)


def _watch_plain(place: Place, once: bool) -> None:
    """Print the run as it stands, then a line for each event but the steps, until it rests."""
    follower = place.following()
    follower.poll()
    state = follower.state
    trainer = state.spec.get("trainer", {})
    total = int(trainer.get("steps") or 0)
    wide_console().print(render_live(state, total, time.time(), place.alive_s()))
    patient = Patient(follower)
    while not once and not follower.state.is_at_rest:
        time.sleep(PLAIN_POLL_S)
        for record in patient.poll():
            if record.kind not in DENSE_KINDS:
                print(line_of(record), flush=True)
