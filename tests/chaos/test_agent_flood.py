"""Workers say too much, or nonsense, and the reader is slow or away: supervision goes on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from midwatch.logbook.wire import Applied, Command, Resumed, StepSample
from midwatch.operator.agent.reports import (
    AgentNote,
    AgentStatus,
    RankSamples,
    WorkerExited,
    WorkerMessages,
    WorkersStarted,
)
from midwatch.tests.support.agents import Site, is_running, site, wait_gone, wait_until

pytestmark = pytest.mark.chaos


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as running:
        yield running


def step_numbers(agent: Site, attempt: int = 1) -> list[int]:
    return [
        message.step
        for report in agent.recorder.all_of(WorkerMessages)
        if report.attempt == attempt
        for _, message in report.batch
        if isinstance(message, StepSample)
    ]


def test_no_step_of_a_flood_is_lost(agent: Site) -> None:
    agent.supervisor.start(agent.plan(1, at=0, flood=20_000))
    wait_until(lambda: len(step_numbers(agent)) >= 20_000, "20000 samples")
    assert step_numbers(agent)[:20_000] == list(range(20_000))


def test_a_flood_from_one_worker_hides_no_death_of_another(agent: Site) -> None:
    agent.supervisor.start(agent.plan(1, at=0, flood=200_000))
    pids = agent.recorder.wait(WorkersStarted).pids
    agent.recorder.wait_message(StepSample, 1)
    os.kill(pids[1], signal.SIGKILL)
    exited = agent.recorder.wait(WorkerExited)
    assert exited.exit.rank == 1
    assert len(step_numbers(agent)) < 200_000


def test_last_words_that_still_lie_in_the_pipe_come_before_the_exit(agent: Site) -> None:
    agent.supervisor.start(agent.plan(1, at=50, flood=3_000, **{"return": 9}))
    pids = agent.recorder.wait(WorkersStarted).pids
    gone = threading.Event()
    # The agent is busy while the worker fills its pipe and ends.
    agent.supervisor._loop.post(gone.wait)
    wait_gone([pids[0]])
    gone.set()
    exited = agent.recorder.wait(WorkerExited, lambda report: report.exit.rank == 0)
    assert exited.exit.exit_code == 9
    before = [r for r in agent.recorder.all_of(WorkerMessages) if r.seq < exited.seq]
    steps = [m for r in before for _, m in r.batch if isinstance(m, StepSample)]
    assert len(steps) == 3_050


def test_a_reader_that_blocks_delays_no_killing(agent: Site) -> None:
    agent.supervisor.start(agent.plan(1))
    old = agent.recorder.wait(WorkersStarted).pids
    agent.recorder.block()
    agent.supervisor.start(agent.plan(2))
    wait_gone(list(old.values()))
    agent.recorder.release()
    new = agent.recorder.wait(WorkersStarted, lambda report: report.attempt == 2).pids
    assert all(is_running(pid) for pid in new.values())


def test_a_reader_that_lags_gets_every_step_and_fewer_samples(agent: Site) -> None:
    agent.supervisor.start(agent.plan(1, at=50, samples=30_000, flood=500))
    agent.recorder.wait_message(StepSample, 1)
    agent.recorder.block()
    wait_until(lambda: agent.supervisor._keeper._batch.samples_dropped_total > 0, "samples dropped")
    agent.recorder.release()
    agent.recorder.wait(AgentStatus, lambda status: status.samples_dropped_total > 0)
    wait_until(lambda: 60 in step_numbers(agent)[550:], "training goes on")
    numbers = step_numbers(agent)
    assert numbers[:50] == list(range(1, 51))
    assert numbers[50:550] == list(range(500))
    assert numbers[550:560] == list(range(51, 61))
    samples = agent.recorder.all_of(RankSamples)
    assert samples[-1].dropped_total > 0


def test_what_was_not_acknowledged_can_be_fetched_again(agent: Site) -> None:
    agent.supervisor.start(agent.plan(1))
    agent.recorder.wait_message(Resumed, 1, rank=1)
    started = agent.recorder.wait(WorkersStarted)
    assert started in agent.supervisor.unacknowledged()
    agent.supervisor.acknowledge(started.seq)
    again = agent.supervisor.unacknowledged()
    assert all(report.seq > started.seq for report in again)
    seqs = [report.seq for report in again]
    assert seqs == sorted(seqs)


def test_reports_carry_rising_numbers_and_who_speaks(agent: Site) -> None:
    agent.supervisor.start(agent.plan(1))
    agent.recorder.wait(AgentStatus, lambda status: any(row.step > 20 for row in status.rows))
    seqs = [report.seq for report in agent.recorder.reports]
    assert seqs == sorted(set(seqs))
    assert {report.node for report in agent.recorder.reports} == {"node-a"}
    assert {report.agent for report in agent.recorder.reports} == {agent.supervisor.agent}


def test_a_reader_away_for_long_costs_bounded_memory(tmp_path: Path) -> None:
    with site(tmp_path, retain_bytes_max=200_000) as agent:
        agent.recorder.block()
        agent.supervisor.start(agent.plan(1, at=5, flood=20_000))
        outbox = agent.supervisor._outbox
        wait_until(lambda: outbox.lost_total > 0, "reports lost")
        assert outbox._bytes <= 200_000
        agent.recorder.release()
        # The flood may cost a few reports more after a status that tells of some.
        agent.recorder.wait(
            AgentStatus, lambda status: status.reports_lost_total == outbox.lost_total
        )


def test_nonsense_on_the_pipe_is_noted_and_the_worker_still_watched(agent: Site) -> None:
    agent.supervisor.start(agent.plan(1, at=3, garbage=True))
    note = agent.recorder.wait(AgentNote)
    assert (note.code, note.rank, note.attempt) == ("bad-frame", 0, 1)
    agent.supervisor.send(1, Command(1, "lr-factor", 0.5))
    agent.recorder.wait_message(Applied, 1, rank=1)
    pids = agent.recorder.wait(WorkersStarted).pids
    os.kill(pids[0], signal.SIGKILL)
    exited = agent.recorder.wait(WorkerExited)
    assert (exited.exit.rank, exited.exit.signal) == (0, 9)


def test_a_fault_of_the_agent_itself_is_noted_and_supervision_goes_on(
    agent: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.supervisor.start(agent.plan(1))
    agent.recorder.wait_message(Resumed, 1)
    monkeypatch.setattr(
        "midwatch.operator.agent.watch.HangWatch.look", lambda self: 1 / 0, raising=True
    )
    note = agent.recorder.wait(AgentNote)
    assert note.code == "agent-error"
    assert "ZeroDivisionError" in note.message
    monkeypatch.undo()
    pids = agent.recorder.wait(WorkersStarted).pids
    os.kill(pids[1], signal.SIGKILL)
    assert agent.recorder.wait(WorkerExited).exit.rank == 1


def test_a_log_that_grows_too_large_is_cut_while_it_is_written(tmp_path: Path) -> None:
    with site(tmp_path, log_bytes_max=4096) as agent:
        agent.supervisor.start(agent.plan(1, chatter=True))
        note = agent.recorder.wait(AgentNote)
        assert note.code == "log-cut"
        log = agent.folder / "logs" / "attempt-00001.rank-00000.log"
        agent.recorder.wait(AgentNote, lambda again: again.seq > note.seq)
        # The writer may slip a line in before the mark.
        wait_until(lambda: b"[midwatch: " in log.read_bytes(), "the cut is marked")
