"""One run as its folder shows it, for any number of threads that ask at once.

Nothing is kept up to date while nobody asks: each question first takes in what the journal has got
since the last one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from ...logbook import events as ev
from ...logbook.live_status import RunStatus, status_now
from ...logbook.metrics import exposition
from ...logbook.pulse import pulse_s
from ...logbook.reader import Rewound, read
from ...logbook.record import to_json
from ...logbook.state import Incident, Intervention, RunState
from ...logbook.summary import IncidentRow, summarize
from ...logbook.tui.controls import Places
from ..cli.runs import NotFoundError, StateFollower
from ..desk import note_text, plot_text
from .order import Bounds
from .waiting import waiting_requests

PLOT = "/v1/incidents/{name}/plot"


class RunView:
    """Answers about the run in a folder. clock: for ages and for runs that go on."""

    def __init__(
        self, run_dir: Path, bounds: Bounds, clock: Callable[[], float] = time.time
    ) -> None:
        self.run_dir = run_dir
        self._bounds = bounds
        self._clock = clock
        self._lock = threading.Lock()
        self._follower: StateFollower | None = None
        self._encoded: tuple[RunState, bytes] = (RunState(), b"")

    def state(self) -> RunState:
        """Return the state as the journal stands now. Raises: as reader.Follower.poll."""
        with self._lock:
            if self._follower is None:
                self._follower = StateFollower(self.run_dir)
            try:
                self._follower.poll()
            except Exception:
                # Whatever it was, what comes after is to be read anew.
                self._follower.close()
                self._follower = None
                raise
            return self._follower.state

    def state_json(self) -> bytes:
        """Return the state as JSON, made once for all who ask between two events."""
        state = self.state()
        known, blob = self._encoded
        if known is not state:
            blob = to_json(state)
            self._encoded = (state, blob)
        return blob

    def status(self) -> RunStatus:
        return status_now(self.state(), self._clock(), pulse_s(self.run_dir / "journal"))

    def metrics(self) -> str:
        return exposition(self.state(), self._clock())

    def events(self, after: int, limit: int) -> list[bytes]:
        """Return the records behind sequence number after as JSON, as many as an answer may hold.

        What is withdrawn while it is read is left out; whoever asks again sees what came instead.
        """
        found: list[bytes] = []
        size, most = 0, min(limit, self._bounds.page_records)
        with closing(read(self.run_dir / "journal", ev.Event, after + 1)) as records:
            try:
                for record in records:
                    blob = to_json(record)
                    size += len(blob)
                    if found and size > self._bounds.page_bytes:
                        break
                    found.append(blob)
                    if len(found) >= most:
                        break
            except Rewound:
                return []
        return found

    def places(self) -> Places:
        """Return where checkpoints lie now, as far as it is seen from here."""
        from ..checkpoint_places import look_for_checkpoints

        return look_for_checkpoints(self.state(), self.run_dir)

    # --- incidents -------------------------------------------------------------------------------

    def incidents(self) -> tuple[IncidentRow, ...]:
        return summarize(self.state(), self._clock()).incidents

    def incident(self, name: str) -> Incident:
        """Return an incident. Raises: NotFoundError[no-such-incident]."""
        return self._incident(self.state(), name)

    def note(self, name: str) -> str:
        """Return the note of an incident; its plot is shown from where it is served."""
        state = self.state()
        incident = self._incident(state, name)
        return note_text(self.run_dir, state, incident, PLOT.format(name=incident.draft.id))

    def plot(self, name: str) -> str:
        """Return the plot of an incident as SVG.

        Raises: NotFoundError[no-such-incident, no-plot].
        """
        found = plot_text(self.run_dir, self._incident(self.state(), name))
        if not found:
            raise NotFoundError("no-plot", f"no step was told of around {name}: nothing to draw.")
        return found

    def _incident(self, state: RunState, name: str) -> Incident:
        found = state.incidents.get(name)
        if found is None:
            known = ", ".join(list(state.incidents)[-8:]) or "none"
            raise NotFoundError(
                "no-such-incident",
                f"the run has no incident {name!r:.80}.",
                remedy=f"Known: {known}.",
            )
        return found

    # --- interventions ---------------------------------------------------------------------------

    def interventions(self) -> list[Intervention]:
        """Return what was asked for, oldest first; what no controller has taken yet comes last."""
        # The desk first: what is taken from it meanwhile is found in the journal then.
        waiting = waiting_requests(self.run_dir)
        known = self.state().interventions
        return [*known.values(), *(w for w in waiting if w.request.id not in known)]

    def intervention(self, name: str) -> Intervention:
        """Return a request and how far it got. Raises: NotFoundError[no-such-intervention]."""
        for known in self.interventions():
            if known.request.id == name:
                return known
        raise NotFoundError(
            "no-such-intervention", f"nobody has asked for anything under the id {name!r:.80}."
        )
