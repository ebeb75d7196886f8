"""Attempts fence everything: an older one is refused, and its workers end first."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from midwatch.logbook.wire import Applied, Command, Finished, Resumed
from midwatch.operator.agent.reports import (
    AgentNote,
    AttemptStopped,
    StartFailed,
    WorkerExited,
    WorkersStarted,
)
from midwatch.tests.support.agents import Site, is_running, site, wait_until


def started(agent: Site, attempt: int) -> list[int]:
    report = agent.recorder.wait(WorkersStarted, lambda report: report.attempt == attempt)
    return list(report.pids.values())


def stopped(agent: Site, attempt: int) -> AttemptStopped:
    return agent.recorder.wait(AttemptStopped, lambda report: report.attempt == attempt)


def test_a_newer_attempt_ends_and_reaps_the_older_one_first(agent: Site) -> None:
    agent.supervisor.start(agent.plan(1))
    old = started(agent, 1)
    agent.recorder.wait_message(Resumed, 1, rank=1)
    agent.supervisor.start(agent.plan(2))
    new = started(agent, 2)
    assert not any(is_running(pid) for pid in old)
    assert all(is_running(pid) for pid in new)
    ended = stopped(agent, 1)
    assert sorted((exit.pid, exit.signal) for exit in ended.exits) == sorted(
        (pid, 9) for pid in old
    )
    order = [type(report) for report in agent.recorder.reports]
    assert order.index(AttemptStopped) < len(order) - 1 - order[::-1].index(WorkersStarted)
    assert agent.recorder.all_of(WorkerExited) == []


def test_an_older_attempt_is_refused(agent: Site) -> None:
    agent.supervisor.start(agent.plan(5))
    pids = started(agent, 5)
    agent.supervisor.start(agent.plan(4))
    failed = agent.recorder.wait(StartFailed)
    assert (failed.attempt, failed.code) == (4, "stale-attempt")
    assert all(is_running(pid) for pid in pids)


def test_the_same_attempt_again_changes_nothing(agent: Site) -> None:
    agent.supervisor.start(agent.plan(1))
    pids = started(agent, 1)
    agent.supervisor.start(agent.plan(1, ranks=(0, 1, 2)))
    agent.supervisor.send(1, Command(1, "lr-factor", 0.5))
    agent.recorder.wait_message(Applied, 1, rank=1)
    assert all(is_running(pid) for pid in pids)
    assert len(agent.recorder.all_of(WorkersStarted)) == 1
    assert agent.recorder.all_of(StartFailed) == []


def test_a_contradictory_plan_leaves_the_running_attempt_alone(agent: Site) -> None:
    agent.supervisor.start(agent.plan(1))
    pids = started(agent, 1)
    agent.supervisor.start(msgspec.structs.replace(agent.plan(1), attempt=2))
    assert agent.recorder.wait(StartFailed).code == "bad-plan"
    assert all(is_running(pid) for pid in pids)


def test_many_starts_in_a_row_leave_only_the_newest(agent: Site) -> None:
    for attempt in range(1, 8):
        agent.supervisor.start(agent.plan(attempt))
    pids = started(agent, 7)
    agent.recorder.wait_message(Resumed, 7, rank=1)
    everybody = [
        pid for report in agent.recorder.all_of(WorkersStarted) for pid in report.pids.values()
    ]
    assert [pid for pid in everybody if is_running(pid)] == pids
    outcomes = {report.attempt for report in agent.recorder.all_of(WorkersStarted)}
    outcomes |= {report.attempt for report in agent.recorder.all_of(StartFailed)}
    outcomes |= {report.attempt for report in agent.recorder.all_of(AttemptStopped)}
    assert outcomes == set(range(1, 8))


def test_stop_ends_the_attempt_and_fences_it(agent: Site) -> None:
    agent.supervisor.start(agent.plan(3))
    pids = started(agent, 3)
    agent.supervisor.stop(3)
    assert sorted(exit.pid for exit in stopped(agent, 3).exits) == sorted(pids)
    assert not any(is_running(pid) for pid in pids)
    agent.supervisor.start(agent.plan(3))
    agent.supervisor.start(agent.plan(4))
    started(agent, 4)
    assert {report.attempt for report in agent.recorder.all_of(WorkersStarted)} == {3, 4}
    assert len(agent.recorder.all_of(AttemptStopped)) == 1


def test_stop_of_an_older_attempt_spares_the_newer_one(agent: Site) -> None:
    agent.supervisor.start(agent.plan(3))
    pids = started(agent, 3)
    agent.supervisor.stop(2)
    assert stopped(agent, 2).exits == ()
    assert all(is_running(pid) for pid in pids)


def test_stop_of_an_attempt_yet_unseen_ends_what_is_older(agent: Site) -> None:
    agent.supervisor.start(agent.plan(3))
    pids = started(agent, 3)
    agent.supervisor.stop(9)
    assert stopped(agent, 9).exits == ()
    assert not any(is_running(pid) for pid in pids)
    agent.supervisor.start(agent.plan(8))
    assert agent.recorder.wait(StartFailed).code == "stale-attempt"


def test_a_grace_lets_workers_end_by_themselves(agent: Site) -> None:
    agent.supervisor.start(agent.plan(1))
    started(agent, 1)
    agent.recorder.wait_message(Resumed, 1, rank=1)
    agent.supervisor.stop(1, grace_s=30.0)
    assert {exit.signal for exit in stopped(agent, 1).exits} == {15}


def test_a_grace_ends(agent: Site) -> None:
    agent.supervisor.start(agent.plan(1, at=0, ignore_term=True, hang=True))
    started(agent, 1)
    agent.wait_log(1, 0, "ignoring")
    agent.supervisor.stop(1, grace_s=0.2)
    signals = {exit.rank: exit.signal for exit in stopped(agent, 1).exits}
    assert signals == {0: 9, 1: 15}


def test_a_stop_without_grace_cuts_an_earlier_grace_short(agent: Site) -> None:
    agent.supervisor.start(agent.plan(1, at=0, ignore_term=True, hang=True))
    started(agent, 1)
    agent.wait_log(1, 0, "ignoring")
    agent.supervisor.stop(1, grace_s=600.0)
    agent.supervisor.stop(1)
    assert len(stopped(agent, 1).exits) == 2


def test_a_new_attempt_does_not_wait_for_an_old_one_s_grace(agent: Site) -> None:
    agent.supervisor.start(agent.plan(1, at=0, ignore_term=True, hang=True))
    started(agent, 1)
    agent.wait_log(1, 0, "ignoring")
    agent.supervisor.stop(1, grace_s=600.0)
    agent.supervisor.start(agent.plan(2))
    started(agent, 2)


# --- commands ---


def test_a_command_reaches_every_local_worker_even_before_its_birth(agent: Site) -> None:
    agent.supervisor.start(agent.plan(1))
    agent.supervisor.send(1, Command(1, "lr-factor", 0.5))
    for rank in (0, 1):
        applied = agent.recorder.wait_message(Applied, 1, rank=rank)
        assert (applied.rank, applied.seq, applied.readback) == (rank, 1, {"value": 0.5})
    agent.supervisor.send(1, Command(2, "stop"))
    for rank in (0, 1):
        agent.recorder.wait_message(Finished, 1, rank=rank)
    for rank in (0, 1):
        exited = agent.recorder.wait(WorkerExited, lambda report, rank=rank: _is(report, rank))
        assert exited.exit.exit_code == 0


def _is(report: WorkerExited, rank: int) -> bool:
    return report.exit.rank == rank


@pytest.mark.parametrize(("attempt", "code"), [(2, "stale-command"), (4, "unknown-attempt")])
def test_a_command_of_another_attempt_is_refused(agent: Site, attempt: int, code: str) -> None:
    agent.supervisor.start(agent.plan(3))
    started(agent, 3)
    agent.supervisor.send(attempt, Command(1, "stop"))
    assert agent.recorder.wait(AgentNote).code == code
    agent.supervisor.send(3, Command(2, "lr-factor", 1.0))
    assert agent.recorder.wait_message(Applied, 3).seq == 2


def test_commands_to_a_worker_that_does_not_read_are_bounded(agent: Site) -> None:
    agent.supervisor.start(agent.plan(1, ranks=(1,), at=0, hang=True, faulty=1))
    started(agent, 1)
    agent.recorder.wait_message(Resumed, 1)
    for seq in range(1, 601):
        agent.supervisor.send(1, Command(seq, "lr-factor", 0.5, cause="c" * 4000))
    note = agent.recorder.wait(AgentNote)
    assert (note.code, note.rank) == ("command-lost", 1)
    agent.supervisor.stop(1)
    stopped(agent, 1)


# --- failures of starting ---


def test_a_log_folder_that_cannot_be_made_fails_the_start(agent: Site) -> None:
    (agent.folder / "file").touch()
    plan = msgspec.structs.replace(agent.plan(1), log_dir=str(agent.folder / "file" / "logs"))
    agent.supervisor.start(plan)
    assert agent.recorder.wait(StartFailed).code == "log-dir-unusable"


def test_a_failed_start_leaves_no_worker_and_the_next_one_runs(tmp_path: Path) -> None:
    with site(tmp_path, fork_deadline_s=0.0) as agent:
        agent.supervisor.start(agent.plan(1))
        assert agent.recorder.wait(StartFailed).code == "forkserver-stuck"
        stopped(agent, 1)
        note = agent.recorder.wait(AgentNote)
        assert note.code == "forkserver-lost"
        wait_until(lambda: len(agent.recorder.all_of(AgentNote)) == 1, "one loss")
