"""The controller dies: between ticks, or at any call of a port, before or after its effect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from midwatch.checkpoints.manifest import checkpoint_id
from midwatch.logbook.state import Status
from midwatch.operator.simulation.training import Fragility, Physics

from ..support.builders import make_spec
from .checkers import rate_factor
from .night import DiskJournal, Night

EVERY = range(1, 60, 2)


def kill_worker(night: Night) -> None:
    night.world.kill_worker(1)


def kill_agent(night: Night) -> None:
    assert night.state.attempt is not None
    night.world.kill_agent(night.state.attempt.plan.nodes[0], known_after_s=0.05)


def change_rate(night: Night) -> None:
    night.ask("lr-factor", 0.5, id="change")


def stop_worker(night: Night) -> None:
    night.world.stop_worker(2)


TROUBLES: list[Callable[[Night], None]] = [kill_worker, kill_agent, change_rate, stop_worker]


def completed(night: Night) -> None:
    night.run_to_end()
    night.checker.check_end()
    assert night.state.end is Status.COMPLETED
    assert night.num_crashes
    if "change" not in night.state.interventions:
        plain = Night(night.spec, physics=night.world.physics)
        plain.run_to_end()
        assert plain.world.samples.keys() == night.world.samples.keys()
        assert plain.world.samples[100].loss == night.world.samples[100].loss


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda t: t.__name__)
@pytest.mark.parametrize("calls", EVERY)
def test_a_crash_at_any_call_while_it_answers_changes_nothing_that_counts(
    trouble: Callable[[Night], None], calls: int
) -> None:
    night = Night()
    night.run_to_step(43)
    trouble(night)
    night.crash_after(calls)
    completed(night)
    if trouble is change_rate:
        assert rate_factor(night.state.hyper, 120) == pytest.approx(0.5)
    else:
        # One new attempt answers it. But a controller that dies right after it has made a node's
        # new agent leaves the old one's end to be found out by the attempt after.
        assert night.state.num_attempts in ((2, 3) if trouble is kill_agent else (2,))


@pytest.mark.parametrize("calls", range(1, 40, 3))
def test_a_crash_while_the_run_begins(calls: int) -> None:
    night = Night()
    night.crash_after(calls)
    completed(night)
    assert night.state.num_attempts == 1


@pytest.mark.parametrize("calls", range(1, 60, 7))
def test_the_real_journal_carries_a_run_over_a_crash(calls: int, tmp_path: Path) -> None:
    journal = DiskJournal(tmp_path / "journal")
    night = Night(journal=journal)
    night.run_to_step(43)
    kill_worker(night)
    night.crash_after(calls)
    completed(night)
    journal.close()


def test_a_crash_every_few_seconds_does_not_keep_the_run_from_its_end() -> None:
    night = Night()
    while not night.state.status.is_terminal:
        night.run_for(7.0)
        night.crash()
        assert night.num_crashes < 60
    assert night.state.end is Status.COMPLETED
    assert night.state.num_attempts == 1


def test_workers_train_on_while_the_controller_is_away() -> None:
    night = Night()
    night.run_to_step(33)
    night.crash()
    before = night.world.trained_total
    night.run(lambda s: s.step > 36)
    assert night.world.trained_total > before
    assert night.state.num_attempts == 1


def test_a_worker_killed_while_the_controller_is_away_is_answered_by_the_next() -> None:
    night = Night()
    night.run_to_step(43)
    night.crash()
    night.world.kill_worker(0)
    completed(night)
    assert [i.draft.fault for i in night.state.incidents.values()][-1] == "worker-killed"


def test_an_agent_lost_while_the_controller_is_away_is_answered_by_the_next() -> None:
    night = Night()
    night.run_to_step(43)
    assert night.state.attempt is not None
    node = night.state.attempt.plan.nodes[0]
    night.crash()
    night.world.kill_agent(node, known_after_s=0.01)
    completed(night)
    assert night.state.nodes[node].quarantined
    assert night.state.num_attempts == 2


def test_all_agents_lost_with_the_controller_leave_a_run_that_waits_for_a_person() -> None:
    night = Night()
    night.run_to_step(43)
    night.crash()
    for node in list(night.world.agents):
        night.world.kill_agent(node, known_after_s=0.01)
    night.run(lambda s: s.status is Status.WAITING and s.num_attempts > 0)
    for node in night.state.nodes:
        night.ask("release", target=node, id=f"release-{node}")
    completed(night)


def test_a_commit_that_the_dead_controller_never_heard_of_is_found() -> None:
    night = Night()
    night.run_to_step(39)
    night.crash()
    while checkpoint_id(40, 1) not in night.world.disk.saved:
        assert night.timeline.advance()
    for node in list(night.world.agents)[:2]:
        night.world.kill_agent(node, known_after_s=0.01)
    night.run(lambda s: s.num_attempts == 2 or s.status is Status.WAITING)
    assert checkpoint_id(40, 1) in night.state.checkpoints


def test_a_dead_controllers_notes_are_written_by_the_next() -> None:
    night = Night()
    night.run_to_step(43)
    kill_worker(night)
    night.run(lambda s: bool(s.incidents))
    night.crash()
    night.world.notes.clear()
    night.run_for(10.0)
    assert set(night.world.notes) == set(night.state.incidents)


@pytest.mark.parametrize("calls", range(2, 120, 9))
def test_a_crash_during_a_rollback(calls: int) -> None:
    spec = make_spec(trainer={"steps": 200})
    night = Night(spec, physics=Physics(fragile=(Fragility(80, 150, 0.8),)))
    night.run(lambda s: s.step >= 88)
    night.crash_after(calls)
    night.run_to_end()
    night.checker.check_end()
    assert night.state.end is Status.COMPLETED
    assert night.world.gangs[max(night.world.gangs)].weights.sickness < 0.5
    assert len(night.state.rollbacks) == 2


def test_reports_of_a_dead_attempt_change_nothing() -> None:
    night = Night()
    night.run_to_step(43)
    assert night.state.attempt is not None
    slow = night.state.attempt.plan.nodes[1]
    night.world.wire.extra_s[slow] = 6.0
    night.world.stop_worker(0)
    night.run(lambda s: s.num_attempts == 2)
    night.world.wire.extra_s.clear()
    night.world.wire.duplicates = 50
    completed_later = night.run_to_end()
    night.checker.check_end()
    assert completed_later.num_stale > 0
    assert completed_later.num_attempts == 2


def test_a_late_commit_from_a_lineage_that_was_left_is_not_resumed_from() -> None:
    spec = make_spec(trainer={"steps": 200})
    night = Night(spec, physics=Physics(fragile=(Fragility(80, 150, 0.95),)))
    night.run(lambda s: s.step >= 88)
    # The save of step 90 lands long after its attempt was rolled back from.
    night.world.storage.slow_saves_s = [40.0]
    night.world.storage.late_commits = 1
    night.run(lambda s: checkpoint_id(90, 1) in s.checkpoints, 120.0)
    assert len(night.state.rollbacks) == 1
    assert night.state.checkpoints[checkpoint_id(90, 1)].abandoned
    night.world.kill_worker(0)
    night.run_to_end()
    night.checker.check_end()
