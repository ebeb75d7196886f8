"""Single decisions about a failed attempt, from the signs it has shown."""

from __future__ import annotations

import msgspec
import pytest
from midwatch.checkpoints.manifest import checkpoint_id
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.findings import Finding, Severity
from midwatch.logbook.state import RunState
from midwatch.logbook.wire import Hyper, LrChange
from midwatch.operator.policy.decide import decide
from midwatch.operator.policy.diagnosis import diagnose
from midwatch.operator.policy.placement import plan_placement
from midwatch.operator.policy.storage import VERIFY_DEADLINE_S
from midwatch.operator.policy.upkeep import LAST_STEPS_WAIT_S
from midwatch.operator.spec import RunSpec
from midwatch.tests.support.builders import (
    decided,
    fold,
    make_sample,
    make_spec,
    make_tags,
    started,
)

SPEC = make_spec()
A20, A30 = checkpoint_id(20, 1), checkpoint_id(30, 1)


def trained(to_step: int = 40, hyper: Hyper | None = None) -> RunState:
    """Attempt 1 has trained to a step, with a sound checkpoint every tenth."""
    events: list[ev.Event] = [ev.AttemptResumed(1, 0, "", 0.1)]
    for step in range(1, to_step + 1):
        events.append(ev.StepDone(1, make_sample(step)))
        if step % 10 == 0:
            name = checkpoint_id(step, 1)
            events.append(ev.CheckpointCommitted(1, name, step, 1, 0.0, 0.0, make_tags()))
            events.append(ev.CheckpointVerified(name))
    return fold(events, started(hyper=hyper))


def exited(rank: int, code: str = "", signal: int | None = None) -> ev.WorkerExited:
    node = f"n{rank // 2}"
    status = None if signal is not None else 1
    return ev.WorkerExited(1, rank, node, exit_code=status, signal=signal, code=code)


def alarm(onset: int, step: int, kind: str = "level-shift") -> ev.FindingSeen:
    finding = Finding(kind, kind, Severity.ROLLBACK, step, onset, 9.0, 4.0, "loss is up")
    return ev.FindingSeen("f-000001", 1, finding)


def hang(node: str, rank: int, state: str = "S", age_s: float = 6.0) -> ev.HangSuspected:
    return ev.HangSuspected(1, node, 5.0, (ev.HangRow(rank, 40, "VOTE", age_s, state, True),))


def next_of(state: RunState, after_s: float = 0.0, spec: RunSpec = SPEC) -> d.Decision:
    return decide(state, spec, state.time_s + after_s)[0]


def settle(state: RunState, after_s: float = 0.0, spec: RunSpec = SPEC) -> list[d.Decision]:
    """Every decision until there is nothing left to decide."""
    made: list[d.Decision] = []
    now_s = state.time_s + after_s
    while found := decide(state, spec, now_s):
        for decision in found:
            state = fold([ev.DecisionMade(decision)], state, 0.0)
            if not isinstance(decision.action, d.PruneCheckpoints):
                state = fold([ev.ActionDone(decision.id)], state, 0.0)
            made.append(decision)
        assert len(made) < 64
    return made


@pytest.mark.parametrize(
    ("events", "fault", "node", "rank"),
    [
        ([exited(0, "collective-failed"), exited(2, signal=9)], "worker-killed", "n1", 2),
        ([exited(2, "collective-failed"), exited(1, "out-of-memory")], "worker-failed", "n0", 1),
        ([exited(2, "out-of-memory"), alarm(39, 40)], "level-shift", None, None),
        ([exited(2, signal=9), ev.NodeLost("n1", "1", "died")], "node-lost", "n1", None),
        ([hang("n0", 0), hang("n1", 3, "T")], "hang", "n1", 3),
        ([ev.StartFailed(1, "n1", "fork-failed", "")], "start-failed", "n1", None),
    ],
)
def test_the_gravest_sign_names_the_fault(
    events: list[ev.Event], fault: str, node: str | None, rank: int | None
) -> None:
    state = fold(events, trained())
    found = diagnose(state, SPEC, state.time_s)
    assert found is not None
    assert (found.fault, found.node, found.rank) == (fault, node, rank)


