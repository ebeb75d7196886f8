"""What people still ask of a run that is over: answered here and now, as its controller would.

A run that has ended has no controller any more, and a request on its desk would lie there for ever.
So whoever asks takes the journal and turns the controller's own wheel, with nobody to supervise,
until the request is settled. What would set the run going again is refused: that takes a cluster.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from ..checkpoints.part_check import check_parts
from ..checkpoints.remote_store import RemoteStore
from ..checkpoints.store import CheckpointStore, LocalStore
from ..logbook import events as ev
from ..logbook.errors import IntegrityError, MidwatchError, Retryable
from ..logbook.journal import Journal, JournalOptions
from ..logbook.plan import AttemptPlan, PreflightPlan
from ..logbook.state import Incident, RunState
from ..logbook.wire import Command
from .controller import Controller
from .desk import FileDesk, post_request
from .lemon_file import NAME, LemonFile
from .ports import Ports, PruneResult, Signal, VerifyResult
from .spec import RunSpec
from .storage import node_folders
from .store import open_durable

LOCK_WAIT_S = 1.0
_NOT_STORED = frozenset({"manifest-missing", "other-run"})
TURNS_MAX = 16
"""Asked, decided, done, closed: no request takes more turns than a few."""


def hand_in(run_dir: Path, request: ev.InterventionRequested, state: RunState) -> None:
    """Lay a request on the desk of a run; where the run is over, settle it before returning.

    state: the run as its journal stands. A run whose controller still holds the journal is left
    to it.
    Raises: MidwatchError[run-is-over] for what needs a run that goes on; MidwatchError when it
            cannot be carried out from here.
    """
    if state.status.is_terminal and state.is_at_rest:
        if request.action == "resume":
            raise _over(state, "resume")
        try:
            _settle(run_dir, request)
            return
        except Retryable as error:
            if error.code != "journal-locked":
                raise
    post_request(run_dir, request, time_s=time.time())


def _settle(run_dir: Path, request: ev.InterventionRequested) -> None:
    options = JournalOptions(wait_s=LOCK_WAIT_S, takeover=False)
    with Journal[ev.Event](run_dir / "journal", ev.Event, options) as journal:
        desk, nobody = _LastDesk(run_dir, request), _Nobody(run_dir, request)
        controller = Controller(
            _spec_of(journal),
            Ports(_Clock(), journal, nobody, nobody, desk, LemonFile(run_dir.parent / NAME)),
        )
        controller.recover(journal.records())
        if not controller.state.status.is_terminal:
            raise Retryable("journal-locked", "the run has been taken up again.", delay_s=1.0)
        nobody.open(controller.spec)
        for _ in range(TURNS_MAX):
            if (not controller.tick() and not nobody.has_news) or nobody.failure is not None:
                break
        if controller.state.interventions[request.id].stage == "requested":
            raise nobody.failure or _over(controller.state, request.action)


def _spec_of(journal: Journal[ev.Event]) -> RunSpec:
    spec = {}
    for record in journal.records():
        if isinstance(record.event, ev.RunSubmitted):
            spec = record.event.spec
    return RunSpec.model_validate(spec)


def _over(state: RunState, action: str) -> MidwatchError:
    return MidwatchError(
        "run-is-over",
        f"{action} needs a controller, and the run is {state.status} at step {state.step}.",
        remedy="`midwatch run SPEC` takes a stopped run up again, or one given more steps.",
    )


def _out_of_sight(checkpoint: str, num_disks: int) -> MidwatchError:
    return MidwatchError(
        "parts-out-of-sight",
        f"{checkpoint} is not in the store, and the disks that are seen from here ({num_disks}) do "
        "not have all of its files; what other machines have is not known.",
        remedy="Ask on a machine that sees the nodes' disks, or once the run is taken up again.",
    )


class _Clock:
    def now_s(self) -> float:
        return time.time()


class _LastDesk:
    """Where the one request lies. Others stay on the run's desk, for a controller to come."""

    def __init__(self, run_dir: Path, request: ev.InterventionRequested) -> None:
        self._desk = FileDesk(run_dir)
        self._requests: list[ev.Event] = [request]

    def requests(self) -> Sequence[ev.Event]:
        return self._requests

    def settled(self) -> None:
        self._requests = []

    def write_note(self, state: RunState, incident: Incident) -> None:
        self._desk.write_note(state, incident)

    def attach(self, name: str, text: str) -> str:
        return self._desk.attach(name, text)


