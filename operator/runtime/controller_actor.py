"""The controller as a Ray actor: detached, named, restarted by Ray for ever."""

from __future__ import annotations

import getpass
import logging
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import ray

from ... import __version__
from ...logbook import events as ev
from ...logbook.errors import Fatal, MidwatchError, Retryable
from ...logbook.journal import Journal, JournalOptions
from ...logbook.pulse import Pulse
from ...logbook.state import RunState, Status
from ...logbook.state_file import EVERY_EVENTS, save_state
from ..controller import Controller
from ..lemon_file import NAME, LemonFile
from ..lookouts import Lookouts
from ..ports import Ports
from ..scribe import ScribedDesk
from ..spec import RunSpec
from ..spec_file import spec_data
from ..spec_told import submission
from .node_agent import log_to_file
from .ray_cluster import ClusterSettings, RayCluster

TICK_S = 0.1
LINGER_S = 2.0
NOTES_WAIT_S = 10.0
MESSAGES_WAIT_S = 10.0
STUCK_S = 60.0
"""A controller whose tick takes longer gives no sign of life any more."""
_log = logging.getLogger(__name__)


class _WallClock:
    def now_s(self) -> float:
        return time.time()


class ControllerActor:
    """One per run. Its thread turns the wheel; Ray's threads only bring signals in."""

    def __init__(self, spec: dict[str, Any], settings: ClusterSettings) -> None:
        run_dir = Path(settings.run_dir)
        log_to_file(run_dir, "controller")
        self._spec = RunSpec.model_validate(spec)
        self._woken = threading.Event()
        self._leaving, self._left = threading.Event(), threading.Event()
        self._turn_over = threading.Event()
        self._cluster = RayCluster(self._spec, settings, self._woken.set)
        # Only a life that Ray started after the last one ended may take the journal from it: two
        # controllers of one run on two clusters must not fence each other in turn.
        is_restart = ray.get_runtime_context().was_current_actor_reconstructed
        options = JournalOptions(wait_s=10.0, takeover=is_restart)
        self._journal = _open_journal(run_dir / "journal", options)
        self._desk = ScribedDesk(run_dir)
        ports = Ports(
            clock=_WallClock(),
            journal=self._journal,
            cluster=self._cluster,
            checkpoints=self._cluster,
            desk=self._desk,
            lemons=LemonFile(run_dir.parent / NAME),
        )
        self._controller = Controller(self._spec, ports)
        self._saved_seq = 0
        self._pulse = Pulse(self._journal.directory)
        self._thread = threading.Thread(target=self._turn, name="controller", daemon=True)
        self._open(is_restart)
        self._turned_s = time.monotonic()
        self._lookouts = Lookouts(
            self._spec, run_dir, lambda: self._controller.state, self._is_turning
        )
        self._thread.start()

    def ingest(self, agent: str, payload: bytes, heard_epoch: int = 0) -> tuple[int, int]:
        """Take an agent's reports; return (this controller's epoch, highest journaled seq).

        heard_epoch: of the controller that answered the agent last, 0 for none. Where that was
        another one nothing is taken: what the agent kept for it comes first, or steps would be
        heard of out of their order.
        """
        if heard_epoch not in (0, self._journal.epoch):
            return self._journal.epoch, 0
        return self._journal.epoch, self._cluster.ingest(agent, payload)

    def ping(self) -> tuple[int, str]:
        """Return (pid, status of the run)."""
        return os.getpid(), self._controller.state.status

    def farewell(self) -> bool:
        """Return once all is written and told of a run at rest, whose actors may then be ended.

        Returns: False, with the next turn, for a run that is not at rest.
        """
        if not self._controller.state.is_at_rest:
            # Who read of its rest in the journal may know before the turn that wrote it is over.
            self._turn_over.clear()
            self._woken.set()
            self._turn_over.wait(NOTES_WAIT_S)
        if not self._controller.state.is_at_rest:
            return False
        self._leaving.set()
        self._woken.set()
        return self._left.wait(NOTES_WAIT_S + MESSAGES_WAIT_S)

    def snapshot(self) -> bytes:
        """Return the live RunState, encoded: one immutable value, whole whenever it is taken."""
        return msgspec.msgpack.encode(self._controller.state)

    def _open(self, is_restart: bool) -> None:
        self._controller.recover(self._journal.records())
        state = self._controller.state
        told = submission(self._spec, midwatch_version=__version__, by=getpass.getuser())
        if state.spec != told.spec:
            self._controller.record(told, sync=True)
        self._controller.take_over()
        if not is_restart and (state.paused or state.status is Status.STOPPED):
            # Submitting a run that rests is asking for it to go on.
            resume = ev.InterventionRequested(
                id=f"resume-{self._journal.epoch}",
                action="resume",
                by=getpass.getuser(),
                reason="submitted again",
            )
            self._controller.record(resume)
        self._controller.record(
            ev.ControllerStarted(
                epoch=self._journal.epoch,
                host=socket.gethostname(),
                pid=os.getpid(),
                folded_events=state.seq,
            ),
            sync=True,
        )

    def _turn(self) -> None:
        try:
            while True:
                self._controller.tick()
                self._controller.record(*self._lookouts.news())
                self._turned_s = time.monotonic()
                self._pulse.beat()
                state = self._controller.state
                self._save_state(state)
                self._turn_over.set()
                may_leave = state.status.is_terminal or self._leaving.is_set()
                if may_leave and state.is_at_rest:
                    break
                self._woken.wait(TICK_S)
                self._woken.clear()
            self._wind_up()
        except Fatal as error:
            # Another controller has the run: this one must not act, and must not come back.
            _log.error("standing down: %s", error)
            self._lookouts.close(0.0)
            self._left.set()
            self._journal.close()
        except BaseException:
            # State is in the journal: a fresh process is the best answer to a bug of ours, too.
            _log.exception("the controller failed; it starts again from its journal")
            os._exit(1)

    def _is_turning(self) -> bool:
        return time.monotonic() - self._turned_s < STUCK_S

    def _save_state(self, state: RunState) -> None:
        """Lay the folded state beside the journal now and again, for readers of a long one."""
        if state.seq - self._saved_seq < EVERY_EVENTS:
            return
        self._saved_seq = state.seq
        self._journal.sync()
        try:
            save_state(self._journal.directory, state)
        except MidwatchError as error:
            # A shortcut for readers: the journal has everything.
            _log.warning("the state was not saved: %s", error)

    def _wind_up(self) -> None:
        self._cluster.close()
        self._desk.finish(NOTES_WAIT_S)
        self._lookouts.close(MESSAGES_WAIT_S)
        # Whoever submitted the run may be long gone. Before the farewell: who takes the run up
        # after it makes agents of the same names.
        self._cluster.give_back()
        self._left.set()
        time.sleep(LINGER_S)
        self._journal.close()


def _open_journal(directory: Path, options: JournalOptions) -> Journal[ev.Event]:
    """Open the journal, waiting as long as it takes for room on its disk.

    A controller that failed here would not be restarted by Ray; the workers train on meanwhile.
    """
    while True:
        try:
            return Journal(directory, ev.Event, options)
        except Retryable as error:
            if error.code != "journal-disk-full":
                raise
            _log.warning("waiting: %s", error)
            time.sleep(error.delay_s)


def launch_controller(spec: RunSpec, settings: ClusterSettings, name: str, namespace: str) -> Any:
    """Create the controller actor of a run, or return the one that is there."""
    return (
        ray.remote(ControllerActor)
        .options(
            name=name,
            namespace=namespace,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=16,
            num_cpus=0,
        )
        .remote(spec_data(spec), settings)
    )
