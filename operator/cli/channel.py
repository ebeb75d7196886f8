"""The way from a command to the controller of a run, wherever that is.

A command asks for a change, tries one out, and follows what comes of it through this and nothing
else, so a run on another machine can be steered by the very same commands.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ...logbook.decisions import Decision
from ...logbook.events import InterventionRequested
from ...logbook.fold_interventions import recent_touches
from ...logbook.state import Intervention, RunState, Touch
from ..aftermath import hand_in
from ..policy.requests import plan_answer
from ..spec import RunSpec
from .places import client_of
from .runs import StateFollower, find_run


class Channel(Protocol):
    """What a command needs of a run. poll_s: how often to look for what came of a request."""

    poll_s: float

    def seq(self) -> int:
        """Return the newest event of the run as it stands now."""
        ...

    def plan(self, request: InterventionRequested) -> list[Decision]:
        """Return what would be decided about a request now; nothing is changed."""
        ...

    def post(self, request: InterventionRequested) -> Mapping[str, Touch]:
        """Lay a request where the controller finds it.

        Returns: what changed the same things a short while ago, by topic.
        """
        ...

    def look(self, name: str) -> Intervention | None:
        """Return how far a request has got; None while no controller has seen it.

        Raises: Retryable while nobody can tell.
        """
        ...


class FolderChannel:
    """A run whose folder lies here: its desk and its journal."""

    poll_s = 0.1

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._follower = StateFollower(folder)

    def seq(self) -> int:
        return self._state().seq

    def plan(self, request: InterventionRequested) -> list[Decision]:
        return plan_request(self._state(), request, time.time())

    def post(self, request: InterventionRequested) -> Mapping[str, Touch]:
        state = self._state()
        hand_in(self._folder, request, state)
        return recent_touches(state, request, time.time())

    def look(self, name: str) -> Intervention | None:
        return self._state().interventions.get(name)

    def _state(self) -> RunState:
        self._follower.poll()
        return self._follower.state


def open_channel(run: str | None) -> Channel:
    """Return the way to a run, in its folder or where it is served. Raises: as client_of."""
    client = client_of(run)
    if client is None:
        return FolderChannel(find_run(run))
    # Here alone: the HTTP client takes its time to load, and folders need none.
    from .remote import RemoteChannel

    return RemoteChannel(client)


def plan_request(state: RunState, request: InterventionRequested, now_s: float) -> list[Decision]:
    """Return what would be decided about a request at now_s, [] when it would have to wait."""
    decision = plan_answer(state, RunSpec.model_validate(state.spec), request, now_s)
    return [decision] if decision is not None else []