class _Nobody:
    """The cluster of a run that is over, and its checkpoints as far as they are seen from here.

    What the run's controller left to be read or deleted is for the next one, unless it is what is
    asked for: who acknowledges an incident does not wait for terabytes, nor for a store.

    failure: why something could not be done; it is then not decided again in this turn of events.
    """

    def __init__(self, run_dir: Path, request: ev.InterventionRequested) -> None:
        self._run_dir = run_dir
        self._request = request
        self._store: RemoteStore | None = None
        self._disks: list[LocalStore] = []
        self._news: list[Signal] = []
        self.failure: MidwatchError | None = None

    def open(self, spec: RunSpec) -> None:
        """Find the durable store or the run folder, and the disks of nodes that are seen here."""
        self._store = open_durable(spec, self._run_dir)
        folders = [] if self._store is not None else [self._run_dir]
        self._disks = [LocalStore(root) for root in (*folders, *node_folders(spec, self._run_dir))]

    @property
    def has_news(self) -> bool:
        return bool(self._news)

    def poll(self) -> Sequence[Signal]:
        news, self._news = self._news, []
        return news

    def verify(self, checkpoint: str) -> None:
        is_asked = (self._request.action, self._request.target) == ("verify", checkpoint)
        if not is_asked or self._news:
            # Its reading was decided twice, by the last controller and now: once is enough.
            return
        try:
            found = self._read_back(checkpoint)
        except MidwatchError as error:
            # A store that does not answer says nothing of the bytes, nor does what is out of sight.
            self.failure = error
        else:
            self._news.append(VerifyResult(checkpoint, found))

    def _read_back(self, checkpoint: str) -> str:
        """Return what is not sound on any disk nor in the store, "" when each file is somewhere.

        Raises: MidwatchError[parts-out-of-sight]; errors of the store.
        """
        found = check_parts([disk.path(checkpoint) for disk in self._disks])
        if found.is_whole:
            return ""
        if self._store is None:
            return found.why
        try:
            bad = self._store.check(checkpoint, found.rest)
        except IntegrityError as error:
            if error.code not in _NOT_STORED:
                return str(error)
            if found.bad:
                return found.why
            raise _out_of_sight(checkpoint, len(self._disks)) from error
        return "; ".join(why for _, why in bad)

    def prune(self, checkpoints: tuple[str, ...]) -> None:
        if self._request.action != "prune":
            return
        durable = () if self._store is None else (self._store,)
        stores: tuple[CheckpointStore, ...] = (*durable, *self._disks)
        try:
            for checkpoint in checkpoints:
                for store in stores:
                    store.delete(checkpoint)
        # Not raised: what was not done would be decided again at once.
        except OSError as error:
            self.failure = MidwatchError(
                "not-deleted",
                f"{checkpoint} could not be deleted: {error}.",
                remedy="See to the folder's permissions, then ask again.",
            )
        except MidwatchError as error:
            self.failure = error
        else:
            self._news.append(PruneResult(checkpoints))

    def unknown(self, known: Sequence[str]) -> list[ev.CheckpointCommitted]:
        return []

    def maintain(self, state: RunState) -> None: ...

    def start(self, plan: AttemptPlan) -> None: ...

    def stop(self, attempt: int) -> None: ...

    def examine(self, plan: PreflightPlan) -> None: ...

    def end_examination(self, number: int) -> None: ...

    def send(self, attempt: int, command: Command) -> None: ...

    def acknowledge(self) -> None: ...
