"""Which attempt lives on a node, which ones are dying, and which one waits for its turn.

Everything here runs on the agent's event loop. At most one attempt is current. A newer one ends
it, waits until every older worker is dead and reaped, and only then is forked: two attempts never
share a GPU, a port or a checkpoint folder on a node.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from ...health.nodes.lemons import MachineIdentity
from ...logbook.errors import ConfigError
from ...logbook.wire import Command
from .batch import MessageBatch
from .forkclient import Forkserver
from .forkwire import Born, Gone, SpawnFailed
from .local_attempt import Desk, LocalAttempt
from .logs import cut_log
from .loop import EventLoop, Timer
from .node_memory import NodeMemory, available_bytes
from .outbox import Outbox
from .plan import AgentConfig, LocalPlan, check_plan
from .process import signal_group
from .rendezvous import Rendezvous
from .reports import AgentNote, AgentStatus, AttemptStopped, StartFailed
from .side_run import SideRun
from .watch import HangWatch

_PENDING_COMMANDS_MAX = 256


class Keeper:
    """The supervisor's state, on the loop's thread. newest: highest attempt seen, the fence.

    machine: says what the node is, as far as that is known.
    """

    def __init__(
        self,
        config: AgentConfig,
        loop: EventLoop,
        outbox: Outbox,
        rendezvous: Rendezvous,
        machine: Callable[[], MachineIdentity],
    ) -> None:
        self.newest = -1
        self._config = config
        self._loop = loop
        self._outbox = outbox
        self._machine = machine
        self._forkserver = Forkserver(loop, config, self)
        self._batch = MessageBatch(outbox)
        memory = NodeMemory(int(config.memory_frac * available_bytes()))
        self._desk = Desk(config, loop, self._forkserver, rendezvous, outbox, self._batch, memory)
        self._side = SideRun(self._desk, self._advance)
        self._watch: HangWatch | None = None
        self._dying: dict[int, LocalAttempt] = {}
        self._pending: LocalPlan | None = None
        self._pending_commands: list[Command] = []
        self._pending_timers: list[Timer] = []
        self._unanswered_stops: list[int] = []
        self._is_closing = False

    def begin(self) -> None:
        """Start the forkserver and the periodic work."""
        self._forkserver.launch()
        self._loop.call_every(self._config.batch_s, self._beat)
        self._loop.call_every(self._config.poll_s, self._look)
        self._loop.call_every(self._config.status_s, self._tick)
        self._report_status()

    # --- orders ---

    def start(self, plan: LocalPlan) -> None:
        """See Supervisor.start."""
        if plan.attempt < 0:
            self._start_side(plan)
            return
        if self._is_closing or plan.attempt == self.newest:
            return
        if plan.attempt < self.newest:
            message = f"attempt {plan.attempt} is older than {self.newest}"
            self._report_failed(plan.attempt, "stale-attempt", message)
            return
        try:
            check_plan(plan)
        except ConfigError as error:
            self._report_failed(plan.attempt, error.code, error.message)
            return
        self._supersede(plan.attempt)
        self._retire_current(0.0)
        if plan.workers:
            self._side.end()
        for dying in list(self._dying.values()):
            dying.end(0.0)
        self._pending = plan
        self._pending_timers = [
            self._loop.call_later(self._config.kill_deadline_s, self._on_kill_deadline),
            self._loop.call_later(self._config.ready_deadline_s, self._on_ready_deadline),
        ]
        self._advance()

    def _start_side(self, plan: LocalPlan) -> None:
        """A preflight: only where nothing trains and nothing is about to."""
        trains = self._watch is not None and self._watch.attempt.live_workers()
        if self._is_closing or trains or (self._pending is not None and self._pending.workers):
            self._side.refuse(plan, "node-busy", f"attempt {self.newest} has workers here")
            return
        self._side.start(plan)
        self._advance()

    def stop(self, attempt: int, grace_s: float) -> None:
        """See Supervisor.stop."""
        if attempt < 0:
            self._side.stop(attempt)
            return
        known = self._find(attempt)
        if attempt >= self.newest:
            self._supersede(attempt)
            self._retire_current(grace_s)
        if known is None:
            self._unanswered_stops.append(attempt)
        elif grace_s <= 0 and not known.is_over:
            known.end(0.0)
        self._advance()

    def send(self, attempt: int, command: Command) -> None:
        """See Supervisor.send."""
        watch = self._watch
        if watch is not None and watch.attempt.attempt == attempt:
            watch.attempt.send(command)
        elif self._pending is not None and self._pending.attempt == attempt:
            if len(self._pending_commands) < _PENDING_COMMANDS_MAX:
                self._pending_commands.append(command)
            else:
                self._note("command-lost", f"no room for command {command.seq}", attempt)
        else:
            code = "stale-command" if attempt < self.newest else "unknown-attempt"
            message = f"command {command.seq} for attempt {attempt}; newest is {self.newest}"
            self._note(code, message, attempt)

    def dump_stacks(self, attempt: int) -> None:
        """See Supervisor.dump_stacks."""
        if self._watch is not None and self._watch.attempt.attempt == attempt:
            self._watch.dump_stacks()
        else:
            self._note("unknown-attempt", "no stacks: no worker of it lives here", attempt)

    def close(self) -> None:
        """End everything, then the loop."""
        self._is_closing = True
        self._drop_pending()
        self._retire_current(0.0)
        self._side.end()
        self._loop.call_later(self._config.kill_deadline_s, self._shut_down)
        self._advance()

    # --- from one attempt to the next ---

    def _supersede(self, attempt: int) -> None:
        """Raise the fence; a plan that still waited for its turn will not get it."""
        if self._pending is not None and self._pending.attempt < attempt:
            message = f"attempt {attempt} came before it could start"
            self._report_failed(self._pending.attempt, "superseded", message)
        self._drop_pending()
        self.newest = attempt

    def _drop_pending(self) -> None:
        self._pending = None
        self._pending_commands = []
        for timer in self._pending_timers:
            timer.cancel()
        self._pending_timers = []

    def _retire_current(self, grace_s: float) -> None:
        if self._watch is not None:
            attempt, self._watch = self._watch.attempt, None
            self._dying[attempt.attempt] = attempt
            attempt.end(grace_s)

    def _on_over(self, attempt: LocalAttempt) -> None:
        self._dying.pop(attempt.attempt, None)
        if self._watch is not None and self._watch.attempt is attempt:
            self._watch = None
        self._advance()

    def _advance(self) -> None:
        """Do what had to wait until no older worker lives and the forkserver is ready."""
        stops, self._unanswered_stops = self._unanswered_stops, []
        for attempt in stops:
            if any(dying <= attempt for dying in self._dying):
                self._unanswered_stops.append(attempt)
            else:
                self._outbox.push(AttemptStopped(attempt=attempt, exits=()))
        pending = self._pending
        needs_room = self._is_closing or (pending is not None and bool(pending.workers))
        if self._dying or (needs_room and self._side.is_live):
            return
        if self._is_closing:
            self._shut_down()
        elif pending is not None:
            self._begin_pending(pending)
        elif self._side.advance(self._forkserver.state, self._forkserver.error):
            self._report_status()

    def _begin_pending(self, plan: LocalPlan) -> None:
        if plan.workers and self._forkserver.state == "failed":
            self._drop_pending()
            code, error = self._forkserver.error_code, self._forkserver.error
            self._report_failed(plan.attempt, code, error)
        elif self._forkserver.is_ready or not plan.workers:
            commands = self._pending_commands
            self._drop_pending()
            attempt = LocalAttempt(plan, self._desk, self._on_over)
            self._watch = HangWatch(attempt, self._desk)
            attempt.spawn()
            for command in commands:
                attempt.send(command)
            # The reserved port has changed if rank 0 came here.
            self._report_status()

    def _on_kill_deadline(self) -> None:
        if self._pending is not None and (self._dying or self._side.is_live):
            plan = self._pending
            self._drop_pending()
            old_ones = [*self._dying.values(), *self._side_attempts()]
            workers = [worker for old in old_ones for worker in old.live_workers()]
            pids = {worker.rank: worker.pid for worker in workers}
            message = f"older workers still live (pid by rank): {pids}"
            self._report_failed(plan.attempt, "old-worker-will-not-die", message)

    def _on_ready_deadline(self) -> None:
        if self._pending is not None:
            plan = self._pending
            self._drop_pending()
            waited_s = self._config.ready_deadline_s
            message = f"the forkserver is not ready after {waited_s:g} s {self._forkserver.error}"
            self._report_failed(plan.attempt, "forkserver-not-ready", message)

    def _shut_down(self) -> None:
        self._batch.flush()
        self._forkserver.close()
        self._desk.rendezvous.close()
        self._desk.memory.drop()
        self._loop.end()

    # --- from the forkserver ---

    def on_ready(self) -> None:
        """The forkserver can fork."""
        self._report_status()
        self._advance()

    def on_born(self, news: Born, pidfd: int) -> None:
        """A worker was forked."""
        attempt = self._find(news.attempt)
        if attempt is not None:
            attempt.on_born(news, pidfd)
        else:
            signal_group(pidfd, news.pid, signal.SIGKILL)
            os.close(pidfd)

    def on_spawn_failed(self, news: SpawnFailed) -> None:
        """A worker could not be forked."""
        attempt = self._find(news.attempt)
        if attempt is not None:
            attempt.on_spawn_failed(news)

    def on_gone(self, news: Gone) -> None:
        """A worker was reaped."""
        attempt = self._find(news.attempt)
        if attempt is not None:
            attempt.on_gone(news)

    def on_forkserver_lost(self, message: str) -> None:
        """The forkserver ended; a new one is on its way."""
        self._note("forkserver-lost", message, self.newest)
        for attempt in self._attempts():
            attempt.on_forkserver_lost(message)
        self._report_status()
        self._advance()

    def _attempts(self) -> list[LocalAttempt]:
        """Return the attempts that have workers here, the current one last."""
        current = [] if self._watch is None else [self._watch.attempt]
        return [*self._dying.values(), *self._side_attempts(), *current]

    def _side_attempts(self) -> list[LocalAttempt]:
        return [] if self._side.current is None else [self._side.current]

    def _find(self, attempt: int) -> LocalAttempt | None:
        if self._watch is not None and self._watch.attempt.attempt == attempt:
            return self._watch.attempt
        side = self._side.current
        if side is not None and side.attempt == attempt:
            return side
        return self._dying.get(attempt)

    # --- periodic ---

    def _beat(self) -> None:
        for attempt in self._attempts():
            attempt.read_reports()
        self._batch.flush_messages()

    def _look(self) -> None:
        if self._watch is not None:
            self._watch.look()

    def _tick(self) -> None:
        paths = [Path(self._forkserver.log_path)]
        if self._watch is not None:
            paths += [worker.log_path for worker in self._watch.attempt.live_workers()]
        for path in paths:
            removed = cut_log(path, self._config.log_bytes_max)
            if removed:
                self._note("log-cut", f"{removed} bytes of {path} removed", self.newest)
        # Timings travel with the heartbeat: a call to the controller costs both sides more than
        # anything that is in it.
        self._batch.flush()
        self._report_status()

    def _report_status(self) -> None:
        rows = self._watch.rows() if self._watch is not None else ()
        workers = self._watch.attempt.live_workers() if self._watch is not None else []
        status = AgentStatus(
            attempt=self.newest,
            rows=rows,
            pids={worker.rank: worker.pid for worker in workers},
            forkserver=self._forkserver.state,
            forkserver_error=self._forkserver.error,
            threads=self._forkserver.threads,
            rendezvous_host=self._desk.rendezvous.host,
            rendezvous_port=self._desk.rendezvous.port,
            samples_dropped_total=self._batch.samples_dropped_total,
            reports_dropped_total=self._outbox.dropped_total,
            reports_lost_total=self._outbox.lost_total,
            serving_port=self._serving_port(),
            machine=self._machine(),
        )
        self._outbox.push(status)

    def _serving_port(self) -> int:
        starts = self._watch.attempt.plan.workers if self._watch is not None else ()
        return next((start.rendezvous_port for start in starts if start.rank == 0), 0)

    def _report_failed(self, attempt: int, code: str, message: str) -> None:
        self._outbox.push(StartFailed(attempt=attempt, code=code, message=message))

    def _note(self, code: str, message: str, attempt: int) -> None:
        self._outbox.push(AgentNote(attempt=attempt, code=code, message=message))
