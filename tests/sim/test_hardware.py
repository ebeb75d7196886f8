"""Hardware faults, one by one: what is blamed, who is cordoned, from where it goes on."""

from __future__ import annotations

import pytest
from midwatch.checkpoints.manifest import checkpoint_id
from midwatch.logbook import decisions as d
from midwatch.logbook.state import Status
from midwatch.operator.simulation.conditions import Times
from midwatch.operator.simulation.drive import Turning

from ..support.builders import make_spec
from .night import Night


def ended(night: Night) -> Night:
    """Run to the end and check what must hold there: all steps, on the undisturbed curve."""
    night.run_to_end()
    night.checker.check_end()
    assert night.state.end is Status.COMPLETED
    assert night.state.step == night.spec.trainer["steps"]
    undisturbed = Night(night.spec, physics=night.world.physics)
    undisturbed.run_to_end()
    losses = {step: sample.loss for step, sample in undisturbed.world.samples.items()}
    assert {step: sample.loss for step, sample in night.world.samples.items()} == losses
    return night


def faults_of(night: Night) -> list[str]:
    return [incident.draft.fault for incident in night.state.incidents.values()]


def starts(night: Night) -> list[d.StartAttempt]:
    return [x.action for x in night.checker.decisions if isinstance(x.action, d.StartAttempt)]


def quarantined(night: Night) -> set[str]:
    return {n.node for n in night.state.nodes.values() if n.quarantined}


def test_an_undisturbed_run_completes_in_one_attempt() -> None:
    night = Night()
    night.run_to_end()
    night.checker.check_end()
    assert (night.state.num_attempts, night.state.incidents) == (1, {})


@pytest.mark.parametrize("report_after_s", [0.0, 0.4])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_killed_worker_is_blamed_whether_its_peers_fail_before_or_after(
    seed: int, report_after_s: float
) -> None:
    night = Night(seed=seed)
    night.run_to_step(43)
    night.world.kill_worker(1, report_after_s=report_after_s)
    ended(night)
    [incident] = night.state.incidents.values()
    assert (incident.draft.fault, incident.draft.rank) == ("worker-killed", 1)
    assert incident.checkpoint == checkpoint_id(40, 1)
    assert incident.steps_lost == 3
    first, second = starts(night)
    assert second.plan.nodes == first.plan.nodes
    assert not quarantined(night)


@pytest.mark.parametrize("late_s", [0.5, 1.5, 3.0, 4.0])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_new_controller_hears_every_node_before_it_takes_a_consequence_for_the_cause(
    seed: int, late_s: float
) -> None:
    night = Night(seed=seed)
    state = night.run_to_step(43)
    assert state.attempt is not None
    night.world.kill_worker(3)
    night.crash()
    # The node of the dead rank finds the new controller later than those of its peers.
    night.world.wire.cut(state.attempt.plan.nodes[1], Turning().restart_s + late_s)
    ended(night)
    assert sorted(faults_of(night)) == ["controller-lost", "worker-killed"]


def test_broken_peers_without_a_cause_restart_after_the_settling_time() -> None:
    night = Night()
    night.run_to_step(43)
    night.world.kill_worker(1, report_after_s=60.0)
    ended(night)
    assert faults_of(night) == ["peers-lost"]
    [incident] = night.state.incidents.values()
    assert incident.opened_s - incident.draft.seen_s >= night.spec.restart.settle_s


def test_a_lost_agent_is_quarantined_and_a_spare_takes_its_ranks() -> None:
    night = Night()
    state = night.run_to_step(43)
    assert state.attempt is not None
    lost = state.attempt.plan.nodes[1]
    night.world.kill_agent(lost, known_after_s=0.1)
    ended(night)
    assert faults_of(night) == ["node-lost"]
    assert quarantined(night) == {lost}
    first, second = starts(night)
    assert second.plan.nodes[0] == first.plan.nodes[0], "the sound node keeps its ranks"
    assert lost not in second.plan.nodes


def test_an_agent_whose_death_is_known_late_costs_an_attempt_but_not_the_run() -> None:
    night = Night()
    state = night.run_to_step(43)
    assert state.attempt is not None
    lost = state.attempt.plan.nodes[0]
    night.world.kill_agent(lost, known_after_s=8.0)
    ended(night)
    assert quarantined(night) == {lost}


def test_two_agents_lost_at_once_are_both_quarantined() -> None:
    night = Night(make_spec(nodes={"spares": 2}))
    state = night.run_to_step(43)
    assert state.attempt is not None
    for node in state.attempt.plan.nodes:
        night.world.kill_agent(node, known_after_s=0.1)
    ended(night)
    assert quarantined(night) == set(state.attempt.plan.nodes)
    assert faults_of(night) == ["node-lost"]


