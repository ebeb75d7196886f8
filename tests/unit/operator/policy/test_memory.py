"""When a restart may go on from the nodes' memory, and when what is there must be dropped."""

from __future__ import annotations

from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.plan import AttemptPlan
from midwatch.logbook.state import RunState
from midwatch.operator.spec import RunSpec
from midwatch.tests.support.builders import fold, make_sample, make_spec

from tests.unit.operator.policy.test_recovery import SPEC, alarm, exited, next_of, trained


def restart(state: RunState, spec: RunSpec = SPEC) -> tuple[AttemptPlan, RunState, d.Decision]:
    """Return the plan of the attempt decided next, and the state in which it is current."""
    decision = next_of(state, 2.0, spec)
    assert isinstance(decision.action, d.StartAttempt), decision
    after = fold([ev.DecisionMade(decision), ev.ActionDone(decision.id)], state)
    return decision.action.plan, after, decision


def killed(state: RunState) -> RunState:
    attempt = state.num_attempts
    event = ev.WorkerExited(attempt, 2, "n1", signal=9)
    return fold([event], state)


def test_a_hardware_fault_offers_memory_since_the_attempt_that_last_dropped_it() -> None:
    plan, after, _ = restart(killed(trained()))
    assert plan.memory_since == 1
    resumed = ev.AttemptResumed(2, 40, "step-00000040.a0001", 0.0, tier="memory")
    again, _, _ = restart(killed(fold([resumed, ev.StepDone(2, make_sample(41))], after)))
    assert again.memory_since == 1, "what attempt 1 kept may still be the newest whole state"


def test_the_decision_says_what_is_known_to_be_in_memory() -> None:
    sample = make_sample(41, memory_step=39)
    state = fold([ev.StepDone(1, sample)], trained())
    _, _, decision = restart(killed(state))
    assert "memory, whole to step 39 when last heard of" in decision.reason
    assert "step-00000040.a0001" in decision.reason


def test_a_rollback_drops_what_is_in_memory_for_good() -> None:
    plan, after, _ = restart(fold([alarm(30, 40)], trained()))
    assert plan.memory_since is None
    assert after.memory_since == plan.attempt == 2
    resumed = ev.AttemptResumed(2, plan.resume_step, plan.checkpoints[0], 0.1, tier="disk")
    steps = [ev.StepDone(2, make_sample(plan.resume_step + n)) for n in (1, 2)]
    later, _, _ = restart(killed(fold([resumed, *steps], after)))
    assert later.memory_since == 2, "only what was kept since the rollback"


def test_a_rollback_that_has_not_trained_yet_is_not_undone_by_memory() -> None:
    _, after, _ = restart(fold([alarm(30, 40)], trained()))
    plan, _, _ = restart(killed(after))
    assert plan.memory_since is None


def test_two_attempts_without_a_step_put_memory_under_suspicion() -> None:
    spec = make_spec(restart={"max_barren_attempts": 10})
    state = killed(trained())
    offers = []
    for attempt in (2, 3, 4):
        plan, state, _ = restart(state, spec)
        offers.append(plan.memory_since)
        resumed = ev.AttemptResumed(attempt, 40, "step-00000040.a0001", 0.0, tier="memory")
        state = fold([resumed], state)
        state = fold([ev.WorkerExited(attempt, 2, "n1", exit_code=1, code="boom")], state)
    assert offers == [1, 1, None]
    assert state.memory_since == 4


def test_without_the_tier_nothing_is_offered() -> None:
    spec = make_spec(checkpoints={"memory": {"mode": "off"}})
    plan, _, _ = restart(fold([exited(2, signal=9)], trained()), spec)
    assert plan.memory_since is None


def test_failures_from_memory_are_not_held_against_the_checkpoint_of_the_same_name() -> None:
    _, after, _ = restart(killed(trained()))
    name = "step-00000040.a0001"
    state = fold([ev.AttemptResumed(2, 40, name, 0.0, tier="memory")], after)
    state = fold([ev.WorkerExited(2, 2, "n1", exit_code=1, code="boom")], state)
    _, after, _ = restart(state)
    assert after.checkpoints[name].num_failed == 0
    on_disk = fold(
        [ev.AttemptResumed(2, 40, name, 0.0, tier="disk")], restart(killed(trained()))[1]
    )
    on_disk = fold([ev.WorkerExited(2, 2, "n1", exit_code=1, code="boom")], on_disk)
    assert restart(on_disk)[1].checkpoints[name].num_failed == 1


def test_recalled_steps_fill_the_gap_before_the_state() -> None:
    _, after, _ = restart(killed(trained(40)))
    resumed = ev.AttemptResumed(2, 44, "step-00000044.a0001", 0.0, tier="memory")
    told = tuple(make_sample(step) for step in (39, 40, 41, 42, 43, 44, 45))
    state = fold([resumed, ev.StepsRecalled(2, told)], after)
    assert state.step == 44
    assert [s.step for s in state.samples][-5:] == [40, 41, 42, 43, 44]
    assert state.steps_total == 44
    assert state.attempt is not None
    assert state.attempt.first_step_s is None, "nothing was trained by this attempt yet"
    again = fold([ev.StepsRecalled(2, told)], state)
    assert again.samples == state.samples
    late = fold([ev.StepsRecalled(1, told)], state)
    assert late.samples == state.samples
