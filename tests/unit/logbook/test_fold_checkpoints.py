"""What befalls a run around a checkpoint is told with it; a doubt about its bytes is settled."""

from __future__ import annotations

from typing import Any

import pytest
from midwatch.checkpoints.manifest import checkpoint_id
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.checkpoint_text import health_text, outcome_text
from midwatch.logbook.findings import Finding, Severity
from midwatch.logbook.fold_checkpoints import failed_restart
from midwatch.logbook.plan import AttemptPlan, Placement
from midwatch.logbook.state import CheckpointState, FindingMark, RunState
from midwatch.logbook.wire import Hyper, Mesh
from midwatch.tests.support.builders import decided, fold, make_sample, make_tags, started

A10, A20, A30 = (checkpoint_id(step, 1) for step in (10, 20, 30))
BAD = "rank 1: [shard-checksum] a.distcp is not what was written."


def steps(first: int, last: int, attempt: int = 1) -> list[ev.Event]:
    return [ev.StepDone(attempt, make_sample(step)) for step in range(first, last + 1)]


def commit(step: int, attempt: int = 1) -> ev.CheckpointCommitted:
    name = checkpoint_id(step, attempt)
    return ev.CheckpointCommitted(attempt, name, step, 1, 0.1, 0.5, make_tags())


def trained(to_step: int = 30) -> RunState:
    events: list[ev.Event] = [ev.AttemptResumed(1, 0, "", 0.1)]
    for step in range(1, to_step + 1):
        events += steps(step, step)
        events += [commit(step)] if step % 10 == 0 else []
    return fold(events, started())


def found(step: int, kind: str = "creep", **fields: Any) -> ev.FindingSeen:
    severity = fields.pop("severity", Severity.WARN)
    attempt = fields.pop("attempt", 1)
    finding = Finding(kind, kind, severity, step, step, 1.0, 1.0, "up", **fields)
    return ev.FindingSeen(f"f-{step:06d}", attempt, finding)


def restarted(state: RunState, candidates: tuple[str, ...], step: int) -> RunState:
    """The next attempt was decided on."""
    placements = (Placement("n0", 0, 2), Placement("n1", 2, 2))
    plan = AttemptPlan(state.num_attempts + 1, Mesh(2, 2), placements, candidates, step, Hyper())
    return fold([decided(state, d.StartAttempt(plan))], state)


def of(state: RunState, name: str) -> CheckpointState:
    return state.checkpoints[name]


# --- findings ------------------------------------------------------------------------------------


def test_a_checkpoint_knows_the_trouble_before_and_the_first_after_it() -> None:
    state = trained(14)
    state = fold([found(14), *steps(15, 20), commit(20), *steps(21, 24), found(24, "spike")], state)
    state = fold([*steps(25, 26), found(26)], state)
    assert of(state, A10).before is None
    assert of(state, A10).after == FindingMark("creep", Severity.WARN, 4)
    assert of(state, A20).before == FindingMark("creep", Severity.WARN, 6)
    assert of(state, A20).after == FindingMark("spike", Severity.WARN, 4)


@pytest.mark.parametrize(
    "fields",
    [
        {"shadow": True},
        {"severity": Severity.OBSERVE},
        {"node": "n1"},
    ],
)
def test_what_is_no_trouble_of_the_numbers_marks_nothing(fields: dict[str, Any]) -> None:
    state = fold([found(30, **fields), *steps(31, 40), commit(40)], trained())
    assert of(state, A20).after is None
    assert of(state, checkpoint_id(40, 1)).before is None


def test_a_finding_on_a_lineage_that_was_left_is_no_past_of_a_later_checkpoint() -> None:
    state = fold([found(30)], trained())
    state = fold([ev.AttemptResumed(2, 20, A20, 0.1)], restarted(state, (A20,), 20))
    state = fold([*steps(21, 40, 2), commit(40, 2)], state)
    assert of(state, checkpoint_id(40, 2)).before is None
    assert of(state, A20).after == FindingMark("creep", Severity.WARN, 10)


def test_a_commit_that_comes_late_learns_what_was_found_meanwhile() -> None:
    state = fold([*steps(31, 34), found(33), commit(30 + 1)], trained())
    assert of(state, checkpoint_id(31, 1)).after == FindingMark("creep", Severity.WARN, 2)


