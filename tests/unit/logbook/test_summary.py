"""The figures of a run, from a record small enough to count by hand."""

from __future__ import annotations

import pytest
from midwatch.checkpoints.manifest import checkpoint_id
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.plan import AttemptPlan, Placement
from midwatch.logbook.state import RunState
from midwatch.logbook.summary import summarize
from midwatch.logbook.wire import Hyper, Mesh
from midwatch.tests.support.builders import START_S, decided, fold, make_sample, make_tags, started

A10 = checkpoint_id(10, 1)


def trained(last: int, state: RunState | None = None, attempt: int = 1) -> RunState:
    """Steps up to last, one a second, each of half a second."""
    state = state or fold([ev.AttemptResumed(1, 0, "", 0.1)], started())
    first = state.step + 1
    return fold([ev.StepDone(attempt, make_sample(s)) for s in range(first, last + 1)], state)


def incident(state: RunState, name: str, fault: str) -> d.IncidentDraft:
    return d.IncidentDraft(name, fault, f"{fault} happened", state.step, state.time_s, state.step)


def restarted(state: RunState, *faults: str, step: int = 10) -> RunState:
    """Every fault has its incident; one new attempt answers them all."""
    number = state.num_attempts + 1
    placements = (Placement("n0", 0, 2), Placement("n1", 2, 2))
    plan = AttemptPlan(number, Mesh(2, 2), placements, (A10,), step, Hyper())
    for index, fault in enumerate(faults):
        draft = incident(state, f"inc-{len(state.incidents) + 1:04d}", fault)
        last = index == len(faults) - 1
        action = d.StartAttempt(plan) if last else d.QuarantineNode("n1")
        state = fold([decided(state, action, opens=draft)], state)
    return fold([ev.AttemptResumed(number, step, A10, 0.1)], state)


def disturbed(*faults: str) -> RunState:
    """Ten steps and a checkpoint, four more, trouble, back to the checkpoint, then to step 20."""
    commit = ev.CheckpointCommitted(1, A10, 10, 1, 0.0, 0.0, make_tags())
    state = trained(14, fold([commit], trained(10)))
    return trained(20, restarted(state, *faults), attempt=2)


def test_productive_time_is_what_survived_at_the_median_step_time() -> None:
    summary = summarize(disturbed("worker-killed"), START_S + 101.0)
    assert summary.productive_s == pytest.approx(20 * 0.5)
    assert summary.wall_s == pytest.approx(100.0)
    assert summary.ettr_frac == pytest.approx(0.1)
    assert (summary.steps_trained, summary.steps_lost) == (24, 4)


def test_a_run_whose_pace_has_changed_is_not_productive_for_longer_than_it_ran() -> None:
    state = fold([ev.AttemptResumed(1, 0, "", 0.1)], started())
    paces = [2.0] * 60 + [1.0] * 40
    steps = [ev.StepDone(1, make_sample(n, step_s=s)) for n, s in enumerate(paces, 1)]
    summary = summarize(fold(steps, state), START_S + 1.0 + sum(paces))
    assert summary.ettr_frac is not None
    assert summary.ettr_frac <= 1.0


def test_steps_that_two_incidents_lost_together_are_counted_once() -> None:
    summary = summarize(disturbed("node-lost", "worker-killed"), START_S + 101.0)
    assert [row.steps_lost for row in summary.incidents] == [4, 4]
    assert summary.steps_lost == 4


def test_steps_that_a_person_gave_up_are_lost_as_well() -> None:
    state = trained(14)
    placements = (Placement("n0", 0, 2), Placement("n1", 2, 2))
    back = AttemptPlan(2, Mesh(2, 2), placements, (A10,), 10, Hyper())
    state = fold([decided(state, d.StartAttempt(back))], state)
    state = trained(20, fold([ev.AttemptResumed(2, 10, A10, 0.1)], state), attempt=2)
    summary = summarize(state, START_S + 101.0)
    assert (summary.steps_trained, summary.steps_lost) == (24, 4)
    assert summary.incidents == ()


def test_the_clock_stops_when_the_run_has_ended() -> None:
    state = disturbed("worker-killed")
    state = fold([decided(state, d.EndRun(stopped=False, step=20))], state)
    assert summarize(state, START_S + 1e6).wall_s == pytest.approx(state.time_s - START_S - 1.0)
    assert summarize(state, START_S + 1e6).status == "completed"


def test_a_run_that_has_done_nothing_has_no_figures_and_no_error() -> None:
    summary = summarize(RunState(), START_S)
    assert (summary.ettr_frac, summary.mttr_s, summary.mtbf_s) == (None, None, None)
    assert summary.incidents == ()


def test_a_planned_fault_is_matched_with_the_first_incident_of_its_kind_after_it() -> None:
    state = disturbed("worker-killed")
    seen_s = state.incidents["inc-0001"].draft.seen_s
    faults = [
        ev.FaultInjected("kill-agent", "n1", injected_s=seen_s - 9.0),
        ev.FaultInjected("kill-worker", "rank 1", injected_s=seen_s - 0.25),
        ev.FaultInjected("kill-worker", "rank 2", injected_s=seen_s + 60.0),
    ]
    summary = summarize(fold(faults, state), START_S + 101.0)
    assert summary.incidents[0].detect_s == pytest.approx(0.25)
    assert summary.mttd_s == pytest.approx(0.25)


def test_a_failure_nobody_planned_is_detected_from_the_last_completed_step() -> None:
    state = disturbed("worker-killed")
    [row] = summarize(state, START_S + 101.0).incidents
    waited_s = state.incidents["inc-0001"].draft.seen_s - make_sample(14).time_s
    assert waited_s > 0.0
    assert row.detect_s == pytest.approx(waited_s)


def test_trouble_that_stopped_nothing_and_shows_in_no_number_has_no_time_to_detect() -> None:
    state = trained(14)
    opening = decided(state, d.Observe(), opens=incident(state, "inc-0001", "node-sick"))
    [row] = summarize(fold([opening], state), START_S + 101.0).incidents
    assert row.detect_s is None


def test_recovery_runs_from_the_first_sign_to_the_first_new_step() -> None:
    state = disturbed("worker-killed")
    [row] = summarize(state, START_S + 101.0).incidents
    recovered_s = state.incidents["inc-0001"].recovered_s
    assert recovered_s is not None
    assert row.recover_s == pytest.approx(recovered_s - state.incidents["inc-0001"].draft.seen_s)
    assert row.outcome == "open"
