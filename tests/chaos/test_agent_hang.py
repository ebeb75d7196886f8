"""Workers stop moving: the alarm names the one to blame and shows every stack."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from midwatch.health.nodes.liveness import HangLimits
from midwatch.logbook.wire import Phase, Resumed, StepSample
from midwatch.operator.agent.reports import (
    AgentNote,
    AgentStatus,
    AttemptStopped,
    HangSuspected,
    StacksDumped,
    WorkerExited,
    WorkersStarted,
)
from midwatch.tests.support.agents import Site, site

pytestmark = pytest.mark.chaos


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as running:
        yield running


def begin(agent: Site, attempt: int = 1, **trainer: object) -> dict[int, int]:
    agent.supervisor.start(agent.plan(attempt, **trainer))
    report = agent.recorder.wait(WorkersStarted, lambda report: report.attempt == attempt)
    for rank in (0, 1):
        agent.recorder.wait_message(Resumed, attempt, rank=rank)
    agent.recorder.wait_message(StepSample, attempt)
    return report.pids


def beyond(agent: Site, step: int) -> AgentStatus:
    """Wait until every rank has completed more steps."""

    def has_passed(status: AgentStatus) -> bool:
        return len(status.rows) == 2 and min(row.step for row in status.rows) > step

    return agent.recorder.wait(AgentStatus, has_passed)


def test_a_stopped_worker_is_blamed_with_stacks_of_all(agent: Site) -> None:
    pids = begin(agent)
    beyond(agent, 5)
    os.kill(pids[1], signal.SIGSTOP)
    report = agent.recorder.wait(HangSuspected)
    assert report.attempt == 1
    assert report.rank == 1
    assert "stopped (state T)" in report.reason
    assert report.waited_s > report.deadline_s >= 1.0
    assert report.median_step_s > 0
    states = {row.rank: row.state for row in report.rows}
    assert states[1] == "T"
    assert "fake_trainer.py" in report.stacks[0]
    assert "state T" in report.stacks[1]
    assert "/proc/" in report.stacks[1]
    agent.supervisor.start(agent.plan(2))
    stopped = agent.recorder.wait(AttemptStopped)
    assert {exit.rank for exit in stopped.exits} == {0, 1}
    agent.recorder.wait_message(Resumed, 2, rank=1)


def test_a_worker_that_stands_still_is_blamed_by_its_step(agent: Site) -> None:
    begin(agent, at=20, hang=True, faulty=1)
    report = agent.recorder.wait(HangSuspected)
    assert report.rank == 1
    by_rank = {row.rank: row for row in report.rows}
    assert (by_rank[1].step, by_rank[1].phase) == (20, Phase.FORWARD)
    assert by_rank[0].step > 20
    assert by_rank[1].age_s > 1.0
    assert "stand_still" in report.stacks[1]


def test_a_hang_is_told_once_and_again_after_progress(agent: Site) -> None:
    pids = begin(agent)
    beyond(agent, 5)
    os.kill(pids[1], signal.SIGSTOP)
    first = agent.recorder.wait(HangSuspected)
    os.kill(pids[1], signal.SIGCONT)
    at = beyond(agent, max(row.step for row in first.rows))
    assert len(agent.recorder.all_of(HangSuspected)) == 1
    os.kill(pids[1], signal.SIGSTOP)
    second = agent.recorder.wait(HangSuspected, lambda report: report.seq > at.seq)
    assert second.rank == 1


def test_nothing_is_said_before_the_first_step(agent: Site) -> None:
    agent.supervisor.start(agent.plan(1, at=0, pause_s=2.5))
    agent.recorder.wait_message(StepSample, 1)
    assert agent.recorder.all_of(HangSuspected) == []


def test_a_long_save_is_no_hang(agent: Site) -> None:
    begin(agent, at=20, save_s=2.5)
    beyond(agent, 25)
    assert agent.recorder.all_of(HangSuspected) == []


def test_a_step_within_the_deadline_is_no_hang(tmp_path: Path) -> None:
    limits = HangLimits(multiple=1.0, min_s=20.0, max_s=30.0)
    with site(tmp_path, hang=limits) as agent:
        begin(agent, at=20, pause_s=2.5)
        beyond(agent, 25)
        assert agent.recorder.all_of(HangSuspected) == []


def test_peers_of_a_dead_worker_are_not_suspected(agent: Site) -> None:
    pids = begin(agent, at=30, hang=True)
    beyond(agent, 5)
    os.kill(pids[1], signal.SIGKILL)
    exited = agent.recorder.wait(WorkerExited)
    later = agent.recorder.wait(
        AgentStatus,
        lambda status: status.seq > exited.seq and any(row.age_s > 3.0 for row in status.rows),
    )
    assert [row.rank for row in later.rows] == [0]
    assert agent.recorder.all_of(HangSuspected) == []


def test_stacks_can_be_asked_for_and_disturb_nobody(agent: Site) -> None:
    pids = begin(agent)
    for _ in range(3):
        agent.supervisor.dump_stacks(1)
    report = agent.recorder.wait(StacksDumped)
    assert set(report.stacks) == {0, 1}
    assert all("most recent call first" in text for text in report.stacks.values())
    assert {row.rank for row in report.rows} == {0, 1}
    at = max(row.step for row in report.rows)
    beyond(agent, at)
    assert agent.recorder.all_of(WorkerExited) == []
    assert set(pids) == {0, 1}


def test_stacks_can_be_asked_for_from_the_first_moment_on(agent: Site) -> None:
    agent.supervisor.start(agent.plan(1))
    agent.supervisor.dump_stacks(1)
    agent.recorder.wait(WorkersStarted)
    agent.supervisor.dump_stacks(1)
    agent.recorder.wait(StacksDumped, lambda report: len(report.stacks) == 2)
    agent.recorder.wait_message(Resumed, 1, rank=1)
    assert agent.recorder.all_of(WorkerExited) == []


def test_stacks_of_an_attempt_that_is_not_here_are_refused(agent: Site) -> None:
    begin(agent)
    agent.supervisor.dump_stacks(7)
    note = agent.recorder.wait(AgentNote)
    assert (note.code, note.attempt) == ("unknown-attempt", 7)


def test_a_death_during_a_stack_dump_is_reported_at_once(agent: Site) -> None:
    pids = begin(agent)
    os.kill(pids[0], signal.SIGSTOP)
    agent.supervisor.dump_stacks(1)
    os.kill(pids[1], signal.SIGKILL)
    exited = agent.recorder.wait(WorkerExited)
    assert exited.exit.rank == 1
    dumped = agent.recorder.wait(StacksDumped)
    assert "state T" in dumped.stacks[0]