def test_the_outcome_is_told_anew_as_training_goes_on() -> None:
    state = trained()
    assert outcome_text(of(state, A20), state.step) == "healthy for 10 steps"
    state = fold(steps(31, 35), state)
    assert outcome_text(of(state, A20), state.step) == "healthy for 15 steps"
    state = fold([found(35)], state)
    assert outcome_text(of(state, A20), state.step) == "creep 15 steps later"
    state = fold([ev.AttemptResumed(2, 20, A20, 0.1)], restarted(state, (A20,), 20))
    state = fold(steps(21, 22, 2), state)
    assert outcome_text(of(state, A20), state.step) == "creep 15 steps later, resumed from once"
    assert outcome_text(of(state, A30), state.step) == "rolled back past, creep 5 steps later"
    assert health_text(of(state, A20)) == "scale 64, activation falling, grad flat"


# --- doubts --------------------------------------------------------------------------------------


def passed_over(state: RunState, why: str) -> RunState:
    resumed = ev.AttemptResumed(2, 20, A20, 0.1, ((A10, why),), tier="disk")
    return fold([resumed], restarted(state, (A10, A20), 10))


def test_bytes_that_were_bad_are_doubted_until_they_are_read_once_more() -> None:
    state = fold([ev.CheckpointVerified(A10)], trained())
    state = passed_over(state, BAD)
    assert of(state, A10).verified is False
    late = fold([ev.CheckpointVerified(A10)], state)
    assert of(late, A10).verified is False, "a reading begun before proves nothing"
    state = fold([decided(state, d.VerifyCheckpoint(A10)), ev.CheckpointVerified(A10)], state)
    assert of(state, A10).verified is True
    assert (of(state, A10).error, of(state, A10).num_passed_over) == ("", 1)


def test_a_second_reading_that_finds_it_bad_too_settles_it() -> None:
    state = passed_over(trained(), BAD)
    bad = ev.CheckpointVerified(A10, "shard-checksum: again")
    state = fold([decided(state, d.VerifyCheckpoint(A10)), bad], state)
    assert of(state, A10).verified is False
    assert of(state, A10).error == "shard-checksum: again"


@pytest.mark.parametrize(
    ("why", "verified", "is_quarantined"),
    [
        (BAD, False, False),
        ("[manifest-missing] no manifest", False, False),
        ("rank 1: [object-missing] r/x/__2_0.distcp is not in s3://b/p.", False, False),
        ("rank 1: [object-size] r/x/__2_0.distcp ends before byte 5.", False, False),
        ("[state-mismatch] does not fit this model", True, True),
        ("[store-unreachable] no answer within 60 s", True, False),
    ],
)
def test_a_load_that_failed_says_of_the_checkpoint_only_what_it_knows(
    why: str, verified: bool, is_quarantined: bool
) -> None:
    state = passed_over(fold([ev.CheckpointVerified(A10)], trained()), why)
    assert of(state, A10).verified is verified
    assert bool(of(state, A10).quarantined) is is_quarantined


def test_another_spec_frees_what_did_not_fit_the_last_and_nothing_else() -> None:
    state = passed_over(trained(), "[state-mismatch] does not fit this model")
    state = fold([decided(state, d.QuarantineCheckpoint(A20))], state)
    state = fold([ev.RunSubmitted("night", {"new": 1}, "", 1, "", "ann")], state)
    assert not of(state, A10).quarantined
    assert of(state, A20).quarantined == "because"


# --- restarts ------------------------------------------------------------------------------------


def exited(rank: int, **fields: Any) -> ev.WorkerExited:
    status = None if "signal" in fields else 1
    return ev.WorkerExited(2, rank, f"n{rank // 2}", exit_code=status, **fields)


RESUMED = ev.AttemptResumed(2, 30, A30, 0.1)
OWN = exited(0, code="worker-raised")


@pytest.mark.parametrize(
    ("events", "blamed"),
    [
        ([RESUMED, OWN], A30),
        ([RESUMED, exited(1, code="collective-failed"), OWN], A30),
        ([RESUMED, exited(0, signal=11)], A30),
        ([RESUMED], A30),
        ([RESUMED, exited(0, signal=9), exited(1, code="collective-failed")], ""),
        ([RESUMED, exited(1, code="collective-failed")], ""),
        ([RESUMED, OWN, ev.NodeLost("n1", "1", "died")], ""),
        ([RESUMED, OWN, *steps(31, 31, 2)], ""),
        ([ev.StartFailed(2, "n0", "fork-failed", "")], ""),
        ([exited(0, signal=7, phase="LOADING")], A30),
        ([exited(0, code="no-gpu", phase="LOADING")], ""),
        ([exited(0, code="worker-raised", phase="BUILDING")], ""),
        ([RESUMED, ev.RankFinished(2, 0, 30)], ""),
    ],
)
def test_only_a_restart_that_failed_by_itself_speaks_against_its_checkpoint(
    events: list[ev.Event], blamed: str
) -> None:
    state = fold(events, restarted(trained(), (A30, A20), 30))
    assert state.attempt is not None
    assert failed_restart(state.attempt, state.nodes) == blamed
    after = restarted(state, (A20,), 20)
    assert of(after, A30).num_failed == (1 if blamed else 0)


