"""A node agent in the simulated world: forks and ends workers, watches them, and reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ...health.nodes.lemons import MachineIdentity
from ...logbook.findings import Finding
from ...logbook.plan import AttemptPlan, Placement, PreflightPlan
from ...logbook.wire import Command, Phase, WorkerMessage
from ..agent import reports as rp
from ..fleet import Identity
from .examining import answers
from .gang import Gang, Life, Worker

if TYPE_CHECKING:
    from .world import World

ADDRESS_S = 1.0
"""How soon an agent has named a new address after rank 0 has taken the last one."""
WATCH_AGAIN_S = 0.5


class SimAgent:
    """One life of the agent of one node. Everything it says waits in the outbox until it is acked.

    quiet_about_hangs, lost_commands: what a fault has done to it.
    """

    def __init__(self, world: World, node: str, life: int) -> None:
        self.world = world
        self.node = node
        self._machine = world.machines.get(node, MachineIdentity(""))
        self.identity = Identity(
            node=node,
            agent=f"{node}#{life}",
            host=f"host-{node}",
            slots=world.spec.nodes.ranks_per_node,
            pid=world.next_pids()[0],
            machine=self.machine,
        )
        self.is_alive = True
        self.newest = 0
        self.examination = 0
        self.outbox: list[rp.AgentReport] = []
        self.quiet_about_hangs = False
        self.lost_commands = 0
        self._gang: Gang | None = None
        self._workers: list[Worker] = []
        self._ended = 0
        self._seq = 0
        self._ports = 0
        self._told_at = -1.0
        world.timeline.later(world.times.preload_s, self._beat)

    @property
    def machine(self) -> MachineIdentity:
        """What the node runs on, as far as its driver has said."""
        opens_s = self.world.trouble.drivers_open_s.get(self.node)
        is_open = opens_s is None or self.world.timeline.now_s() >= opens_s
        return self._machine if is_open else MachineIdentity("")

    # --- orders ----------------------------------------------------------------------------------

    def start(self, plan: AttemptPlan, place: Placement | None) -> None:
        """Fork this node's ranks of an attempt, once every older worker is dead."""
        if not self.is_alive or plan.attempt <= self._ended:
            return
        if plan.attempt < self.newest:
            self.report(rp.StartFailed(attempt=plan.attempt, code="stale-attempt", message=""))
        elif plan.attempt > self.newest:
            self.newest = plan.attempt
            self._end_workers()
            if self.world.times.status_s is None and plan.placements[0].node == self.node:
                self.world.timeline.later(ADDRESS_S, self._beat)
            if place is not None:
                ranks = range(place.first_rank, place.first_rank + place.num_ranks)
                self.world.timeline.later(
                    self.world.trouble.start_delay_s(self.node), lambda: self._fork(plan, ranks)
                )

    def _fork(self, plan: AttemptPlan, ranks: range) -> None:
        if not self.is_alive or self.newest != plan.attempt or plan.attempt <= self._ended:
            return
        if self.world.trouble.start_fails(self.node):
            message = "Resource temporarily unavailable"
            self.report(rp.StartFailed(attempt=plan.attempt, code="fork-failed", message=message))
            return
        gang = self.world.gang(plan)
        pids = gang.born(self, ranks)
        self._gang, self._workers = gang, [gang.workers[rank] for rank in ranks]
        self.report(rp.WorkersStarted(attempt=plan.attempt, pids=pids))

    def stop(self, attempt: int) -> None:
        """End every worker of this attempt and of every older one."""
        if self.is_alive:
            self._ended = max(self._ended, attempt)
            if self._gang is not None and self._gang.attempt <= attempt:
                self._end_workers()
            self.report(rp.AttemptStopped(attempt=attempt, exits=()))

    def send(self, attempt: int, command: Command) -> None:
        """Hand a command to the local workers of the attempt."""
        if not self.is_alive:
            return
        if attempt != self.newest:
            note = rp.AgentNote(attempt=attempt, code="stale-command", message=str(command.seq))
            self.report(note)
        elif self._gang is not None:
            self._gang.receive(self._left(), command)

    def examine(self, plan: PreflightPlan) -> None:
        """Try this node out with others, unless it trains."""
        if not self.is_alive or plan.number <= self.examination:
            return
        self.examination = plan.number
        if self.world.times.status_s is None and plan.nodes[0] == self.node:
            self.world.timeline.later(ADDRESS_S, self._beat)
        if self.node not in plan.nodes:
            return
        if self._left():
            busy = rp.StartFailed(attempt=plan.attempt, code="node-busy", message="")
            self.report(busy)
            return
        self.world.examined.append((plan.number, self.node))
        self.report(rp.WorkersStarted(attempt=plan.attempt, pids={}))
        delay_s = self.world.trouble.examination_s(self.node)
        self.world.timeline.later(delay_s, lambda: self._examined(plan))

    def end_examination(self, number: int) -> None:
        """End this preflight and every older one."""
        self.examination = max(self.examination, number)

    def _examined(self, plan: PreflightPlan) -> None:
        ended = self.examination != plan.number or bool(self._left())
        if not self.is_alive or ended or self.node in self.world.trouble.mute:
            return
        if self.node in self.world.trouble.no_preflights:
            for rank, node in enumerate(plan.rank_nodes):
                if node == self.node:
                    self.report(_died(plan, rank))
            return
        batch = answers(plan, self.node, self.world.trouble.sick)
        self.report(rp.WorkerMessages(attempt=plan.attempt, batch=batch))

    def _end_workers(self) -> None:
        if self._gang is not None:
            self._gang.end(self._left())

    # --- what workers do -------------------------------------------------------------------------

    def on_messages(self, attempt: int, batch: tuple[tuple[int, WorkerMessage], ...]) -> None:
        """Workers said something on their pipes."""
        if self.is_alive:
            self.report(rp.WorkerMessages(attempt=attempt, batch=batch))

    def on_exit(
        self, gang: Gang, worker: Worker, *, exit_code: int | None = None, signal: int | None = None
    ) -> None:
        """A worker process ended by itself."""
        if not self.is_alive:
            return
        how = rp.Exit(worker.rank, worker.pid, exit_code, signal)
        rows = gang.rows(self._workers) if self._gang is gang else ()
        self.report(
            rp.WorkerExited(
                attempt=gang.attempt,
                exit=how,
                cause="exit" if signal is None else "signal",
                step=gang.weights.step,
                phase=rows[0].phase if rows else Phase.TRAINING,
                log_tail="",
            )
        )

    def watch(self, gang: Gang) -> None:
        """The hang watch: the ranks stand still, and will be told of once the deadline passes."""
        restart, step_s = self.world.spec.restart, self.world.times.step_s
        deadline_s = min(
            max(restart.hang_multiple * step_s, restart.hang_min_s), restart.hang_max_s
        )
        waited_s = self.world.timeline.now_s() - gang.progress_s
        delay_s = max(deadline_s - waited_s, 0.0) + self.world.rng.uniform(0.01, WATCH_AGAIN_S)
        self.world.timeline.later(delay_s, lambda: self._tell_hang(gang, deadline_s))

    def _tell_hang(self, gang: Gang, deadline_s: float) -> None:
        is_over = gang is not self._gang or gang.is_done or not gang.num_steps
        if not self.is_alive or is_over or self._told_at == gang.progress_s:
            return
        if self.quiet_about_hangs:
            self.world.timeline.later(WATCH_AGAIN_S, lambda: self._tell_hang(gang, deadline_s))
            return
        rows = gang.rows(self._workers)
        waited_s = self.world.timeline.now_s() - gang.progress_s
        if rows and waited_s >= deadline_s:
            self._told_at = gang.progress_s
            self.report(
                rp.HangSuspected(
                    attempt=gang.attempt,
                    rank=None,
                    reason="",
                    waited_s=waited_s,
                    deadline_s=deadline_s,
                    median_step_s=self.world.times.step_s,
                    rows=rows,
                    stacks={row.rank: "Thread 0x1\n" for row in rows},
                )
            )

    def _left(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.life is not Life.GONE]

    # --- reports ---------------------------------------------------------------------------------

    def beat_anew(self) -> None:
        """Tell a controller that has just met this agent how it stands, if no beat would."""
        if self._ports and self.world.times.status_s is None:
            self._beat()

    def _beat(self) -> None:
        if not self.is_alive:
            return
        self._ports += 1
        error = self.world.trouble.preload_errors.get(self.node, "")
        status = rp.AgentStatus(
            attempt=self.newest,
            rows=(),
            pids={},
            forkserver="failed" if error else "ready",
            forkserver_error=error,
            threads=1,
            rendezvous_host=self.identity.host,
            rendezvous_port=20_000 + self._ports,
            samples_dropped_total=0,
            reports_dropped_total=0,
            reports_lost_total=0,
            machine=self.machine,
        )
        self.report(status)
        if self.world.times.status_s is not None:
            self.world.timeline.later(self.world.times.status_s, self._beat)

    def find(self, *findings: Finding) -> None:
        """The agent has seen something on its own node."""
        if self.is_alive:
            report = rp.NodeFindings(attempt=self.newest, findings=findings, machine=self.machine)
            self.report(report)

    def report(self, report: rp.AgentReport) -> None:
        """Stamp a report and send it; it waits in the outbox until it is acknowledged."""
        self._seq += 1
        stamped = msgspec.structs.replace(
            report,
            node=self.node,
            agent=self.identity.agent,
            seq=self._seq,
            time_s=self.world.timeline.now_s(),
        )
        # A newer heartbeat takes the place of an older one that nobody has read.
        if isinstance(report, rp.AgentStatus):
            self.outbox = [kept for kept in self.outbox if not isinstance(kept, rp.AgentStatus)]
        self.outbox.append(stamped)
        self.world.wire.carry(self, stamped)

    def die(self) -> None:
        """SIGKILL to the agent: its workers go with it, and what it had to say is lost."""
        self.is_alive = False
        self._end_workers()


def _died(plan: PreflightPlan, rank: int) -> rp.AgentReport:
    return rp.WorkerExited(
        attempt=plan.attempt,
        exit=rp.Exit(rank, 1, 1, None),
        cause="exit",
        step=0,
        phase=Phase.BORN,
        log_tail="",
    )
