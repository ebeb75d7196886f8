"""A node agent in the simulated world: forks and ends workers, watches them, and reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from midwatch.health.nodes.lemons import MachineIdentity
from midwatch.logbook.findings import Finding
from midwatch.logbook.plan import AttemptPlan, PreflightPlan
from midwatch.logbook.wire import Command, WorkerMessage
from midwatch.operator.agent import reports as rp
from midwatch.operator.fleet import Identity

from .examining import answers
from .gang import Gang, Life, Worker

if TYPE_CHECKING:
    from .world import World

STATUS_S = 1.0
WATCH_S = 0.5


class SimAgent:
    """One life of the agent of one node. Everything it says waits in the outbox until it is acked.

    quiet_about_hangs, failing_starts, slow_start_s: what a fault has done to it.
    """

    def __init__(self, world: World, node: str, life: int) -> None:
        self.world = world
        self.node = node
        self.identity = Identity(
            node=node,
            agent=f"{node}#{life}",
            host=f"host-{node}",
            slots=world.spec.nodes.ranks_per_node,
            pid=world.next_pid(),
            machine=world.machines.get(node, MachineIdentity("")),
        )
        self.is_alive = True
        self.newest = 0
        self.examination = 0
        self.outbox: list[rp.AgentReport] = []
        self.quiet_about_hangs = False
        self.lost_commands = 0
        self._ended = 0
        self._seq = 0
        self._ports = 0
        self._told_at = -1.0
        world.timeline.later(world.times.preload_s, self._ready)

    # --- orders ----------------------------------------------------------------------------------

    def start(self, plan: AttemptPlan) -> None:
        """Fork this node's ranks of an attempt, once every older worker is dead."""
        if not self.is_alive or plan.attempt <= self._ended:
            return
        if plan.attempt < self.newest:
            self._push(rp.StartFailed(attempt=plan.attempt, code="stale-attempt", message=""))
        elif plan.attempt > self.newest:
            self.newest = plan.attempt
            self._end_workers(before=plan.attempt)
            place = next((p for p in plan.placements if p.node == self.node), None)
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
            self._push(rp.StartFailed(attempt=plan.attempt, code="fork-failed", message=message))
            return
        gang = self.world.gang(plan)
        self._push(rp.WorkersStarted(attempt=plan.attempt, pids=gang.born(self, ranks)))

    def stop(self, attempt: int) -> None:
        """End every worker of this attempt and of every older one."""
        if self.is_alive:
            self._ended = max(self._ended, attempt)
            self._end_workers(before=attempt + 1)
            self._push(rp.AttemptStopped(attempt=attempt, exits=()))

    def send(self, attempt: int, command: Command) -> None:
        """Hand a command to the local workers of the attempt."""
        if not self.is_alive:
            return
        if attempt != self.newest:
            note = rp.AgentNote(attempt=attempt, code="stale-command", message=str(command.seq))
            self._push(note)
            return
        for worker in self._workers():
            worker.mailbox.put(command)

    def examine(self, plan: PreflightPlan) -> None:
        """Try this node out with others, unless it trains."""
        if not self.is_alive or plan.number <= self.examination:
            return
        self.examination = plan.number
        if self.node not in plan.nodes:
            return
        if self._workers():
            busy = rp.StartFailed(attempt=plan.attempt, code="node-busy", message="")
            self._push(busy)
            return
        self.world.examined.append((plan.number, self.node))
        self._push(rp.WorkersStarted(attempt=plan.attempt, pids={}))
        delay_s = self.world.trouble.examination_s(self.node)
        self.world.timeline.later(delay_s, lambda: self._examined(plan))

    def end_examination(self, number: int) -> None:
        """End this preflight and every older one."""
        self.examination = max(self.examination, number)

    def _examined(self, plan: PreflightPlan) -> None:
        ended = self.examination != plan.number or bool(self._workers())
        if not self.is_alive or ended or self.node in self.world.trouble.mute:
            return
        if self.node in self.world.trouble.no_preflights:
            for rank, node in enumerate(plan.rank_nodes):
                if node == self.node:
                    self._push(_died(plan, rank))
            return
        batch = answers(plan, self.node, self.world.trouble.sick)
        self._push(rp.WorkerMessages(attempt=plan.attempt, batch=batch))

    def _end_workers(self, before: int) -> None:
        for worker, gang in self._workers_and_gangs():
            if gang.attempt < before:
                gang.lose(worker.rank)

    # --- what workers do -------------------------------------------------------------------------

    def on_message(self, attempt: int, rank: int, message: WorkerMessage) -> None:
        """A worker said something on its pipe."""
        if self.is_alive:
            self._push(rp.WorkerMessages(attempt=attempt, batch=((rank, message),)))

    def on_exit(
        self, gang: Gang, worker: Worker, *, exit_code: int | None = None, signal: int | None = None
    ) -> None:
        """A worker process ended by itself."""
        if not self.is_alive:
            return
        how = rp.Exit(worker.rank, worker.pid, exit_code, signal)
        phase = gang.rows(self)[0].phase if gang.rows(self) else rp.Phase.TRAINING
        self._push(
            rp.WorkerExited(
                attempt=gang.attempt,
                exit=how,
                cause="exit" if signal is None else "signal",
                step=gang.weights.step,
                phase=phase,
                log_tail="",
            )
        )

    def _watch(self) -> None:
        """The hang watch: no local rank has completed a step within the deadline."""
        if not self.is_alive:
            return
        self.world.timeline.later(WATCH_S, self._watch)
        gang = self.world.gangs.get(self.newest)
        if gang is None or not gang.num_steps or gang.is_done or self.quiet_about_hangs:
            return
        rows = gang.rows(self)
        restart, step_s = self.world.spec.restart, self.world.times.step_s
        deadline_s = min(
            max(restart.hang_multiple * step_s, restart.hang_min_s), restart.hang_max_s
        )
        waited_s = self.world.timeline.now_s() - gang.progress_s
        if rows and waited_s > deadline_s and self._told_at != gang.progress_s:
            self._told_at = gang.progress_s
            self._push(
                rp.HangSuspected(
                    attempt=gang.attempt,
                    rank=None,
                    reason="",
                    waited_s=waited_s,
                    deadline_s=deadline_s,
                    median_step_s=step_s,
                    rows=rows,
                    stacks={row.rank: "Thread 0x1\n" for row in rows},
                )
            )

    def _workers_and_gangs(self) -> list[tuple[Worker, Gang]]:
        return [
            (worker, gang)
            for gang in self.world.gangs.values()
            for worker in gang.workers.values()
            if worker.agent is self and worker.life is not Life.GONE
        ]

    def _workers(self) -> list[Worker]:
        gang = self.world.gangs.get(self.newest)
        mine = gang.workers.values() if gang is not None else ()
        return [worker for worker in mine if worker.agent is self and worker.life is not Life.GONE]

    # --- reports ---------------------------------------------------------------------------------

    def _ready(self) -> None:
        self._beat()
        self._watch()

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
        )
        self._push(status)
        self.world.timeline.later(STATUS_S, self._beat)

    def find(self, *findings: Finding) -> None:
        """The agent has seen something on its own node."""
        if self.is_alive:
            self._push(rp.NodeFindings(attempt=self.newest, findings=findings))

    def _push(self, report: rp.AgentReport) -> None:
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
        for worker, gang in self._workers_and_gangs():
            gang.lose(worker.rank)


def _died(plan: PreflightPlan, rank: int) -> rp.AgentReport:
    return rp.WorkerExited(
        attempt=plan.attempt,
        exit=rp.Exit(rank, 1, 1, None),
        cause="exit",
        step=0,
        phase=rp.Phase.BORN,
        log_tail="",
    )
