"""What single events do to the state where it is easy to get wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest
from midwatch.checkpoints.manifest import checkpoint_id
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.fold import MAX_EXITS_KEPT
from midwatch.logbook.fold_decisions import MAX_REMEMBERED_RESTARTS
from midwatch.logbook.plan import AttemptPlan, Placement
from midwatch.logbook.state import TREND_STEPS, RunState, Status
from midwatch.logbook.wire import Hyper, LrChange, Mesh
from midwatch.operator.spec import RestartPolicy
from midwatch.tests.support.builders import decided, fold, make_sample, make_tags, started

A10, A20, A30 = (checkpoint_id(step, 1) for step in (10, 20, 30))


def commit(step: int, attempt: int = 1) -> ev.CheckpointCommitted:
    name = checkpoint_id(step, attempt)
    return ev.CheckpointCommitted(attempt, name, step, 1, 0.0, 0.0, make_tags())


def steps(first: int, last: int, attempt: int = 1, slope: float = -0.1) -> list[ev.Event]:
    return [
        ev.StepDone(attempt, make_sample(step, activation_norm=100.0 + slope * step))
        for step in range(first, last + 1)
    ]


def trained(to_step: int = 30, attempt: int = 1) -> RunState:
    """Attempt 1 has trained to a step and committed every tenth."""
    events: list[ev.Event] = [ev.AttemptResumed(attempt, 0, "", 0.1)]
    for step in range(1, to_step + 1):
        events += steps(step, step, attempt)
        if step % 10 == 0:
            events.append(commit(step, attempt))
    return fold(events, started())


def restarted(state: RunState, resume: str, step: int) -> RunState:
    """The next attempt is decided and resumes."""
    number = state.num_attempts + 1
    state = fold([started_attempt(state, number, (resume,), step)], state)
    return fold([ev.AttemptResumed(number, step, resume, 0.1)], state)


def started_attempt(
    state: RunState, number: int, checkpoints: tuple[str, ...], step: int
) -> ev.DecisionMade:
    placements = (Placement("n0", 0, 2), Placement("n1", 2, 2))
    plan = AttemptPlan(number, Mesh(2, 2), placements, checkpoints, step, Hyper())
    return decided(state, d.StartAttempt(plan))


def test_a_resume_that_is_told_again_does_not_undo_what_was_trained_since() -> None:
    state = trained(30)
    again = fold([ev.AttemptResumed(1, 0, "", 0.1)], state)
    assert again.step == 30
    assert not any(c.abandoned for c in again.checkpoints.values())


def test_steps_of_an_attempt_that_has_not_said_where_it_resumed_have_no_place() -> None:
    state = fold([*steps(1, 3)], started())
    assert (state.step, state.samples) == (0, ())


def test_a_resume_leaves_behind_what_lies_beyond_it() -> None:
    state = restarted(trained(30), A20, 20)
    left = {name for name, c in state.checkpoints.items() if c.abandoned}
    assert (state.step, left) == (20, {A30})
    assert [sample.step for sample in state.samples] == list(range(1, 21))


def test_a_late_commit_is_judged_by_every_resume_since() -> None:
    state = restarted(trained(30), A10, 10)
    state = fold(steps(11, 40, 2), state)
    state = fold([commit(40, 2)], state)
    state = restarted(state, checkpoint_id(40, 2), 40)
    # Step 25 of attempt 1 lies before the last resume, but after the one of attempt 2.
    late = fold([commit(25, 1), commit(35, 2)], state)
    assert late.checkpoints[checkpoint_id(25, 1)].abandoned
    assert not late.checkpoints[checkpoint_id(35, 2)].abandoned


def test_late_news_of_a_deleted_checkpoint_does_not_bring_it_back() -> None:
    state = fold([ev.CheckpointsPruned((A10,)), commit(10)], trained(30))
    assert A10 not in state.checkpoints


def test_what_was_found_unsound_stays_so() -> None:
    events = [ev.CheckpointVerified(A10, "shard-checksum"), ev.CheckpointVerified(A10)]
    assert fold(events, trained(30)).checkpoints[A10].verified is False


def test_a_candidate_that_would_not_load_is_unsound() -> None:
    state = fold([started_attempt(trained(30), 2, (A30, A20), 30)], trained(30))
    state = fold([ev.AttemptResumed(2, 20, A20, 0.1, ((A30, "shard-checksum"),))], state)
    assert (state.checkpoints[A30].verified, state.step) == (False, 20)


def test_candidates_that_no_rank_could_load_are_all_unsound() -> None:
    state = fold([started_attempt(trained(30), 2, (A30, A20), 30)], trained(30))
    exited = ev.WorkerExited(2, 0, "n0", exit_code=1, code="no-usable-checkpoint", message="rot")
    state = fold([exited], state)
    assert [state.checkpoints[n].verified for n in (A10, A20, A30)] == [None, False, False]


def test_trends_count_only_what_followed_in_the_lineage() -> None:
    state = fold(steps(31, 50, slope=+5.0), trained(30))
    rising = state.checkpoints[A30].activation_trend.slope
    assert rising is not None
    assert rising > 0
    state = fold(steps(31, 50, attempt=2), restarted(state, A30, 30))
    falling = state.checkpoints[A30].activation_trend
    assert falling.count == 20
    assert falling.slope is not None
    assert falling.slope < 0


def test_a_commit_heard_of_late_has_the_trend_it_would_have_had() -> None:
    in_time = fold(steps(31, 120), trained(30)).checkpoints[A30].activation_trend
    silent = fold(
        [ev.AttemptResumed(1, 0, "", 0.1), *steps(1, 120), commit(30)], started()
    ).checkpoints[A30]
    assert silent.activation_trend.count == in_time.count == TREND_STEPS
    assert silent.activation_trend.slope == pytest.approx(in_time.slope)


def test_a_new_agent_on_a_node_is_the_loss_of_the_one_before() -> None:
    state = fold([ev.NodeJoined("n1", "n1#2", "host", 2)], trained(5))
    assert state.attempt is not None
    assert [node for node, _ in state.attempt.lost_nodes] == ["n1"]
    assert state.attempt.signal_s is not None
    assert (state.nodes["n1"].present, state.nodes["n1"].num_losses) == (True, 1)


def test_the_same_agent_joining_again_is_no_loss() -> None:
    state = fold([ev.NodeJoined("n1", "1", "host", 2)], trained(5))
    assert state.attempt is not None
    assert not state.attempt.lost_nodes


def test_a_loss_told_twice_counts_once() -> None:
    lost = ev.NodeLost("n1", "1", "died")
    state = fold([lost, lost], trained(5))
    assert state.attempt is not None
    assert len(state.attempt.lost_nodes) == state.nodes["n1"].num_losses == 1


def hang(step: int) -> ev.HangSuspected:
    rows = (ev.HangRow(0, step, "VOTE", 6.0, "S", True), ev.HangRow(1, step - 1, "DATA", 6.0, "S"))
    return ev.HangSuspected(1, "n0", 5.0, rows)


def test_a_suspected_hang_is_refuted_by_a_step_that_needed_every_rank() -> None:
    state = fold([hang(10), *steps(11, 11)], trained(10))
    assert state.attempt is not None
    assert state.attempt.hangs, "one step ahead may have been under way already"
    state = fold(steps(12, 12), state)
    assert state.attempt is not None
    assert (state.attempt.hangs, state.attempt.signal_s) == ((), None)
    late = fold([hang(10)], state)
    assert late.attempt is not None
    assert late.attempt.signal_s is None, "told again, it is still refuted"


def test_a_refuted_hang_does_not_excuse_other_signs() -> None:
    exited = ev.WorkerExited(1, 2, "n1", signal=9)
    state = fold([hang(10), exited, *steps(11, 13)], trained(10))
    assert state.attempt is not None
    assert state.attempt.signal_s is not None


def test_an_exit_without_a_finish_is_a_sign_and_with_one_is_none() -> None:
    clean = ev.WorkerExited(1, 0, "n0", exit_code=0)
    finished = ev.RankFinished(1, 0, 5)
    good, bad = fold([finished, clean], trained(5)), fold([clean], trained(5))
    assert good.attempt is not None
    assert bad.attempt is not None
    assert good.attempt.signal_s is None
    assert bad.attempt.signal_s is not None


@pytest.mark.parametrize(
    "end",
    [{"exit_code": None, "signal": 11}, {"exit_code": 134}, {"exit_code": -1}],
    ids=["crashed while it ended", "aborted while it ended", "nobody learned how"],
)
def test_how_a_rank_ends_once_its_state_is_committed_is_no_sign(end: dict[str, Any]) -> None:
    state = fold([ev.RankFinished(1, 0, 5), ev.WorkerExited(1, 0, "n0", **end)], trained(5))
    assert state.attempt is not None
    assert (state.attempt.signal_s, state.attempt.exits) == (None, ())


def test_silence_while_no_controller_listened_counts_for_nothing() -> None:
    state = trained(5)
    later = fold([ev.ControllerStarted(2, "host", 1, 0)], state, every_s=1000.0)
    assert later.attempt is not None
    assert later.attempt.heard_s == later.time_s


def test_a_rollback_remembers_where_it_really_went() -> None:
    placements = (Placement("n0", 0, 2), Placement("n1", 2, 2))
    plan = AttemptPlan(2, Mesh(2, 2), placements, (A20, A10), 20, Hyper())
    state = trained(30)
    state = fold([decided(state, d.StartAttempt(plan, 27, 0.9))], state)
    assert state.rollbacks[-1].onset_data == 26
    state = fold([ev.AttemptResumed(2, 10, A10, 0.1, ((A20, "rot"),))], state)
    assert (state.rollbacks[-1].checkpoint, state.rollbacks[-1].resume_step) == (A10, 10)


def test_the_remembered_restarts_suffice_for_the_largest_budget() -> None:
    limits = RestartPolicy.model_fields["max_restarts_per_hour"].metadata
    assert max(m.le for m in limits if hasattr(m, "le")) <= MAX_REMEMBERED_RESTARTS


def test_an_attempt_given_up_for_want_of_nodes_was_barren_if_it_made_no_step() -> None:
    state = started()
    assert fold([decided(state, d.AwaitNodes())], state).barren_attempts == 1
    state = trained(3)
    assert fold([decided(state, d.AwaitNodes())], state).barren_attempts == 0


def test_without_an_attempt_a_run_waits_whatever_is_open() -> None:
    state = trained(3)
    draft = d.IncidentDraft("inc-0001", "node-lost", "n1 was lost", 3, state.time_s, 3, node="n1")
    assert fold([decided(state, d.AwaitNodes(), opens=draft)], state).status is Status.WAITING


def sent(state: RunState, action: str, value: float = 0.5) -> RunState:
    request = ev.InterventionRequested("ask", action, "ann", "", value)
    command = d.Command(state.next_command, action, value, "ask")
    state = fold([request], state)
    return fold([decided(state, d.SendCommand(command, "ask"))], state)


def ack(*ranks: int, seq: int = 1, error: str = "", hyper: Hyper | None = None) -> ev.Event:
    return ev.CommandApplied(1, seq, "n0", ranks, 6, {"lr": 0.5}, {"lr": 1.0}, error, hyper=hyper)


def test_a_command_is_applied_when_every_rank_has_confirmed_it() -> None:
    hyper = Hyper((LrChange(6, 0.5, "ask"),))
    state = fold([ack(0, 1, hyper=hyper)], sent(trained(5), "lr-factor"))
    assert (state.interventions["ask"].stage, state.hyper) == ("sent", hyper)
    state = fold([ack(2, 3, hyper=hyper)], state)
    assert state.interventions["ask"].stage == "applied"
    assert state.hyper.lr_changes == hyper.lr_changes


def test_a_stop_is_done_only_when_the_run_has_ended() -> None:
    state = fold([ack(0, 1, 2, 3)], sent(trained(5), "stop"))
    assert state.interventions["ask"].stage == "sent"
    state = fold([decided(state, d.EndRun(stopped=True, step=5))], state)
    assert state.interventions["ask"].stage == "applied"


def test_a_command_that_fails_on_one_rank_has_failed() -> None:
    state = fold([ack(0, 1), ack(2, 3, error="value-out-of-range")], sent(trained(5), "grad-clip"))
    assert state.interventions["ask"].stage == "failed"


def test_a_sample_that_is_not_a_number_is_a_step_like_others() -> None:
    sample = make_sample(6, loss=math.nan, grad_norm=math.inf, activation_norm=math.nan)
    state = fold([ev.StepDone(1, sample)], trained(5))
    assert state.step == 6


def test_an_upload_ends_the_trouble_of_all_nodes() -> None:
    state = trained(20)
    first = ev.UploadFailed("n0", "store-unreachable", "down", 5.0)
    second = ev.UploadFailed("n1", "store-denied", "no", 6.0)
    state = fold([first, second], state)
    assert state.upload_trouble == {"n0": first, "n1": second}
    done = fold([ev.CheckpointUploaded(A10, "n1", 1, 2.0)], state)
    assert done.upload_trouble == {}
    assert done.checkpoints[A10].uploaded_s == done.time_s
    assert done.checkpoints[A20].uploaded_s is None
    # Each node tells of it, and what has befallen the others since then is no older for that.
    third = ev.UploadFailed("n2", "store-denied", "no", 7.0)
    again = fold([third, ev.CheckpointUploaded(A10, "n0", 1, 2.0)], done)
    assert again.checkpoints == done.checkpoints
    assert again.upload_trouble == {"n2": third}


def test_an_upload_may_be_told_before_the_commit() -> None:
    # The node that completed it and the one of rank 0 report on ways of their own.
    early = fold([ev.CheckpointUploaded(A30, "n1", 1, 2.0)], trained(20))
    assert A30 not in early.checkpoints
    state = fold([commit(30)], early)
    assert state.checkpoints[A30].uploaded_s == early.time_s
    assert state.uploaded_early == {}
    gone = fold([ev.CheckpointsPruned((A30,)), ev.CheckpointUploaded(A30, "n1", 1, 2.0)], state)
    assert gone.uploaded_early == {}


def test_a_checkpoint_out_of_reach_is_not_called_unsound() -> None:
    state = trained(30)
    state = fold([started_attempt(state, 2, (A30, A20, A10), 10)], state)
    passed = ((A30, "rank 2: [store-unreachable] cannot read"), (A20, "[shard-checksum] rot"))
    state = fold([ev.AttemptResumed(2, 10, A10, 0.1, passed_over=passed)], state)
    assert state.checkpoints[A30].verified is None
    assert state.checkpoints[A20].verified is False


def test_places_are_remembered_while_the_run_waits() -> None:
    state = fold([ev.NodeLost("n0", "1", "gone")], trained(20))
    assert state.places == ("n0", "n1")
    waiting = fold([decided(state, d.AwaitNodes())], state)
    assert waiting.attempt is None
    assert waiting.places == ("n0", "n1")


def test_of_thousands_of_echoes_a_few_are_kept_and_a_cause_among_them_always() -> None:
    echoes = [
        ev.WorkerExited(1, rank, "n0", exit_code=1, code="collective-failed")
        for rank in range(10_000)
    ]
    cause = ev.WorkerExited(1, 10_001, "n1", signal=9)
    state = fold([ev.WorkersExited(1, "n0", (*echoes, cause))], started())
    assert state.attempt is not None
    assert len(state.attempt.exits) <= MAX_EXITS_KEPT + 1
    assert cause in state.attempt.exits


def test_a_paused_run_that_is_asked_to_go_on_is_not_at_rest() -> None:
    before = trained(5)
    paused = fold([decided(before, d.PauseRun("restart-budget"))], before)
    assert paused.is_at_rest
    resume = ev.InterventionRequested(id="r", action="resume", by="ann", reason="submitted again")
    assert not fold([resume], paused).is_at_rest