def test_a_restart_that_trains_clears_the_failures_before_it() -> None:
    state = fold([RESUMED, OWN], restarted(trained(), (A30,), 30))
    state = restarted(state, (A30,), 30)
    state = fold([ev.AttemptResumed(3, 30, A30, 0.1), *steps(31, 31, 3)], state)
    assert (of(state, A30).num_failed, of(state, A30).num_resumed) == (0, 1)


# --- pins and costs ------------------------------------------------------------------------------


def test_pins_come_and_go_with_their_checkpoints() -> None:
    state = trained()
    state = fold([decided(state, d.PinCheckpoint(A10))], state)
    assert state.pins == {A10: "because"}
    assert not fold([decided(state, d.UnpinCheckpoint(A10))], state).pins
    assert not fold([ev.CheckpointsPruned((A10,))], state).pins


def test_a_deletion_is_pending_until_all_of_it_is_gone() -> None:
    before = trained()
    state = fold([decided(before, d.PruneCheckpoints((A10, A20)))], before)
    others, pending = before.pending.keys(), state.pending.keys()
    assert len(pending - others) == 1
    state = fold([ev.CheckpointsPruned((A20,))], state)
    assert state.checkpoints.keys() == {A10, A30}
    assert state.pending.keys() == pending
    state = fold([ev.CheckpointsPruned((A10,))], state)
    assert state.checkpoints.keys() == {A30}
    assert state.pending.keys() == others


def test_a_setback_is_training_lost_to_a_failure_that_memory_did_not_give_back() -> None:
    draft = d.IncidentDraft("inc-0001", "worker-killed", "dead", 30, 0.0, 30)

    def resumed(tier: str, opens: d.IncidentDraft | None) -> int:
        state = trained()
        plan = restarted(state, (A30,), 30).attempt
        assert plan is not None
        state = fold([decided(state, d.StartAttempt(plan.plan), opens=opens)], state)
        return fold([ev.AttemptResumed(2, 30, A30, 0.1, tier=tier)], state).num_setbacks

    assert resumed("disk", draft) == 1
    assert resumed("memory", draft) == 0
    assert resumed("disk", None) == 0, "a person's stop and resume is no failure"


def test_what_saves_cost_is_remembered_but_not_of_those_only_found_on_disk() -> None:
    state = trained()
    assert [(save.step, save.blocked_s) for save in state.recent_saves] == [
        (10, 0.1),
        (20, 0.1),
        (30, 0.1),
    ]
    silent = ev.CheckpointCommitted(1, checkpoint_id(40, 1), 40, 1, 0.0, 0.0)
    assert fold([silent], state).recent_saves == state.recent_saves


# --- saves that fail ------------------------------------------------------------------------------


def failed(step: int, attempt: int = 1) -> ev.CheckpointFailed:
    return ev.CheckpointFailed(attempt, checkpoint_id(step, attempt), step, "disk-full")


def test_saves_that_fail_in_a_row_are_counted_until_one_is_committed() -> None:
    state = fold([failed(35), failed(40), failed(40), failed(35)], trained())
    trouble = state.save_trouble
    assert trouble is not None
    assert (trouble.num, trouble.step, trouble.error) == (2, 40, "disk-full")
    assert trouble.since_s == state.time_s - 3.0
    # What was saved before them, and is told late, ends nothing.
    late = fold([commit(38)], state)
    assert late.save_trouble == trouble
    over = fold([commit(45)], late)
    assert over.save_trouble is not None
    assert (over.save_trouble.num, over.save_trouble.over_s) == (2, over.time_s)
    again = fold([failed(50)], over)
    assert again.save_trouble is not None
    assert (again.save_trouble.num, again.save_trouble.over_s) == (1, None)
    assert again.failed_saves == 5, "all that ever were told of"


def test_the_trouble_outlives_its_attempt_and_only_the_current_one_adds_to_it() -> None:
    state = fold([failed(40)], trained())
    plan = AttemptPlan(2, Mesh(2, 2), (Placement("n0", 0, 2),), (A20,), 20, Hyper())
    state = fold([decided(state, d.StartAttempt(plan)), failed(45)], state)
    assert state.save_trouble is not None
    assert (state.save_trouble.num, state.save_trouble.step) == (1, 40)
    state = fold([ev.AttemptResumed(2, 20, A20, 0.1), failed(25, 2)], state)
    assert (state.save_trouble.num, state.save_trouble.step) == (2, 25)
    over = fold([commit(30, 2)], state).save_trouble
    assert over is not None
    assert over.over_s is not None
