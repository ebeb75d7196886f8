"""Numeric faults: how far back, at which rate, what is taken back, and when a person is asked."""

from __future__ import annotations

import pytest
from midwatch.logbook import decisions as d
from midwatch.logbook.state import Status
from midwatch.operator.simulation.conditions import Times
from midwatch.operator.simulation.training import Fragility, Physics

from ..support.builders import make_spec
from .checkers import rate_factor
from .night import Night

SPEC = make_spec(trainer={"steps": 300})
LADDER = SPEC.numeric.lr_ladder


def fragile(factor: float, first: int = 80, last: int = 200, **more: float) -> Physics:
    """Between two steps, rates above factor of the schedule make the run diverge."""
    return Physics(fragile=(Fragility(first, last, factor),), **more)  # type: ignore[arg-type]


def rollbacks(night: Night) -> list[d.StartAttempt]:
    found = [x.action for x in night.checker.decisions if isinstance(x.action, d.StartAttempt)]
    return [action for action in found if action.rollback_onset is not None]


def recovered(night: Night) -> Night:
    """Run to the end; the weights must be healthy there."""
    night.run_to_end()
    night.checker.check_end()
    assert night.state.end is Status.COMPLETED
    gang = night.world.gangs[max(night.world.gangs)]
    assert gang.weights.sickness < 0.5
    return night


def test_a_divergence_goes_back_before_its_onset_with_a_lower_rate() -> None:
    night = recovered(Night(SPEC, physics=fragile(0.95)))
    [action] = rollbacks(night)
    assert action.lr_factor == LADDER[0]
    assert action.rollback_onset is not None
    margin = SPEC.numeric.rollback_margin_steps
    assert action.plan.resume_step <= action.rollback_onset - margin
    assert rate_factor(night.state.hyper, 300) == pytest.approx(LADDER[0])


def test_a_recurrence_goes_further_back_and_further_down_the_ladder() -> None:
    night = recovered(Night(SPEC, physics=fragile(0.8)))
    first, second = rollbacks(night)
    assert (first.lr_factor, second.lr_factor) == LADDER[:2]
    assert second.plan.resume_step < first.plan.resume_step
    assert second.quarantines == first.plan.checkpoints[:1]


def test_a_collapse_of_the_loss_scale_is_seen_although_the_loss_is_flat() -> None:
    spec = make_spec(
        trainer={"steps": 300},
        detectors={"grad_norm": {"mode": "off"}, "activation_norm": {"mode": "off"}},
    )
    night = recovered(Night(spec, physics=fragile(0.95, loss_gain=0.0)))
    assert len(rollbacks(night)) == 1
    [incident] = [i for i in night.state.incidents.values() if i.attempt_after is not None]
    assert incident.draft.fault == "scaler-collapse"
    assert incident.checkpoint_tags is not None
    assert (incident.checkpoint_tags.loss_scale or 0.0) >= SPEC.numeric.min_loss_scale


def test_a_loss_that_is_not_a_number_is_rolled_back_from() -> None:
    night = recovered(Night(SPEC, physics=fragile(0.95, nan_from=1.0)))
    assert len(rollbacks(night)) == 1


def test_an_exhausted_ladder_pauses_the_run_with_a_note() -> None:
    night = Night(SPEC, physics=fragile(0.0))
    state = night.run(lambda s: bool(s.paused))
    assert state.paused == "ladder-exhausted"
    assert [action.lr_factor for action in rollbacks(night)] == list(LADDER)
    steps = [action.plan.resume_step for action in rollbacks(night)]
    assert steps == sorted(steps, reverse=True)
    assert "numeric.lr_ladder" in night.world.notes[state.open_incidents[-1]]
    night.run_for(300.0)
    assert night.state.num_attempts == state.num_attempts