def test_without_a_spare_the_run_waits_and_goes_on_when_a_person_releases_the_node() -> None:
    night = Night(make_spec(nodes={"spares": 0}))
    night.run_to_step(43)
    night.world.kill_agent("node-1", known_after_s=0.1)
    state = night.run(lambda s: s.status is Status.WAITING and bool(s.incidents))
    decision = night.checker.decisions[-1]
    assert isinstance(decision.action, d.AwaitNodes)
    assert "1 of 2 nodes are usable" in decision.reason
    night.run_for(60.0)
    assert night.state.num_attempts == state.num_attempts, "it must wait"
    night.ask("release", target="node-1")
    ended(night)


def test_without_a_spare_the_mesh_shrinks_where_the_spec_allows_it() -> None:
    night = Night(make_spec(nodes={"spares": 0, "when_short": "shrink"}))
    night.run_to_step(43)
    night.world.kill_agent("node-1", known_after_s=0.1)
    ended(night)
    assert [action.plan.mesh.dp_shard for action in starts(night)] == [2, 1]
    assert starts(night)[1].plan.nodes == ("node-0",)


def test_a_silent_node_is_lost_after_its_deadline_and_of_use_again_when_released() -> None:
    night = Night(make_spec(trainer={"steps": 300}))
    state = night.run_to_step(43)
    assert state.attempt is not None
    node = state.attempt.plan.nodes[1]
    night.world.wire.cut(node, 40.0)
    night.run(lambda s: s.num_attempts == 2)
    assert quarantined(night) == {node}
    assert "silent" in night.checker.decisions[-1].evidence[0][1]
    night.run_for(50.0)
    night.ask("release", target=node)
    night.run(lambda s: s.nodes[node].is_usable, 30.0)
    ended(night)


def test_a_hang_blames_the_stopped_rank_and_twice_on_one_node_quarantines_it() -> None:
    night = Night()
    night.run_to_step(43)
    night.world.stop_worker(3)
    state = night.run(lambda s: s.num_attempts == 2)
    assert not quarantined(night)
    [incident] = state.incidents.values()
    assert (incident.draft.fault, incident.draft.rank) == ("hang", 3)
    assert dict(incident.decisions[0].evidence)["rank 3 on " + str(incident.draft.node)]
    night.run_to_step(60)
    night.world.stop_worker(3)
    ended(night)
    assert faults_of(night) == ["hang", "hang"]
    assert quarantined(night) == {incident.draft.node}
    assert incident.draft.node not in starts(night)[-1].plan.nodes


def test_a_hang_that_one_node_alone_reports_blames_nobody_unless_it_saw_the_stopped_process() -> (
    None
):
    for mute, blamed in ((1, None), (0, 3)):
        night = Night()
        state = night.run_to_step(43)
        assert state.attempt is not None
        night.world.agents[state.attempt.plan.nodes[mute]].quiet_about_hangs = True
        night.world.stop_worker(3)
        ended(night)
        [incident] = night.state.incidents.values()
        assert (incident.draft.fault, incident.draft.rank) == ("hang", blamed)


def test_a_stall_that_no_agent_reports_is_found_by_the_controller_itself() -> None:
    night = Night(make_spec(restart={"hang_max_s": 20.0}))
    night.run_to_step(43)
    for agent in night.world.agents.values():
        agent.quiet_about_hangs = True
    night.world.stop_worker(0)
    ended(night)
    assert faults_of(night) == ["hang"]


def test_a_start_that_fails_is_tried_on_the_spare() -> None:
    night = Night()
    night.run(lambda s: s.attempt is not None)
    node = starts(night)[0].plan.nodes[0]
    night.world.trouble.failing_starts[node] = 1
    ended(night)
    assert faults_of(night) == ["start-failed"]
    assert node not in starts(night)[1].plan.nodes
    assert not quarantined(night)


def test_starts_that_always_fail_pause_the_run_with_a_note_and_a_person_resumes_it() -> None:
    night = Night(make_spec(nodes={"spares": 0}))
    night.world.trouble.failing_starts["node-0"] = 3
    state = night.run(lambda s: bool(s.paused))
    assert state.paused == "no-progress"
    assert state.num_attempts == night.spec.restart.max_barren_attempts
    note = night.world.notes[state.open_incidents[-1]]
    assert "pause-run" in note
    assert "max_barren_attempts" in note
    night.ask("resume")
    ended(night)


def test_an_attempt_that_never_makes_a_step_times_out() -> None:
    night = Night(make_spec(restart={"start_deadline_s": 30.0}), times=Times(rendezvous_s=1e4))
    night.run(lambda s: s.attempt is not None)
    night.world.trouble.slow_starts[starts(night)[0].plan.nodes[1]] = 500.0
    ended(night)
    assert faults_of(night) == ["start-timeout"]


def test_a_late_node_is_waited_for() -> None:
    night = Night(make_spec(nodes={"spares": 0}))
    night.world.absent["node-1"] = 30.0
    night.run_for(20.0)
    assert night.state.status is Status.WAITING
    ended(night)


