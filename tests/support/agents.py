"""Drives a Supervisor over real processes, and waits for what it reports."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from midwatch.health.nodes.liveness import HangLimits
from midwatch.logbook.wire import Mesh, WorkerStart
from midwatch.operator.agent.plan import AgentConfig, LocalPlan, Preload
from midwatch.operator.agent.reports import AgentReport, AgentStatus, WorkerMessages
from midwatch.operator.agent.supervisor import Supervisor

FAKE = "midwatch.tests.support.fake_trainer"
DEADLINE_S = 30.0
R = TypeVar("R")


class Recorder:
    """A reader of reports that tests can wait on; block() makes it a slow one."""

    def __init__(self) -> None:
        self.reports: list[AgentReport] = []
        self._changed = threading.Condition()
        self._open = threading.Event()
        self._open.set()

    def __call__(self, reports: Sequence[AgentReport]) -> None:
        self._open.wait()
        with self._changed:
            self.reports.extend(reports)
            self._changed.notify_all()

    def block(self) -> None:
        """Make the reader block in its next call, until release()."""
        self._open.clear()

    def release(self) -> None:
        """Let a blocked reader go on."""
        self._open.set()

    def all_of(self, kind: type[R]) -> list[R]:
        """Return the reports of one kind so far."""
        with self._changed:
            return [report for report in self.reports if isinstance(report, kind)]

    def wait(self, kind: type[R], matches: Callable[[R], bool] = lambda _: True) -> R:
        """Return the first report of a kind that matches, waiting for it up to a deadline."""
        deadline_s = time.monotonic() + DEADLINE_S
        seen = 0
        with self._changed:
            while True:
                for report in self.reports[seen:]:
                    if isinstance(report, kind) and matches(report):
                        return report
                seen = len(self.reports)
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or not self._changed.wait(left_s):
                    others = [r for r in self.reports if not isinstance(r, AgentStatus)]
                    raise AssertionError(f"no such {kind.__name__}; there were {others[-20:]}")

    def wait_message(self, kind: type[R], attempt: int, rank: int | None = None) -> R:
        """Return the first worker message of a kind, from an attempt and perhaps a rank."""
        found: list[R] = []

        def holds(report: WorkerMessages) -> bool:
            if report.attempt == attempt:
                found.extend(
                    message
                    for sender, message in report.batch
                    if isinstance(message, kind) and rank in (None, sender)
                )
            return bool(found)

        self.wait(WorkerMessages, holds)
        return found[0]


def wait_until(is_true: Callable[[], bool], what: str) -> None:
    """Poll a fact that nobody can notify us of. Raises: AssertionError past the deadline."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline_s, f"never came true: {what}"
        time.sleep(0.005)


def is_running(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b") ")[2][:1] not in (b"Z", b"X")


def wait_gone(pids: Sequence[int]) -> None:
    """Wait until none of the processes runs."""
    wait_until(lambda: not any(is_running(pid) for pid in pids), f"{pids} ended")


def agent_config(folder: Path, **changes: Any) -> AgentConfig:
    """Return a config with the fake trainer preloaded and quick rhythms."""
    settings: dict[str, Any] = {
        "node": "node-a",
        "work_dir": str(folder / "agent"),
        "preload": (Preload(f"{FAKE}:preload", {}),),
        "hang": HangLimits(multiple=6.0, min_s=2.0, max_s=10.0),
        "status_s": 0.2,
        "poll_s": 0.02,
    }
    return AgentConfig(**{**settings, **changes})


def worker_start(attempt: int, rank: int, port: int, world: int, **trainer: Any) -> WorkerStart:
    """Return the start order of one fake worker."""
    return WorkerStart(
        run="run-a",
        run_dir="unused",
        attempt=attempt,
        rank=rank,
        local_rank=rank,
        world_size=world,
        node="node-a",
        mesh=Mesh(dp_shard=world, tp=1),
        rendezvous_host="127.0.0.1",
        rendezvous_port=port,
        trainer=trainer,
    )


class Site:
    """A supervisor with its recorder and folder."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder = folder
        self.recorder = Recorder()
        self.supervisor = Supervisor(agent_config(folder, **changes), self.recorder)

    def plan(self, attempt: int, ranks: Sequence[int] = (0, 1), **trainer: Any) -> LocalPlan:
        """Return a plan for some local ranks of the fake trainer."""
        port = self.supervisor.rendezvous[1]
        starts = [worker_start(attempt, rank, port, len(ranks), **trainer) for rank in ranks]
        return LocalPlan(
            attempt=attempt,
            workers=tuple(starts),
            entry_point=f"{FAKE}:main",
            log_dir=str(self.folder / "logs"),
            env={"FAKE": "yes"},
        )

    def log(self, attempt: int, rank: int) -> str:
        """Return what a worker has printed so far."""
        path = self.folder / "logs" / f"attempt-{attempt:05d}.rank-{rank:05d}.log"
        return path.read_text() if path.exists() else ""

    def wait_log(self, attempt: int, rank: int, word: str) -> list[str]:
        """Return the words after `word` at a line's start, once it has been printed."""
        lines: list[str] = []

        def has_word() -> bool:
            whole = self.log(attempt, rank).rpartition("\n")[0].splitlines()
            lines[:] = [line for line in whole if line.startswith(word)]
            return bool(lines)

        wait_until(has_word, f"{word!r} in the log of rank {rank}")
        return lines[0].split()[1:]

    def forkserver_pid(self) -> int:
        """Return the process that forks this agent's workers."""
        pids = [int(pid) for pid in child_pids(os.getpid()) if _is_forkserver(int(pid))]
        assert len(pids) == 1, pids
        return pids[0]


def child_pids(pid: int) -> list[int]:
    """Return the children of any thread of a process."""
    words: list[str] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            words += (task / "children").read_text().split()
        except OSError:
            continue  # The thread has ended meanwhile.
    return [int(word) for word in words]


def _is_forkserver(pid: int) -> bool:
    try:
        return b"agent.forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@contextmanager
def site(folder: Path, **changes: Any) -> Iterator[Site]:
    """Run a supervisor for the length of a test."""
    running = Site(folder, **changes)
    try:
        yield running
    finally:
        running.recorder.release()
        running.supervisor.close()