def test_a_person_who_resumes_it_gets_no_identical_retry() -> None:
    night = Night(SPEC, physics=fragile(0.245))
    night.run(lambda s: bool(s.paused))
    before = rollbacks(night)[-1]
    night.ask("resume")
    recovered(night)
    after = rollbacks(night)[len(LADDER)]
    assert after.lr_factor == LADDER[0], "the ladder starts anew"
    first_step = after.plan.resume_step + 1
    before_rate = rate_factor(before.plan.hyper, first_step)
    assert rate_factor(after.plan.hyper, first_step) < before_rate


def test_a_raise_by_a_person_that_caused_it_is_taken_back() -> None:
    night = Night(SPEC)
    night.run_to_step(83)
    name = night.ask("lr-factor", 50.0)
    recovered(night)
    assert night.state.interventions[name].stage == "reverted"
    assert rate_factor(night.state.hyper, 300) == pytest.approx(LADDER[0])


@pytest.mark.parametrize("step", range(78, 84))
def test_a_raise_is_taken_back_wherever_it_falls_between_two_checkpoints(step: int) -> None:
    night = Night(make_spec(trainer={"steps": 300}, numeric={"rollback_margin_steps": 0}))
    night.run_to_step(step)
    name = night.ask("lr-factor", 50.0)
    recovered(night)
    assert night.state.interventions[name].stage == "reverted"
    assert rate_factor(night.state.hyper, 300) < 1.0


def test_a_lowering_by_a_person_persists_through_a_rollback() -> None:
    night = Night(SPEC, physics=fragile(0.5))
    night.run_to_step(78)
    name = night.ask("lr-factor", 0.6)
    recovered(night)
    assert night.state.interventions[name].stage == "applied"
    assert rollbacks(night)
    own = [action.lr_factor for action in rollbacks(night)]
    expected = 0.6
    for factor in own:
        expected *= factor
    assert rate_factor(night.state.hyper, 300) == pytest.approx(expected)


def test_a_raise_that_no_rank_has_confirmed_is_not_sent_after_a_rollback() -> None:
    night = Night(SPEC, physics=fragile(0.95))
    night.run_to_step(85)
    for agent in night.world.agents.values():
        agent.lost_commands = 100
    name = night.ask("lr-factor", 3.0)
    night.run(lambda s: bool(s.rollbacks))
    for agent in night.world.agents.values():
        agent.lost_commands = 0
    assert night.state.interventions[name].stage == "reverted"
    recovered(night)
    # Commands asked for later still reach every rank.
    assert night.state.num_attempts == 2


def test_the_rate_climbs_back_after_healthy_steps() -> None:
    spec = make_spec(trainer={"steps": 400}, numeric={"recover_after_steps": 60})
    night = recovered(Night(spec, physics=fragile(0.8, 80, 110)))
    assert len(rollbacks(night)) == 2
    climbs = [x for x in night.checker.decisions if isinstance(x.action, d.SendCommand)]
    factors = [x.action.command.value for x in climbs]  # type: ignore[union-attr]
    assert factors == pytest.approx([1 / LADDER[1], 1 / LADDER[0]])
    assert rate_factor(night.state.hyper, 400) == pytest.approx(1.0)
    assert all(i.stage == "applied" for i in night.state.interventions.values())


def test_a_climb_that_was_rolled_back_leaves_its_rung_to_be_climbed_again() -> None:
    spec = make_spec(
        trainer={"steps": 600}, numeric={"recover_after_steps": 60, "recurrence_steps": 100}
    )
    physics = Physics(fragile=(Fragility(80, 100, 0.95), Fragility(160, 200, 0.95)))
    night = recovered(Night(spec, physics=physics))
    assert rate_factor(night.state.hyper, 600) == pytest.approx(1.0)


def test_poisoned_data_are_left_out_when_the_trouble_comes_back_at_the_same_place() -> None:
    night = recovered(Night(SPEC, physics=Physics(poison=frozenset({90}))))
    [skipped] = night.state.hyper.skipped
    assert skipped[0] <= 90 < skipped[1]
    assert len(rollbacks(night)) == 2