def test_a_run_whose_code_cannot_be_loaded_waits_and_says_why() -> None:
    night = Night(make_spec(nodes={"spares": 0}))
    night.world.trouble.preload_errors = dict.fromkeys(["node-0", "node-1"], "No module named x")
    night.run_for(60.0)
    assert night.state.status is Status.WAITING
    assert faults_of(night) == ["forkserver-failed", "forkserver-failed"]
    assert all("No module named x" in note for note in night.world.notes.values())
    assert len(night.state.open_incidents) == 2
    night.world.trouble.preload_errors.clear()
    ended(night)


def test_kills_in_a_row_spend_the_restart_budget_and_pause_the_run() -> None:
    night = Night(make_spec(trainer={"steps": 400}, restart={"max_restarts_per_hour": 4}))
    for kills in range(5):
        night.run(lambda s, n=kills: s.num_attempts == n + 1 and s.status is Status.TRAINING)
        night.run_for(3.0 + kills)
        night.world.kill_worker(kills % 4)
    state = night.run(lambda s: bool(s.paused))
    assert (state.paused, state.num_attempts) == ("restart-budget", 5)
    assert state.open_incidents
    night.run_for(300.0)
    assert night.state.num_attempts == 5, "a paused run stays paused"
    night.ask("resume")
    ended(night)


def test_training_code_that_fails_at_one_step_again_and_again_pauses_the_run() -> None:
    night = Night()
    for _ in range(4):
        night.run(lambda s: s.status is Status.TRAINING and s.step == 43, 300.0)
        gang = night.world.live_gang
        assert gang is not None
        worker = gang.workers[2]
        gang._fail(worker, "worker-raised", "ValueError: the data is bad")
        night.run_for(2.0)
    state = night.state
    assert state.paused == "repeated-failure"


def test_a_hang_that_comes_back_at_one_step_pauses_the_run() -> None:
    night = Night(make_spec(restart={"quarantine_after_hangs": 100}))
    for _ in range(4):
        night.run(lambda s: s.status is Status.TRAINING and s.step == 43, 300.0)
        gang = night.world.live_gang
        assert gang is not None
        gang.freeze()
        night.run(lambda s, n=gang.attempt: s.num_attempts > n or bool(s.paused))
    assert night.state.paused == "repeated-failure"
    assert "hang came 3 times in a row at step 43" in night.state.pause_reason


def test_a_checkpoint_that_rots_under_the_attempt_it_started_disturbs_nobody() -> None:
    night = Night()
    night.run_to_step(43)
    night.world.kill_worker(0)
    night.run(lambda s: s.num_attempts == 2 and s.step >= 45)
    name = checkpoint_id(40, 1)
    night.world.disk.saved[name].is_corrupt = True
    night.world.cluster.verify(name)  # type: ignore[union-attr]
    night.run_for(3.0)
    ended(night)
    assert night.state.num_attempts == 2


def test_a_worker_killed_during_recovery_is_recovered_from_too() -> None:
    night = Night()
    night.run_to_step(43)
    night.world.kill_worker(0)
    night.run(lambda s: s.attempt is not None and s.attempt.number == 2 and bool(s.attempt.pids))
    night.world.kill_worker(2)
    ended(night)
    assert faults_of(night) == ["worker-killed", "worker-killed"]
    summary_lost = [i.steps_lost for i in night.state.incidents.values()]
    assert summary_lost == [3, 3], "both were recovered by the third attempt"


def test_the_last_good_of_a_save_that_fails_is_the_one_before() -> None:
    night = Night()
    night.run_to_step(35)
    night.world.storage.failing_saves = 1
    night.run_to_step(43)
    night.world.kill_worker(0)
    ended(night)
    [incident] = night.state.incidents.values()
    assert incident.checkpoint == checkpoint_id(30, 1)
    assert night.state.failed_saves == 1


def test_a_run_whose_checkpoints_all_rot_asks_before_it_starts_over() -> None:
    spec = make_spec(numeric={"recurrence_steps": 20})
    night = Night(spec)
    night.run_to_step(43)
    for saved in night.world.disk.saved.values():
        saved.is_corrupt = True
    for name in night.state.checkpoints:
        night.controller._ports.checkpoints.verify(name)  # type: ignore[union-attr]
    night.run(lambda s: all(c.verified is False for c in s.checkpoints.values()))
    night.world.kill_worker(0)
    state = night.run(lambda s: bool(s.paused) or s.num_attempts > 1)
    assert state.paused == "no-usable-checkpoint"
    night.ask("resume")
    ended(night)
    assert starts(night)[-1].plan.checkpoints == ()


def test_the_newest_commit_is_used_although_its_reporter_died() -> None:
    night = Night()
    state = night.run_to_step(39)
    assert state.attempt is not None
    node = state.attempt.plan.nodes[0]
    # Rank 0's node says nothing any more, but its ranks still train and save.
    night.world.wire.held[node] = float("inf")
    night.run_for(3.0)
    assert checkpoint_id(40, 1) in night.world.disk.saved
    night.world.kill_agent(node, known_after_s=0.1)
    night.world.wire.held.clear()
    night.run(lambda s: s.num_attempts == 2)
    assert starts(night)[-1].plan.checkpoints[0] == checkpoint_id(40, 1)
    ended(night)
