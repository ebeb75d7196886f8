"""Workers, forkserver and agent are killed: every death is reported, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from midwatch.logbook.wire import Resumed, StepSample
from midwatch.operator.agent.reports import (
    AgentNote,
    AgentStatus,
    AttemptStopped,
    StartFailed,
    WorkerExited,
    WorkerMessages,
    WorkersStarted,
)
from midwatch.tests.support.agents import Site, is_running, site, wait_gone

pytestmark = pytest.mark.chaos


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as running:
        yield running


def begin(agent: Site, attempt: int, **trainer: object) -> dict[int, int]:
    """Start two workers and wait until both train."""
    agent.supervisor.start(agent.plan(attempt, **trainer))
    report = agent.recorder.wait(WorkersStarted, lambda report: report.attempt == attempt)
    for rank in (0, 1):
        agent.recorder.wait_message(Resumed, attempt, rank=rank)
    return report.pids


def exited(agent: Site, rank: int) -> WorkerExited:
    return agent.recorder.wait(WorkerExited, lambda report: report.exit.rank == rank)


# --- how a worker ends ---


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGABRT])
def test_a_worker_killed_by_a_signal_is_reported(agent: Site, signum: signal.Signals) -> None:
    pids = begin(agent, 1)
    agent.recorder.wait_message(StepSample, 1)
    os.kill(pids[1], signum)
    report = exited(agent, 1)
    assert (report.exit.pid, report.exit.signal, report.exit.exit_code) == (pids[1], signum, None)
    assert report.cause == "signal"
    assert report.attempt == 1
    assert is_running(pids[0])


def test_a_crash_leaves_its_python_stack_in_the_log_tail(agent: Site) -> None:
    pids = begin(agent, 1)
    os.kill(pids[1], signal.SIGSEGV)
    tail = exited(agent, 1).log_tail
    assert "Fatal Python error: Segmentation fault" in tail
    assert "fake_trainer.py" in tail


def test_a_stopped_worker_can_be_killed(agent: Site) -> None:
    pids = begin(agent, 1)
    os.kill(pids[1], signal.SIGSTOP)
    os.kill(pids[1], signal.SIGKILL)
    assert exited(agent, 1).exit.signal == signal.SIGKILL


@pytest.mark.parametrize("code", [0, 1, 42])
def test_an_exit_code_is_reported(agent: Site, code: int) -> None:
    begin(agent, 1, at=5, **{"return": code})
    report = exited(agent, 0)
    assert (report.exit.exit_code, report.exit.signal, report.cause) == (code, None, "exit")
    assert report.step == 5


def test_an_exception_is_in_the_log_tail_after_everything_said_before(agent: Site) -> None:
    begin(agent, 1, at=7, **{"raise": "the optimizer is on fire"})
    report = exited(agent, 0)
    assert report.exit.exit_code == 1
    assert "RuntimeError: the optimizer is on fire" in report.log_tail
    assert report.step == 7
    said = [
        message.step
        for earlier in agent.recorder.all_of(WorkerMessages)
        if earlier.seq < report.seq
        for _, message in earlier.batch
        if isinstance(message, StepSample)
    ]
    assert said == list(range(1, 8))


def test_sys_exit_counts_as_an_exit(agent: Site) -> None:
    begin(agent, 1, at=2, exit="out of coffee")
    report = exited(agent, 0)
    assert report.exit.exit_code == 1
    assert "out of coffee" in report.log_tail


def test_all_workers_killed_at_once_are_all_reported(agent: Site) -> None:
    agent.supervisor.start(agent.plan(1, ranks=range(8)))
    pids = agent.recorder.wait(WorkersStarted).pids
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    for rank, pid in pids.items():
        assert exited(agent, rank).exit.pid == pid
    agent.supervisor.start(agent.plan(2))
    agent.recorder.wait_message(Resumed, 2, rank=1)


def test_a_worker_killed_while_its_attempt_is_being_replaced(agent: Site) -> None:
    for attempt in range(1, 6):
        pids = begin(agent, attempt)
        agent.supervisor.start(agent.plan(attempt + 1))
        os.kill(pids[attempt % 2], signal.SIGKILL)
        stopped = agent.recorder.wait(
            AttemptStopped, lambda report, attempt=attempt: report.attempt == attempt
        )
        alone = {r.exit.rank for r in agent.recorder.all_of(WorkerExited) if r.attempt == attempt}
        assert alone | {exit.rank for exit in stopped.exits} == {0, 1}
        assert not any(is_running(pid) for pid in pids.values())


@pytest.mark.parametrize("kind", ["in its group", "escape"])
def test_what_a_worker_started_dies_with_it(agent: Site, kind: str) -> None:
    pids = begin(agent, 1, at=2, grandchild=kind)
    grandchild = int(agent.wait_log(1, 0, "grandchild")[0])
    assert is_running(grandchild)
    os.kill(pids[0], signal.SIGKILL)
    exited(agent, 0)
    if kind == "escape":
        # Out of its group it can only be found once no worker is left that it might belong to.
        agent.supervisor.stop(1)
    wait_gone([grandchild])


# --- the forkserver ends ---


def test_no_worker_survives_its_forkserver(agent: Site) -> None:
    pids = begin(agent, 1, deaf=True, at=2, grandchild="in its group")
    grandchild = int(agent.wait_log(1, 0, "grandchild")[0])
    os.kill(agent.forkserver_pid(), signal.SIGKILL)
    wait_gone([*pids.values(), grandchild])
    for rank in (0, 1):
        report = exited(agent, rank)
        assert report.cause in ("forkserver-lost", "unknown")
        assert report.exit.pid == pids[rank]
    note = agent.recorder.wait(AgentNote)
    assert note.code == "forkserver-lost"
    assert "-9" in note.message


def test_a_new_forkserver_takes_the_next_attempt(agent: Site) -> None:
    begin(agent, 1)
    first = agent.forkserver_pid()
    os.kill(first, signal.SIGKILL)
    agent.supervisor.start(agent.plan(2))
    pids = agent.recorder.wait(WorkersStarted, lambda report: report.attempt == 2).pids
    assert all(is_running(pid) for pid in pids.values())
    assert agent.forkserver_pid() != first


def test_a_forkserver_killed_again_and_again_comes_back(agent: Site) -> None:
    for attempt in range(1, 4):
        begin(agent, attempt)
        os.kill(agent.forkserver_pid(), signal.SIGKILL)
    agent.supervisor.start(agent.plan(9))
    agent.recorder.wait_message(Resumed, 9, rank=1)


def test_a_stopped_forkserver_hides_no_death_and_is_replaced(tmp_path: Path) -> None:
    with site(tmp_path, fork_deadline_s=3.0) as agent:
        pids = begin(agent, 1)
        stuck = agent.forkserver_pid()
        os.kill(stuck, signal.SIGSTOP)
        os.kill(pids[1], signal.SIGKILL)
        report = exited(agent, 1)
        # Nobody reaps it, and the kernel still knows.
        assert (report.cause, report.exit.signal) == ("signal", signal.SIGKILL)
        agent.supervisor.start(agent.plan(2))
        failed = agent.recorder.wait(StartFailed)
        assert (failed.attempt, failed.code) == (2, "forkserver-stuck")
        wait_gone([*pids.values(), stuck])
        agent.supervisor.start(agent.plan(3))
        agent.recorder.wait_message(Resumed, 3, rank=1)


def test_a_forkserver_told_to_end_ends_its_workers(agent: Site) -> None:
    pids = begin(agent, 1, deaf=True)
    os.kill(agent.forkserver_pid(), signal.SIGTERM)
    wait_gone(list(pids.values()))
    agent.recorder.wait(AgentStatus, lambda status: status.forkserver == "starting")
    agent.recorder.wait(AgentNote, lambda note: note.code == "forkserver-lost")


# --- the agent ends ---


@contextmanager
def agent_process(folder: Path, grandchild: str) -> Iterator[tuple[int, dict[str, object]]]:
    """Run an agent as a process; yields its pid and those of all that belongs to it."""
    command = [sys.executable, "-m", "midwatch.tests.support.agent_process", str(folder)]
    with subprocess.Popen([*command, grandchild], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield process.pid, json.loads(process.stdout.readline())
        finally:
            process.kill()


def everybody(pids: dict[str, object]) -> list[int]:
    workers = pids["workers"]
    assert isinstance(workers, list)
    return [*workers, int(str(pids["forkserver"])), int(str(pids["grandchild"]))]


@pytest.mark.parametrize("grandchild", ["in its group", "escape"])
def test_nothing_survives_an_agent_that_is_killed(tmp_path: Path, grandchild: str) -> None:
    with agent_process(tmp_path, grandchild) as (agent_pid, pids):
        assert all(is_running(pid) for pid in everybody(pids))
        os.kill(agent_pid, signal.SIGKILL)
        wait_gone(everybody(pids))


def test_workers_die_with_their_forkserver_even_when_their_agent_cannot_act(tmp_path: Path) -> None:
    with agent_process(tmp_path, "in its group") as (agent_pid, pids):
        workers = [pid for pid in everybody(pids) if pid != pids["grandchild"]]
        os.kill(agent_pid, signal.SIGSTOP)
        os.kill(int(str(pids["forkserver"])), signal.SIGKILL)
        wait_gone(workers)
        # With both of its guardians gone a worker's own subprocess is the worker's to end.
        os.kill(int(str(pids["grandchild"])), signal.SIGKILL)


def test_an_agent_that_ends_orderly_without_closing_leaves_nothing(tmp_path: Path) -> None:
    with agent_process(tmp_path, "in its group") as (agent_pid, pids):
        os.kill(agent_pid, signal.SIGINT)
        wait_gone(everybody(pids))