def test_what_may_be_a_consequence_waits_for_its_cause() -> None:
    state = fold([exited(0, "collective-failed"), exited(3, "rendezvous-failed")], trained(), 0.0)
    assert not decide(state, SPEC, state.time_s + 0.5)
    assert isinstance(next_of(state, 1.0).action, d.StartAttempt)


def test_one_nodes_word_on_a_hang_blames_nobody_that_only_waits() -> None:
    state = fold([hang("n0", 0, age_s=6.3)], trained())
    assert diagnose(state, SPEC, state.time_s) is None, "the other node may still speak"
    found = diagnose(state, SPEC, state.time_s + 1.0)
    assert found is not None
    assert (found.fault, found.rank) == ("hang", None)
    assert "only n0 reported" in found.reason


def test_a_stopped_process_is_blamed_whoever_else_is_silent() -> None:
    state = fold([hang("n1", 3, "T")], trained())
    found = diagnose(state, SPEC, state.time_s + 1.0)
    assert found is not None
    assert found.rank == 3


def test_a_kill_in_the_same_breath_as_an_alarm_does_not_hide_it() -> None:
    state = fold([exited(1, signal=9), alarm(39, 40)], trained())
    decision = next_of(state)
    assert isinstance(decision.action, d.StartAttempt)
    assert decision.action.rollback_onset == 39
    assert decision.action.plan.resume_step == 20
    assert ("also seen", "rank 1 on n0 died of SIGKILL") in decision.evidence


def test_a_lost_node_and_an_alarm_are_both_answered() -> None:
    state = fold([ev.NodeLost("n1", "1", "died"), alarm(39, 40)], trained())
    quarantine, rollback = settle(state)[:2]
    assert isinstance(quarantine.action, d.QuarantineNode)
    assert isinstance(rollback.action, d.StartAttempt)
    assert rollback.action.rollback_onset == 39
    assert rollback.action.plan.nodes == ("n0", "n2")
    assert quarantine.incident != rollback.incident


def test_every_lost_node_is_quarantined_before_anything_is_placed() -> None:
    lost = [ev.NodeLost("n0", "1", "died"), ev.NodeLost("n1", "1", "died")]
    made = settle(fold(lost, trained()))
    kinds = [type(decision.action).__name__ for decision in made[:3]]
    assert kinds == ["QuarantineNode", "QuarantineNode", "AwaitNodes"]
    assert len({decision.incident for decision in made[:3]}) == 1


def test_all_ranks_done_ends_the_run_and_one_missing_does_not() -> None:
    done = [ev.RankFinished(1, rank, 40) for rank in range(4)]
    assert isinstance(next_of(fold(done, trained())).action, d.EndRun)
    missing = fold([*done[:3], exited(3)], trained())
    assert isinstance(next_of(missing).action, d.StartAttempt)


def test_the_end_waits_for_the_numbers_of_the_last_steps() -> None:
    early = fold([ev.RankFinished(1, rank, 42) for rank in range(4)], trained())
    assert not any(isinstance(made.action, d.EndRun) for made in settle(early))
    told = [ev.StepDone(1, make_sample(step)) for step in (41, 42)]
    sick = fold([*told, alarm(41, 42)], early)
    assert isinstance(next_of(sick).action, d.StartAttempt)
    well = next_of(fold(told, early))
    assert well.action == d.EndRun(stopped=False, step=42)
    assert "never came" not in well.reason
    # Not for ever: who kept them may have had no room.
    late = next_of(early, LAST_STEPS_WAIT_S)
    assert late.action == d.EndRun(stopped=False, step=42)
    assert "the numbers of 2 steps after 40 never came" in late.reason


