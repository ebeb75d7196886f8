"""The agent of one node: a Ray actor around a Supervisor that owns the node's processes.

Its methods only hand things over. Reports go to the controller from a thread of the supervisor's;
while the controller is away they wait in the supervisor's outbox and are sent again.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import ray
from ray.exceptions import GetTimeoutError, RayError

from ...checkpoints.store import LocalStore
from ...logbook.decoding import prepared
from ...logbook.errors import MidwatchError
from ...logbook.wire import Command
from ..agent.plan import AgentConfig, LocalPlan
from ..agent.reports import AgentReport
from ..agent.supervisor import Supervisor
from ..agent.upload_wire import Answer, Errand
from ..fleet import Identity
from .names import NAMESPACE, controller_name

RETRY_S = 0.2
DELIVER_TIMEOUT_S = 10.0
# For the first look at the GPUs, which opens the driver; the preload takes longer anyway.
MACHINE_WAIT_S = 5.0

# A node may have to read back what it holds of a large checkpoint.
ERRAND_TIMEOUT_S = 900.0

_decode_errand = msgspec.msgpack.Decoder(prepared(Errand)).decode
_encode = msgspec.msgpack.Encoder().encode
_log = logging.getLogger(__name__)


class AgentSettings(msgspec.Struct, frozen=True):
    """What an agent actor is created with. slots: ranks the node can carry."""

    run: str
    run_dir: str
    config: AgentConfig
    slots: int


class NodeAgent:
    """Created as a detached actor with several threads; never restarted by Ray."""

    def __init__(self, settings: bytes) -> None:
        self._settings = msgspec.msgpack.decode(settings, type=prepared(AgentSettings))
        log_to_file(Path(self._settings.run_dir), f"agent-{self._settings.config.node}")
        self._gone = threading.Event()
        self._epoch = 0
        self._controller: Any = None
        self._supervisor = Supervisor(self._settings.config, self._deliver)
        self._store = LocalStore(self._settings.run_dir)

    def identity(self) -> bytes:
        """Return who this is, encoded."""
        config = self._settings.config
        machine = self._supervisor.machine(MACHINE_WAIT_S)
        who = Identity(
            node=config.node,
            agent=self._supervisor.agent,
            host=config.host,
            slots=self._settings.slots,
            pid=os.getpid(),
            machine=machine,
        )
        return _encode(who)

    def lifeline(self) -> None:
        """Return only when the agent closes: whoever waits for it learns of the agent's death."""
        self._gone.wait()

    def start(self, plan: bytes) -> None:
        """Start this node's part of an attempt (older workers die first)."""
        self._supervisor.start(msgspec.msgpack.decode(plan, type=prepared(LocalPlan)))

    def stop(self, attempt: int) -> None:
        """Kill the workers of this attempt and of every older one."""
        self._supervisor.stop(attempt)

    def send(self, attempt: int, command: bytes) -> None:
        """Hand a command to every local worker of the attempt."""
        self._supervisor.send(attempt, msgspec.msgpack.decode(command, type=prepared(Command)))

    def verify(self, checkpoint: str) -> str:
        """Read a checkpoint back; return "" or what is wrong with it."""
        try:
            self._store.verify(checkpoint)
        except (MidwatchError, OSError) as error:
            return str(error)
        return ""

    def run_errand(self, errand: bytes) -> bytes:
        """Run an errand about this node's checkpoints or the store; return its answer."""
        uploads = self._supervisor.uploads
        if uploads is None:
            return _encode(Answer(error="[uploader-absent] this run has no durable store"))
        try:
            return _encode(uploads.ask(_decode_errand(errand), ERRAND_TIMEOUT_S))
        except MidwatchError as error:
            return _encode(Answer(error=str(error)))

    def parts(self) -> bytes:
        """Return the parts of checkpoints that are known to lie on this node's disk."""
        uploads = self._supervisor.uploads
        return _encode(() if uploads is None else uploads.parts())

    def close(self) -> None:
        """End every worker and the forkserver."""
        self._supervisor.close()
        self._gone.set()

    def _deliver(self, reports: Sequence[AgentReport]) -> None:
        """Hand reports to the controller, however long it is away."""
        pending = list(reports)
        while pending and not self._gone.is_set():
            answer = self._ingest(pending)
            if answer is None:
                time.sleep(RETRY_S)
                continue
            epoch, acknowledged = answer
            if self._epoch in (0, epoch):
                self._supervisor.acknowledge(acknowledged)
                pending = []
            else:
                # A new controller took over and has taken nothing yet: what the old one had not
                # written down is unsaid, and comes before what is new.
                pending = list(self._supervisor.unacknowledged())
            self._epoch = epoch

    def _ingest(self, reports: list[AgentReport]) -> tuple[int, int] | None:
        try:
            if self._controller is None:
                name = controller_name(self._settings.run)
                self._controller = ray.get_actor(name, namespace=NAMESPACE)
            ref = self._controller.ingest.remote(
                self._supervisor.agent, _encode(reports), self._epoch
            )
            epoch, acknowledged = ray.get(ref, timeout=DELIVER_TIMEOUT_S)
            return int(epoch), int(acknowledged)
        except (RayError, GetTimeoutError, ValueError) as error:
            _log.info("controller unreachable: %s", type(error).__name__)
            self._controller = None
            return None


def log_to_file(run_dir: Path, name: str) -> None:
    """Send this process's log to <run_dir>/logs/NAME.log."""
    folder = run_dir / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / f"{name}.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("midwatch")
    root.addHandler(handler)
    root.setLevel(logging.INFO)
