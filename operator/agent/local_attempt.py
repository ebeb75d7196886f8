"""The workers of one attempt on this node, from the order to fork them to the last one's end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from ...logbook.errors import MidwatchError
from ...logbook.wire import CollectiveTrace, Command, WorkerStart
from .batch import MessageBatch
from .forkclient import Forkserver
from .forkwire import Born, Gone, Spawn, SpawnFailed
from .local_worker import LocalWorker, open_worker
from .logs import log_path, log_tail, prune_logs, stack_path
from .loop import READ, WRITE, EventLoop, Timer
from .node_memory import NodeMemory
from .outbox import Outbox
from .plan import AgentConfig, LocalPlan
from .process import process_facts, process_state, signal_group, unreaped_status
from .rendezvous import Rendezvous
from .reports import (
    AgentNote,
    AttemptStopped,
    Exit,
    ExitRow,
    StartFailed,
    WorkerExited,
    WorkersExited,
    WorkersStarted,
)

# The forkserver's word on the exit status follows the kernel's on the death within a millisecond;
# when it does not, the death is reported without a status.
_STATUS_WAIT_S = 0.25
# Of 256 KiB each: a worker that floods must not keep the others waiting, a dead one adds no more.
_READS_PER_BEAT = 4
_LAST_READS = 64
_ECHO_TAIL_MAX = 1000


@dataclass(frozen=True)
class Desk:
    """What every part of an agent works with."""

    config: AgentConfig
    loop: EventLoop
    forkserver: Forkserver
    rendezvous: Rendezvous
    outbox: Outbox
    batch: MessageBatch
    memory: NodeMemory


class LocalAttempt:
    """Forks the workers of a plan, passes their messages on, and reports how each one ended.

    on_over is called once, when the attempt was told to end and no worker of it lives any more.
    """

    def __init__(
        self, plan: LocalPlan, desk: Desk, on_over: Callable[[LocalAttempt], None]
    ) -> None:
        self.plan = plan
        self.is_ending = False
        self.is_over = False
        self.has_lost_worker = False
        self._desk = desk
        self._on_over = on_over
        self._workers: dict[int, LocalWorker] = {}
        self._ended: list[Exit] = []
        self._echoes: list[ExitRow] = []
        self._is_started = False
        self._deadline: Timer | None = None

    @property
    def attempt(self) -> int:
        return self.plan.attempt

    def live_workers(self) -> list[LocalWorker]:
        """Return the workers that are ordered or born and not known to have ended."""
        return [worker for worker in self._workers.values() if not worker.is_over]

    # --- beginning ---

    def spawn(self) -> None:
        """Order every worker of the plan. A failure is reported, and ends what was begun."""
        # A preflight has no state of its own; the next attempt says what becomes of this one.
        if self.attempt >= 0 and not self.plan.keeps_memory:
            self._desk.memory.drop()
        try:
            self._prepare_folder()
            for start in self.plan.workers:
                self._order(start)
        except MidwatchError as error:
            self._fail(error.code, error.message)
        except BlockingIOError:
            self._fail("forkserver-stuck", "the forkserver takes no orders")
            self._desk.forkserver.replace()
        except BrokenPipeError as error:
            self._fail("forkserver-lost", f"the forkserver went away: {error}")
        except OSError as error:
            self._fail("no-file-descriptors", f"cannot open a worker's pipes: {error}")
        else:
            delay_s = self._desk.config.fork_deadline_s
            self._deadline = self._desk.loop.call_later(delay_s, self._on_fork_deadline)
            self._report_if_started()

    def _prepare_folder(self) -> None:
        folder = Path(self.plan.log_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            prune_logs(folder, self.attempt)
        except OSError as error:
            raise MidwatchError("log-dir-unusable", f"cannot use {folder}: {error}") from error

    def _order(self, start: WorkerStart) -> None:
        folder, rank = self.plan.log_dir, start.rank
        worker, ends = open_worker(
            start,
            log_path(folder, self.attempt, rank),
            stack_path(folder, self.attempt, rank),
        )
        self._workers[rank] = worker
        try:
            start, ends.buffers = self._desk.memory.order(start, len(self.plan.workers))
            if rank == 0:
                ends.listener = self._desk.rendezvous.take(start.rendezvous_port)
            order = Spawn(
                attempt=self.attempt,
                rank=rank,
                entry_point=self.plan.entry_point,
                start=msgspec.msgpack.encode(start),
                env={**self.plan.env, **self.plan.rank_env.get(rank, {})},
                log_path=str(worker.log_path),
                stack_path=str(worker.stack_path),
                has_listener=ends.listener is not None,
            )
            self._desk.forkserver.spawn(order, ends.all_fds())
        except (OSError, MidwatchError):
            self._discard(worker)
            raise
        finally:
            ends.close()

    def on_born(self, news: Born, pidfd: int) -> None:
        """The forkserver has forked a worker."""
        worker = self._workers.get(news.rank)
        if worker is None or worker.is_over:
            signal_group(pidfd, news.pid, signal.SIGKILL)
            os.close(pidfd)
            return
        worker.pid, worker.pidfd = news.pid, pidfd
        self._desk.loop.watch(pidfd, READ, partial(self._on_death, worker))
        if self.is_ending:
            worker.signal(signal.SIGKILL)
        else:
            self._report_if_started()

    def on_spawn_failed(self, news: SpawnFailed) -> None:
        """fork() failed; without this rank the attempt cannot run."""
        worker = self._workers.get(news.rank)
        if worker is not None and not worker.is_over:
            self._discard(worker)
            self._fail("fork-failed", f"rank {news.rank} could not be forked: {news.error}")
            self._check_over()

    def _report_if_started(self) -> None:
        born = {rank: worker.pid for rank, worker in self._workers.items() if worker.is_born}
        if not self._is_started and len(born) == len(self.plan.workers):
            self._is_started = True
            self._cancel_deadline()
            self._desk.outbox.push(WorkersStarted(attempt=self.attempt, pids=born))

    def _on_fork_deadline(self) -> None:
        waited_s = self._desk.config.fork_deadline_s
        self._fail("forkserver-stuck", f"no answer from the forkserver within {waited_s:g} s")
        self._desk.forkserver.replace()

    def _fail(self, code: str, message: str) -> None:
        if not self.is_ending:
            failed = StartFailed(attempt=self.attempt, code=code, message=message)
            self._desk.outbox.push(failed)
            self.end(0.0)

    # --- running ---

    def send(self, command: Command) -> None:
        """Pass a command to every worker; those that cannot take it are named in a note."""
        for worker in self.live_workers():
            had_backlog = worker.has_backlog
            if not worker.send(command):
                self._note("command-lost", f"no room for command {command.seq}", worker.rank)
            elif worker.has_backlog and not had_backlog:
                writable = partial(self._on_writable, worker)
                self._desk.loop.watch(worker.command_fd, WRITE, writable)

    def _on_writable(self, worker: LocalWorker) -> None:
        worker.flush_commands()
        if not worker.has_backlog:
            self._desk.loop.unwatch(worker.command_fd)

    def read_reports(self) -> None:
        """Take what the workers have said.

        Done on a beat, not whenever a pipe has something: one wake-up then serves many messages,
        and the pipes hold far more than a beat's worth.
        """
        for worker in self.live_workers():
            self._read(worker, _READS_PER_BEAT)
        self._report_echoes()

    def _read(self, worker: LocalWorker, reads_max: int) -> None:
        try:
            for _ in range(reads_max):
                messages = worker.read()
                if messages is None:
                    return
                for message in messages:
                    if isinstance(message, CollectiveTrace):
                        worker.trace = message
                        continue
                    self._desk.batch.add(self.attempt, worker.rank, message)
        except (ValueError, msgspec.MsgspecError) as error:
            worker.is_readable = False
            self._note("bad-frame", f"its report pipe cannot be understood: {error}", worker.rank)

    def _note(self, code: str, message: str, rank: int | None = None) -> None:
        note = AgentNote(attempt=self.attempt, code=code, message=message, rank=rank)
        self._desk.outbox.push(note)

    # --- ending ---

    def end(self, grace_s: float) -> None:
        """End every worker: SIGTERM first when there is a grace, SIGKILL at its end."""
        is_first = not self.is_ending
        self.is_ending = True
        self._cancel_deadline()
        if is_first and grace_s > 0:
            self._signal_all(signal.SIGTERM)
            self._deadline = self._desk.loop.call_later(grace_s, self._kill)
        else:
            self._kill()
        self._check_over()

    def _kill(self) -> None:
        self._signal_all(signal.SIGKILL)
        delay_s = self._desk.config.kill_deadline_s
        self._deadline = self._desk.loop.call_later(delay_s, self._on_kill_deadline)

    def _signal_all(self, signum: int) -> None:
        for worker in self.live_workers():
            worker.signal(signum)

    def _on_kill_deadline(self) -> None:
        for worker in self.live_workers():
            message = f"pid {worker.pid} outlives SIGKILL, state {process_state(worker.pid)}\n"
            facts = process_facts(worker.pid)
            self._note("worker-will-not-die", message + facts, worker.rank)

    def _on_death(self, worker: LocalWorker) -> None:
        """The kernel says that the worker has ended; the forkserver will say how."""
        self._desk.loop.unwatch(worker.pidfd)
        worker.is_dead = True
        delay_s = _STATUS_WAIT_S if self._desk.forkserver.is_ready else 0.0
        self._desk.loop.call_later(delay_s, partial(self._finish_unknown, worker))

    def _finish_unknown(self, worker: LocalWorker) -> None:
        if worker.is_over:
            return
        # Nobody has swept its process group yet.
        worker.signal(signal.SIGKILL)
        if not self._desk.forkserver.is_ready:
            self._finish(worker, Exit(worker.rank, worker.pid, None, None), "forkserver-lost")
        elif (status := unreaped_status(worker.pid)) is not None:
            self._finish(worker, Exit(worker.rank, worker.pid, *status), _cause_of(status[1]))
        else:
            self._finish(worker, Exit(worker.rank, worker.pid, None, None), "unknown")

    def on_gone(self, news: Gone) -> None:
        """The forkserver has reaped a worker."""
        worker = self._workers.get(news.rank)
        if worker is not None and worker.pid == news.pid:
            ended = Exit(news.rank, news.pid, news.exit_code, news.signal)
            self._finish(worker, ended, _cause_of(news.signal))

    def on_forkserver_lost(self, message: str) -> None:
        """Every worker dies with the forkserver; those never born are written off at once."""
        for worker in self.live_workers():
            if worker.is_dead:
                self._finish_unknown(worker)
            elif worker.is_born:
                worker.signal(signal.SIGKILL)
            else:
                self._discard(worker)
        if not self._is_started:
            self._fail("forkserver-lost", message)
        self._check_over()

    def _finish(self, worker: LocalWorker, ended: Exit, cause: str) -> None:
        if worker.is_over:
            return
        self._read(worker, _LAST_READS)
        where = worker.progress(with_state=False)
        self._discard(worker)
        worker.exit = ended
        if self.is_ending:
            self._ended.append(ended)
        else:
            tail = log_tail(worker.log_path)
            row = ExitRow(ended, cause, where.step, where.phase, tail)
            if self.has_lost_worker and ended.exit_code is not None:
                # Its peers follow whoever ends first; nobody waits to hear of each of them.
                self._echoes.append(msgspec.structs.replace(row, log_tail=tail[-_ECHO_TAIL_MAX:]))
            else:
                self.has_lost_worker = True
                self._report_exit(row)
        self._check_over()

    def _report_exit(self, row: ExitRow) -> None:
        self._desk.batch.flush()
        fields = msgspec.structs.asdict(row)
        self._desk.outbox.push(WorkerExited(attempt=self.attempt, **fields))

    def _report_echoes(self) -> None:
        echoes, self._echoes = self._echoes, []
        if len(echoes) == 1:
            self._report_exit(echoes[0])
        elif echoes:
            self._desk.batch.flush()
            self._desk.outbox.push(WorkersExited(attempt=self.attempt, rows=tuple(echoes)))

    def _discard(self, worker: LocalWorker) -> None:
        for fd in (worker.command_fd, worker.pidfd):
            self._desk.loop.unwatch(fd)
        worker.close()

    def _check_over(self) -> None:
        if self.is_ending and not self.is_over and not self.live_workers():
            self.is_over = True
            self._cancel_deadline()
            self._report_echoes()
            self._desk.batch.flush()
            stopped = AttemptStopped(attempt=self.attempt, exits=tuple(self._ended))
            self._desk.outbox.push(stopped)
            self._on_over(self)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _cause_of(signum: int | None) -> str:
    return "exit" if signum is None else "signal"