def test_the_end_waits_until_the_last_checkpoint_is_in_the_store() -> None:
    spec = make_spec(checkpoints={"store": {"url": "/shared", "finish_wait_s": 60}})
    done = fold([ev.RankFinished(1, rank, 40) for rank in range(4)], trained())
    last = checkpoint_id(40, 1)
    assert not any(isinstance(d_.action, d.EndRun) for d_ in decide(done, spec, done.time_s))
    stored = fold([ev.CheckpointUploaded(last, "n0", 1, 2.0)], done)
    assert isinstance(next_of(stored, spec=spec).action, d.EndRun)
    # Not for ever: the store may be gone for good.
    assert isinstance(next_of(done, 61.0, spec).action, d.EndRun)


@pytest.mark.parametrize(
    "sign",
    [
        None,
        hang("n1", 3, "T"),
        exited(2, signal=11),
        ev.FindingSeen(
            "f-000001",
            1,
            Finding("nvml", "gpu-lost", Severity.WARN, 40, 40, 0, 0, "", "n1", action="evict"),
        ),
    ],
)
def test_a_finished_run_that_waits_for_the_store_is_not_restarted(sign: ev.Event | None) -> None:
    spec = make_spec(checkpoints={"store": {"url": "s3://b/p", "finish_wait_s": 86_400}})
    done = [ev.RankFinished(1, rank, 40) for rank in range(4)]
    for events in ([*done, sign], [sign, *done]) if sign is not None else (done,):
        state = fold(events, trained())
        for after_s in (1.0, spec.restart.start_deadline_s, 2.1 * spec.restart.hang_max_s):
            made = settle(state, after_s, spec)
            assert not any(isinstance(each.action, d.StartAttempt) for each in made)
        stored = fold([ev.CheckpointUploaded(checkpoint_id(40, 1), "n0", 1, 2.0)], state)
        assert any(isinstance(each.action, d.EndRun) for each in settle(stored, spec=spec))


def test_a_finished_run_whose_last_checkpoint_may_be_lost_with_a_node_goes_on() -> None:
    spec = make_spec(checkpoints={"store": {"url": "s3://b/p"}})
    done = [ev.RankFinished(1, rank, 40) for rank in range(4)]
    state = fold([*done, ev.NodeLost("n1", "1", "died")], trained())
    assert any(isinstance(each.action, d.StartAttempt) for each in settle(state, spec=spec))


def test_a_survivor_keeps_its_ranks_although_the_run_had_to_wait() -> None:
    lost = fold([ev.NodeLost("n0", "1", "died"), ev.NodeLost("n2", "1", "died")], trained())
    waiting = fold([decided(lost, d.AwaitNodes())], lost)
    assert waiting.attempt is None
    back = fold([ev.NodeJoined("n3", "1", "host", 2)], waiting)
    planned = plan_placement(back, SPEC, back.time_s)
    assert planned is not None
    assert [place.node for place in planned[1]] == ["n3", "n1"]


def test_a_sick_end_is_not_the_end_unless_a_person_stopped_it() -> None:
    for stopped, kind in ((False, d.StartAttempt), (True, d.EndRun)):
        done = [ev.RankFinished(1, rank, 40, stopped) for rank in range(4)]
        assert isinstance(next_of(fold([alarm(39, 40), *done], trained())).action, kind)


@pytest.mark.parametrize(
    ("from_step", "factor", "kept"),
    [(20, 10.0, True), (21, 10.0, False), (35, 10.0, False), (20, 0.5, True), (35, 0.5, True)],
)
def test_a_raise_the_checkpoint_never_felt_is_taken_back_and_a_lowering_is_kept(
    from_step: int, factor: float, kept: bool
) -> None:
    state = trained(hyper=Hyper((LrChange(from_step, factor, "ask"),)))
    decision = next_of(fold([alarm(39, 40)], state))
    assert isinstance(decision.action, d.StartAttempt)
    plan = decision.action.plan
    assert plan.resume_step == 20
    assert ("ask" in {change.cause for change in plan.hyper.lr_changes}) is kept
    assert decision.reverts == (() if kept else ("ask",))
    assert all(change.from_step <= 21 for change in plan.hyper.lr_changes)


