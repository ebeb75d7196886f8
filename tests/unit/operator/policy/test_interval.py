"""The interval follows from what saves and failures of the run cost, and does not flap."""

from __future__ import annotations

import math

import pytest
from midwatch.checkpoints.interval import optimal_interval_s
from midwatch.checkpoints.manifest import checkpoint_id
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.fold_decisions import OWN
from midwatch.logbook.state import Intervention, Rollback, RunState
from midwatch.logbook.wire import Hyper
from midwatch.operator.policy.climb import climb_back
from midwatch.operator.policy.interval import choose_interval, observed_mtbf_s
from midwatch.operator.spec import RunSpec
from midwatch.tests.support.builders import fold, make_sample, make_spec, started
from msgspec.structs import replace


def spec_with(min_steps: int = 5, max_steps: int = 500, hours: float = 24.0) -> RunSpec:
    interval = {"min_steps": min_steps, "max_steps": max_steps, "prior_mtbf_hours": hours}
    return make_spec(checkpoints={"interval": interval})


def trained(
    blocked_s: float = 0.2, save_s: float = 1.0, hyper: Hyper | None = None, saves: int = 4
) -> RunState:
    """Forty steps of 0.5 s, with saves that hold the loop up."""
    events: list[ev.Event] = [ev.AttemptResumed(1, 0, "", 0.1)]
    events += [ev.StepDone(1, make_sample(step)) for step in range(1, 41)]
    events += [
        ev.CheckpointCommitted(1, checkpoint_id(10 * n, 1), 10 * n, 1, blocked_s, save_s)
        for n in range(1, saves + 1)
    ]
    return fold(events, started(hyper=hyper))


def ordered(state: RunState, spec: RunSpec) -> d.Decision | None:
    made = choose_interval(state, spec, state.time_s)
    return made[0] if made else None


def steps_of(decision: d.Decision | None) -> int | None:
    if decision is None:
        return None
    assert isinstance(decision.action, d.SendCommand)
    assert decision.action.command.kind == "save-interval"
    return int(decision.action.command.value)


def in_force(steps: int) -> Hyper:
    return Hyper(save_interval_steps=steps)


def test_it_is_the_exact_optimum_with_its_inputs_in_the_evidence() -> None:
    state = trained()
    decision = ordered(state, spec_with())
    assert decision is not None
    mtbf_s = (40 * 0.5 + 24 * 3600) / 1
    optimum_s = optimal_interval_s(0.2, mtbf_s)
    assert steps_of(decision) == round(optimum_s / 0.5)
    evidence = dict(decision.evidence)
    assert evidence["exact optimum"] == f"{optimum_s:.4g} s, {optimum_s / 0.5:.1f} steps"
    assert evidence["mean time between failures"].startswith(f"{mtbf_s:.0f} s")
    assert evidence["median step"] == "0.5 s"
    assert evidence["bound hit"] == "none"
    assert evidence["interval before"] == "the trainer's own"


def test_every_setback_counts_and_the_prior_weighs_as_one() -> None:
    state = replace(trained(), num_setbacks=3, steps_total=7200)
    assert observed_mtbf_s(state, 0.5, 1.0) == (3600 + 3600) / 4
    often, seldom = (
        steps_of(ordered(replace(trained(), num_setbacks=n), spec_with())) for n in (50, 1)
    )
    assert often is not None
    assert seldom is not None
    assert often < seldom


@pytest.mark.parametrize(
    ("bounds", "steps", "hit"), [((5, 20), 20, "max_steps"), ((450, 500), 450, "min_steps")]
)
def test_bounds_hold(bounds: tuple[int, int], steps: int, hit: str) -> None:
    decision = ordered(trained(), spec_with(*bounds))
    assert steps_of(decision) == steps
    assert decision is not None
    assert ("bound hit", hit) in decision.evidence


def test_a_save_must_be_over_before_the_next_is_due() -> None:
    assert steps_of(ordered(trained(blocked_s=0.0, save_s=12.2), spec_with())) == 25


def test_an_unknown_cost_is_found_out_by_saving_often_first() -> None:
    decision = ordered(trained(saves=2), spec_with(min_steps=7))
    assert steps_of(decision) == 7
    assert ordered(trained(saves=2, hyper=in_force(7)), spec_with(min_steps=7)) is None


def test_a_small_change_is_not_worth_an_order() -> None:
    best = steps_of(ordered(trained(), spec_with()))
    assert best is not None
    for factor, is_kept in ((1.0, True), (1.2, True), (0.85, True), (1.3, False), (0.7, False)):
        state = trained(hyper=in_force(math.ceil(best * factor)))
        assert (ordered(state, spec_with()) is None) is is_kept, factor
    # One that the bounds no longer allow is left at once.
    assert steps_of(ordered(trained(hyper=in_force(best)), spec_with(5, best - 1))) == best - 1


def test_it_waits_for_its_own_order_and_takes_no_for_an_answer() -> None:
    state = trained()
    decision = ordered(state, spec_with())
    assert decision is not None
    state = fold([ev.DecisionMade(decision)], state)
    assert ordered(state, spec_with()) is None, "under way"
    refused = ev.CommandApplied(1, 1, "n0", (0, 1), 41, {}, {}, error="unknown-command: no")
    assert ordered(fold([refused], state), spec_with()) is None, "this trainer cannot"


def test_nothing_is_ordered_without_bounds_or_while_something_is_wrong() -> None:
    assert ordered(trained(), make_spec()) is None
    died = ev.WorkerExited(1, 0, "n0", exit_code=1)
    assert ordered(fold([died], trained()), spec_with()) is None


def test_the_rate_climbs_back_although_the_interval_was_changed_since() -> None:
    down = Rollback(5, 0, "", (), 0.9, 0.0, 1)
    request = ev.InterventionRequested("1/9", "save-interval", OWN, "", 50.0)
    changed = Intervention(request, requested_s=1.0, stage="applied", at_step=20)
    state = replace(trained(), rollbacks=(down,), interventions={"1/9": changed})
    [decision] = climb_back(state, make_spec(numeric={"recover_after_steps": 30}), state.time_s)
    assert isinstance(decision.action, d.SendCommand)
    assert decision.action.command.value == pytest.approx(1 / 0.9)
