"""Supervises the workers of one node: starts, watches, ends them, and reports.

One thread with an event loop owns every worker; the methods of Supervisor may be called from any
thread and return at once, and their results arrive as reports. Attempts fence everything: the
newest attempt seen is the only one whose workers may live here.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from functools import partial
from logging import getLogger
from pathlib import Path

from ...health.nodes.energy import EnergyUse
from ...health.nodes.lemons import MachineIdentity
from ...logbook.findings import Finding
from ...logbook.wire import Command
from .keeper import Keeper
from .loop import EventLoop
from .outbox import Deliverer, Outbox
from .plan import AgentConfig, LocalPlan
from .probing import NodeProber
from .rendezvous import Rendezvous
from .reports import AgentNote, AgentReport, EnergyUsed, NodeFindings
from .uploads import Uploads

# Beyond the deadlines of the steps that closing takes.
_CLOSE_S = 20.0
_log = getLogger(__name__)


class Supervisor:
    """The process-supervision core of a node agent.

    on_reports: called with new reports, in order, from a thread of its own; it may block, which
        delays nothing but further reports. What it has not acknowledged can be fetched again.
    Raises: OSError when no rendezvous socket can be bound on config.host.
    """

    def __init__(
        self, config: AgentConfig, on_reports: Callable[[Sequence[AgentReport]], None]
    ) -> None:
        name = f"midwatch-{config.node}"
        self._config = config
        self._outbox = Outbox(config.node, config.retain_bytes_max)
        self._deliverer = Deliverer(self._outbox, on_reports, f"{name}-reports")
        self._loop = EventLoop(name, self._on_error)
        self._rendezvous = Rendezvous(config.host)
        self._keeper = Keeper(
            config, self._loop, self._outbox, self._rendezvous, lambda: self._prober.machine()
        )
        self._prober = NodeProber(config.probe, config.node, self)
        self._uploads = self._open_uploads()
        self._is_closed = False
        self._deliverer.begin()
        self._loop.post(self._keeper.begin)
        self._loop.begin()
        self._prober.begin()
        if self._uploads is not None:
            self._uploads.begin()

    @property
    def agent(self) -> str:
        """Unique id of this life of the agent, as in every report."""
        return self._outbox.agent

    @property
    def rendezvous(self) -> tuple[str, int]:
        """Address of the socket in reserve for a rank 0 of the next attempt."""
        return self._rendezvous.host, self._rendezvous.port

    def machine(self, wait_s: float) -> MachineIdentity:
        """Return what this node is, by its hardware; GPUs only once they were looked at."""
        return self._prober.machine(wait_s)

    def start(self, plan: LocalPlan) -> None:
        """Run an attempt's local workers, once every worker of an older one is dead and reaped.

        The same attempt again changes nothing; an older one is refused with StartFailed
        [stale-attempt]. The outcome is WorkersStarted or StartFailed.
        """
        self._loop.post(partial(self._keeper.start, plan))

    def stop(self, attempt: int, grace_s: float = 0.0) -> None:
        """End every worker of this attempt or an older one; AttemptStopped tells when it is done.

        The attempt cannot be started afterwards. With a grace, SIGTERM comes that long before
        SIGKILL. Workers of a newer attempt are left alone.
        """
        self._loop.post(partial(self._keeper.stop, attempt, grace_s))

    def send(self, attempt: int, command: Command) -> None:
        """Pass a command to every local worker of this attempt and no other."""
        self._loop.post(partial(self._keeper.send, attempt, command))

    def dump_stacks(self, attempt: int) -> None:
        """Have the attempt's local workers dump their stacks; answered by StacksDumped."""
        self._loop.post(partial(self._keeper.dump_stacks, attempt))

    def acknowledge(self, seq: int) -> None:
        """Everything up to seq is safely recorded; forget it."""
        self._outbox.acknowledge(seq)

    def unacknowledged(self) -> list[AgentReport]:
        """Return what was reported and not acknowledged, oldest first."""
        return self._outbox.unacknowledged()

    def close(self) -> None:
        """End all workers and the forkserver, deliver the last reports, and wait for it."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.post(self._keeper.close)
        self._prober.close()
        if self._uploads is not None:
            self._uploads.close()
        self._loop.join(self._config.kill_deadline_s + _CLOSE_S)
        self._deliverer.close(_CLOSE_S)

    @property
    def uploads(self) -> Uploads | None:
        """The uploads of this node, None when the run has no durable store."""
        return self._uploads

    def _open_uploads(self) -> Uploads | None:
        if self._config.upload is None:
            return None
        log_path = Path(self._config.work_dir) / "uploader.log"
        return Uploads(
            self._config.upload, log_path, self._outbox.push, lambda: self._keeper.newest
        )

    # --- what the prober tells ---

    @property
    def attempt(self) -> int:
        """The newest attempt that this agent has heard of, -1 before any."""
        return self._keeper.newest

    def on_findings(self, findings: Sequence[Finding]) -> None:
        """Report what the prober has found."""
        report = NodeFindings(
            attempt=self._keeper.newest,
            findings=tuple(findings),
            machine=self._prober.machine(),
        )
        self._outbox.push(report)

    def on_energy(self, attempt: int, use: EnergyUse) -> None:
        """Report what the GPUs have used."""
        self._outbox.push(EnergyUsed(attempt=attempt, use=use))

    def _on_error(self, error: BaseException) -> None:
        text = "".join(traceback.format_exception(error))
        _log.error("fault in the agent's supervisor:\n%s", text)
        note = AgentNote(attempt=self._keeper.newest, code="agent-error", message=text)
        self._outbox.push(note)