def test_divergence_and_a_lost_node_at_once_are_both_answered() -> None:
    night = Night(SPEC, physics=fragile(0.95))
    night.run(lambda s: s.step >= 86)
    night.world.wire.extra_s = dict.fromkeys(night.world.agents, 4.0)
    night.run(lambda s: s.step >= 88)
    state = night.state
    assert state.attempt is not None
    lost = state.attempt.plan.nodes[1]
    night.world.kill_agent(lost, known_after_s=4.2)
    night.run(lambda s: s.num_attempts == 2)
    night.world.wire.extra_s = {}
    recovered(night)
    assert {n.node for n in night.state.nodes.values() if n.quarantined} == {lost}


def test_trouble_that_has_to_wait_for_a_node_is_rolled_back_from_when_it_comes() -> None:
    spec = make_spec(trainer={"steps": 300}, nodes={"spares": 0})
    night = Night(spec, physics=fragile(0.95))
    night.run_to_step(84)
    night.ask("quarantine", target="node-1")
    night.run(lambda s: s.status is Status.WAITING and bool(s.incidents))
    night.run_for(30.0)
    assert not rollbacks(night)
    night.ask("release", target="node-1")
    recovered(night)
    assert len(rollbacks(night)) == 1
    assert rate_factor(night.state.hyper, 300) == pytest.approx(LADDER[0])


def test_a_node_lost_during_the_rollback_repeats_it_and_goes_no_less_far_back() -> None:
    night = Night(SPEC, physics=fragile(0.8))
    night.run(lambda s: len(s.rollbacks) == 2)
    second = rollbacks(night)[1]
    night.world.kill_agent(second.plan.nodes[0], known_after_s=0.05)
    night.run(lambda s: s.num_attempts == 4)
    again = [x.action for x in night.checker.decisions if isinstance(x.action, d.StartAttempt)][-1]
    assert again.plan.checkpoints == second.plan.checkpoints
    assert again.plan.hyper == second.plan.hyper
    recovered(night)


def test_a_divergence_in_the_last_steps_is_not_called_completed() -> None:
    night = Night(make_spec(), physics=fragile(0.95, 106, 121))
    recovered(night)
    assert rollbacks(night)


def test_a_spike_that_heals_is_left_alone() -> None:
    night = Night(SPEC, physics=Physics(fragile=(Fragility(90, 94, 0.5),)))
    recovered(night)
    assert not rollbacks(night)
    assert night.state.num_attempts == 1


def test_a_run_too_old_to_start_over_asks_a_person_and_obeys_when_it_is_resumed() -> None:
    spec = make_spec(
        trainer={"steps": 300, "interval_steps": 1000}, numeric={"recurrence_steps": 20}
    )
    night = Night(spec, physics=fragile(0.95))
    state = night.run(lambda s: bool(s.paused))
    assert state.paused == "no-usable-checkpoint"
    night.ask("resume")
    recovered(night)
    assert rollbacks(night)[0].plan.checkpoints == ()


@pytest.mark.parametrize("calls", range(1, 40, 3))
def test_a_controller_that_dies_while_it_sees_it_loses_no_alarm(calls: int) -> None:
    # Somewhere in here it dies between writing a step down and what that step shows.
    night = Night(SPEC, physics=fragile(0.95))
    night.run(lambda s: s.step >= 91)
    night.crash_after(calls)
    recovered(night)
    assert rollbacks(night)


def test_retention_keeps_what_a_rollback_needs() -> None:
    spec = make_spec(trainer={"steps": 1500, "interval_steps": 5}, retention={"keep_newest": 1})
    night = Night(spec, times=Times(step_s=0.1, save_s=0.2))
    night.run_to_step(1400)
    kept = [c.step for c in night.state.checkpoints.values() if not c.abandoned]
    assert min(kept) <= 1400 - 512 - spec.numeric.rollback_margin_steps
    assert len(kept) <= 8
