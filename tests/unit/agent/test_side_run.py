"""A preflight on a node: beside nothing that trains, ended by what does, and no attempt itself."""

from __future__ import annotations

from pathlib import Path

from midwatch.logbook.wire import Resumed
from midwatch.operator.agent.plan import Preload
from midwatch.operator.agent.reports import (
    AttemptStopped,
    StartFailed,
    WorkerExited,
    WorkersStarted,
)
from midwatch.tests.support.agents import FAKE, Site, is_running, site, wait_gone


def started(agent: Site, attempt: int) -> list[int]:
    report = agent.recorder.wait(WorkersStarted, lambda report: report.attempt == attempt)
    return list(report.pids.values())


def test_it_runs_on_an_idle_node_and_reports_under_its_own_number(agent: Site) -> None:
    agent.supervisor.start(agent.plan(-1))
    pids = started(agent, -1)
    agent.recorder.wait_message(Resumed, -1, rank=1)
    assert all(is_running(pid) for pid in pids)


def test_an_attempt_with_workers_here_ends_it_first(agent: Site) -> None:
    agent.supervisor.start(agent.plan(-1))
    old = started(agent, -1)
    agent.supervisor.start(agent.plan(1))
    new = started(agent, 1)
    assert not any(is_running(pid) for pid in old)
    assert all(is_running(pid) for pid in new)
    assert agent.recorder.all_of(WorkerExited) == []


def test_an_attempt_elsewhere_leaves_it_alone(agent: Site) -> None:
    agent.supervisor.start(agent.plan(-1))
    pids = started(agent, -1)
    agent.supervisor.start(agent.plan(1, ranks=()))
    agent.recorder.wait(WorkersStarted, lambda report: report.attempt == 1)
    assert all(is_running(pid) for pid in pids)


def test_it_is_refused_where_an_attempt_has_workers(agent: Site) -> None:
    agent.supervisor.start(agent.plan(1))
    pids = started(agent, 1)
    agent.supervisor.start(agent.plan(-1))
    failed = agent.recorder.wait(StartFailed)
    assert (failed.attempt, failed.code) == (-1, "node-busy")
    assert all(is_running(pid) for pid in pids)


def test_a_newer_one_takes_the_place_of_an_older_and_never_the_other_way_round(
    agent: Site,
) -> None:
    agent.supervisor.start(agent.plan(-2))
    second = started(agent, -2)
    agent.supervisor.start(agent.plan(-1))
    agent.supervisor.start(agent.plan(-3))
    third = started(agent, -3)
    assert not any(is_running(pid) for pid in second)
    assert all(is_running(pid) for pid in third)
    assert [r.attempt for r in agent.recorder.all_of(WorkersStarted)] == [-2, -3]


def test_it_ends_on_request_and_cannot_start_again(agent: Site) -> None:
    agent.supervisor.start(agent.plan(-1))
    pids = started(agent, -1)
    agent.supervisor.stop(-1)
    agent.recorder.wait(AttemptStopped, lambda report: report.attempt == -1)
    wait_gone(pids)
    agent.supervisor.start(agent.plan(-1))
    agent.supervisor.start(agent.plan(-2))
    started(agent, -2)
    assert [r.attempt for r in agent.recorder.all_of(WorkersStarted)] == [-1, -2]


def test_stopping_an_older_one_leaves_the_newer_alone(agent: Site) -> None:
    agent.supervisor.start(agent.plan(-2))
    pids = started(agent, -2)
    agent.supervisor.stop(-1)
    agent.supervisor.start(agent.plan(1, ranks=()))
    agent.recorder.wait(WorkersStarted, lambda report: report.attempt == 1)
    assert all(is_running(pid) for pid in pids)


def test_one_whose_workers_cannot_be_forked_is_over_and_blocks_nobody(tmp_path: Path) -> None:
    preload = Preload(f"{FAKE}:preload", {"failing_forks": 2})
    with site(tmp_path, preload=(preload,)) as agent:
        agent.supervisor.start(agent.plan(-1))
        failed = agent.recorder.wait(StartFailed)
        assert (failed.attempt, failed.code) == (-1, "fork-failed")
        agent.recorder.wait(AttemptStopped, lambda report: report.attempt == -1)
        agent.supervisor.start(agent.plan(-2))
        started(agent, -2)
        agent.supervisor.start(agent.plan(1))
        started(agent, 1)


def test_closing_the_agent_ends_it(agent: Site) -> None:
    agent.supervisor.start(agent.plan(-1))
    pids = started(agent, -1)
    agent.supervisor.close()
    wait_gone(pids)