def test_what_a_rank_has_not_confirmed_leaves_no_gap_in_the_commands_of_the_next_attempt() -> None:
    state = trained()
    for name, value in (("a", 0.5), ("b", 3.0), ("c", 0.5)):
        request = ev.InterventionRequested(name, "lr-factor", "ann", "", value)
        command = d.Command(state.next_command, "lr-factor", value, name)
        state = fold([request], state)
        state = fold([decided(state, d.SendCommand(command, name))], state)
    made = settle(fold([alarm(39, 40)], state))
    start = next(x for x in made if isinstance(x.action, d.StartAttempt))
    assert start.reverts == ("b",)
    assert isinstance(start.action, d.StartAttempt)
    assert start.action.plan.first_command == 4
    state = fold([alarm(39, 40)], state)
    state = fold([ev.DecisionMade(start), ev.ActionDone(start.id)], state)
    state = fold([ev.AttemptResumed(2, 20, A20, 0.1), ev.StepDone(2, make_sample(21))], state)
    sends = [x.action for x in settle(state) if isinstance(x.action, d.SendCommand)]
    assert [(x.intervention, x.command.seq) for x in sends] == [("a", 4), ("c", 5)]


def test_every_newer_checkpoint_is_passed_over_with_its_reason() -> None:
    decision = next_of(fold([alarm(34, 40)], trained()))
    assert isinstance(decision.action, d.StartAttempt)
    assert decision.action.plan.checkpoints == (checkpoint_id(10, 1), A20)
    reasons = dict(decision.alternatives)
    assert "10 needed for a trend" in reasons[A20]
    assert "margin 5" in reasons[A30]
    assert "after the onset" in reasons[checkpoint_id(40, 1)]


def test_what_is_being_deleted_is_not_resumed_from() -> None:
    state = trained()
    state = fold([decided(state, d.PruneCheckpoints((checkpoint_id(40, 1),)))], state)
    decision = next_of(fold([exited(1, signal=9)], state))
    assert isinstance(decision.action, d.StartAttempt)
    assert decision.action.plan.checkpoints[0] == A30


def test_a_request_to_read_back_waits_for_the_reading_however_long_it_takes() -> None:
    name = checkpoint_id(40, 1)
    request = ev.InterventionRequested("v", "verify", "ann", "", target=name)
    state = fold([request], trained())
    for after_s in (1.0, VERIFY_DEADLINE_S, VERIFY_DEADLINE_S):
        state = msgspec.structs.replace(state, time_s=state.time_s + after_s)
        (asked,) = decide(state, SPEC, state.time_s)
        assert asked.action == d.VerifyCheckpoint(name), "it was sound when it was read before"
        state = fold([ev.DecisionMade(asked)], state)
        assert not decide(state, SPEC, state.time_s)
    state = fold([ev.CheckpointVerified(name, "torn")], state)
    (settled,) = [x for x in settle(state) if isinstance(x.action, d.CompleteIntervention)]
    assert "NOT sound" in settled.reason


def test_a_mesh_shrinks_only_when_no_more_nodes_can_come() -> None:
    spec = make_spec(nodes={"spares": 0, "when_short": "shrink"})
    waiting = fold(
        [ev.RunSubmitted("night", {}, "", 1, "", "ann"), ev.NodeJoined("n0", "1", "h", 2)]
    )
    assert plan_placement(waiting, spec, waiting.time_s + 1.0) is None
    patience_s = spec.restart.start_deadline_s
    placed = plan_placement(waiting, spec, waiting.time_s + patience_s)
    assert placed is not None
    assert placed[0].dp_shard == 1


def test_a_start_that_failed_avoids_its_node_only_where_there_is_another() -> None:
    failed = [ev.StartFailed(1, "n1", "fork-failed", "")]
    for num_nodes, expected in ((3, ("n0", "n2")), (2, ("n0", "n1"))):
        decision = next_of(fold(failed, started(num_nodes)))
        assert isinstance(decision.action, d.StartAttempt)
        assert decision.action.plan.nodes == expected
