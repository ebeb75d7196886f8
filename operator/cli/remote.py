"""Steering a run that is served somewhere else: ask, follow until it is settled, try out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from ...logbook.decisions import Decision
from ...logbook.errors import MidwatchError, Retryable
from ...logbook.events import InterventionRequested
from ...logbook.state import Intervention, RunState, Touch
from ...logbook.tui.controls import Ask, Places
from ..api.client import ApiClient


class RemoteChannel:
    """A run that is served somewhere: what FolderChannel does in a folder, done over HTTP."""

    poll_s = 0.25

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    def seq(self) -> int:
        return self._client.status().seq

    def plan(self, request: InterventionRequested) -> list[Decision]:
        return self._client.try_out(request)

    def post(self, request: InterventionRequested) -> Mapping[str, Touch]:
        """Lay a request on the desk. Sent again after a failure on the way: its id is its own."""
        try:
            return self._client.post(request).touched
        except Retryable as error:
            time.sleep(error.delay_s)
            return self._client.post(request).touched

    def look(self, name: str) -> Intervention | None:
        return self._client.intervention(name)


class RemoteControls:
    """The terminal logbook's way to the controller of a served run.

    request_of: makes the request of a form that was filled in. all_switches: as switches.
    """

    def __init__(
        self,
        client: ApiClient,
        request_of: Callable[[Ask], InterventionRequested],
        all_switches: Callable[[], tuple[str, ...]],
    ) -> None:
        self._client = client
        self._channel = RemoteChannel(client)
        self._request_of = request_of
        self._all_switches = all_switches

    def preview(self, state: RunState, ask: Ask) -> str:
        """Return what would be decided about a request now."""
        from .steer import plan_text

        request = self._request_of(ask)
        return plan_text(request, self._channel.plan(request))

    def submit(self, ask: Ask) -> str:
        """Lay the request on the run's desk; return its id."""
        request = self._request_of(ask)
        self._channel.post(request)
        return request.id

    def switches(self, state: RunState) -> tuple[str, ...]:
        """Return every NAME=MODE that a detector can be switched to."""
        return self._all_switches()

    def places(self, state: RunState) -> Places:
        """Look where the checkpoints lie, with the eyes of the server."""
        try:
            return self._client.places()
        except MidwatchError as error:
            return Places({}, str(error))
