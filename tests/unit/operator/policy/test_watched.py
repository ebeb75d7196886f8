"""What is only watched leaves a note, and changes nothing that is decided about anything else."""

from __future__ import annotations

from midwatch.checkpoints.manifest import checkpoint_id
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.costs import incident_gpu_s
from midwatch.logbook.findings import Finding, Severity
from midwatch.logbook.state import RunState
from midwatch.operator.policy.decide import decide
from midwatch.tests.support.builders import fold, make_sample, make_spec, make_tags, started

SPEC = make_spec(trainer={"steps": 400})
HEAL_STEPS = SPEC.numeric.heal_steps


def after(state: RunState, *events: ev.Event) -> RunState:
    """The state once each event was heard of and all that follows from it was decided and done."""
    for event in events:
        state = fold([event], state)
        made = 0
        while decisions := decide(state, SPEC, state.time_s):
            for decision in decisions:
                state = fold([ev.DecisionMade(decision)], state, 0.0)
                if not isinstance(decision.action, d.PruneCheckpoints):
                    state = fold([ev.ActionDone(decision.id)], state, 0.0)
            made += len(decisions)
            assert made < 64
    return state


def steps(attempt: int, first: int, last: int) -> list[ev.Event]:
    return [ev.StepDone(attempt, make_sample(step)) for step in range(first, last + 1)]


def saved(step: int) -> list[ev.Event]:
    name = checkpoint_id(step, 1)
    committed = ev.CheckpointCommitted(1, name, step, 1, 0.0, 0.0, make_tags())
    return [committed, ev.CheckpointVerified(name)]


def found(number: int, kind: str, severity: Severity, step: int, onset: int) -> ev.FindingSeen:
    finding = Finding(kind, kind, severity, step, onset, 9.0, 4.0, "loss is up")
    return ev.FindingSeen(f"f-{number:06d}", 1 if number < 2 else 2, finding)


def trained(to_step: int) -> RunState:
    events: list[ev.Event] = [ev.AttemptResumed(1, 0, "", 0.1)]
    for step in range(10, to_step + 1, 10):
        events += [*steps(1, step - 9, step), *saved(step)]
    return after(started(), *events)


def test_notes_between_failures_do_not_hide_that_they_are_the_same() -> None:
    state = after(trained(40), *steps(1, 41, 42))
    repaired = (("shard-0", "rank 0: [shard-hash] read from the store"),)
    source = checkpoint_id(40, 1)
    for attempt in range(1, 5):
        assert not state.paused
        failed = ev.WorkerExited(attempt, 1, "n0", exit_code=1, step=42, code="worker-error")
        state = after(state, failed)
        if not state.paused:
            resumed = ev.AttemptResumed(attempt + 1, 40, source, 0.1, repaired=repaired)
            state = after(state, resumed, *steps(attempt + 1, 41, 42))
    assert state.paused == "repeated-failure"
    faults = [incident.draft.fault for incident in state.incidents.values()]
    assert faults == ["worker-failed", "bad-checkpoint"] * 3 + ["worker-failed"]


def test_a_warning_that_healed_does_not_say_that_earlier_trouble_came_back() -> None:
    state = after(trained(60), found(1, "level-shift", Severity.ROLLBACK, 60, 55))
    plan = state.attempt.plan if state.attempt is not None else None
    assert plan is not None
    assert plan.attempt == 2
    step = plan.resume_step
    state = after(state, ev.AttemptResumed(2, step, plan.checkpoints[0], 0.1))
    state = after(state, *steps(2, step + 1, 50), found(2, "spike", Severity.WARN, 50, 50))
    # The warning heals first: what was rolled back from began at a later step.
    state = after(state, *steps(2, 51, 55 + HEAL_STEPS))
    rolled_back, warning = state.incidents.values()
    assert warning.outcome == "did not get worse; nothing was done"
    assert rolled_back.outcome.endswith("past the old onset")
    assert warning.is_watched


def test_a_restart_after_a_pause_is_not_put_down_to_a_warning() -> None:
    state = after(trained(40), found(1, "spike", Severity.WARN, 40, 40))
    state = after(state, ev.InterventionRequested("p", "pause", "ann", "lunch"))
    state = after(state, *(ev.RankFinished(1, rank, 40, True) for rank in range(4)))
    assert state.paused
    state = after(state, ev.InterventionRequested("r", "resume", "ann", "back"))
    resumed = ev.AttemptResumed(2, 40, checkpoint_id(40, 1), 0.1)
    state = after(state, resumed, *steps(2, 41, 60))
    (warning,) = state.incidents.values()
    assert [type(decision.action) for decision in warning.decisions] == [
        d.Observe,
        d.CloseIncident,
    ]
    assert warning.outcome == "overtaken by a restart for another cause"
    assert incident_gpu_s(state, warning) == 0.0
