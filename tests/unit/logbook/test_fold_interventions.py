"""How far changes have got, as the journal tells it: nodes in any order, old journals as well."""

from __future__ import annotations

from typing import Any

import msgspec
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.hyper import Command, Hyper, LrChange, Setting
from midwatch.logbook.state import RunState
from midwatch.tests.support.builders import decided, fold, make_sample, started


def trained(to_step: int = 5) -> RunState:
    steps = [ev.StepDone(1, make_sample(step)) for step in range(1, to_step + 1)]
    return fold([ev.AttemptResumed(1, 0, "", 0.1), *steps], started())


def sent(state: RunState, name: str, action: str, value: float = 0.5, **more: Any) -> RunState:
    request = ev.InterventionRequested(name, action, "ann", "why", value, **more)
    command = Command(state.next_command, action, value, name)
    state = fold([request], state)
    return fold([decided(state, d.SendCommand(command, name))], state)


def said(name: str, phase: str, *ranks: int, **more: Any) -> ev.CommandApplied:
    values: dict[str, Any] = {"at_step": 10, "readback": {"grad_clip": 0.5}, "previous": {}}
    node = "n0" if 0 in ranks else "n1"
    return ev.CommandApplied(1, 0, node, ranks, **{**values, **more}, phase=phase, cause=name)


CLIP = Hyper(settings=(Setting("grad-clip", 0.5, 10, "a", 20),))
WAITING = Hyper(scheduled=(Command(1, "grad-clip", 0.5, "a"),))


def test_nodes_may_tell_of_the_phases_in_any_order() -> None:
    state = sent(trained(), "a", "grad-clip")
    state = fold([said("a", "scheduled", 0, 1, hyper=WAITING, until_step=20)], state)
    assert (state.interventions["a"].stage, state.hyper) == ("scheduled", WAITING)
    state = fold([said("a", "applied", 0, 1, hyper=CLIP, until_step=20)], state)
    assert state.hyper == CLIP
    # The other node's word of the first phase comes late, and takes nothing back.
    state = fold([said("a", "scheduled", 2, 3, hyper=WAITING)], state)
    assert (state.interventions["a"].stage, state.hyper) == ("scheduled", CLIP)
    state = fold([said("a", "applied", 2, 3, hyper=CLIP)], state)
    known = state.interventions["a"]
    assert (known.stage, known.acks, known.until_step) == ("applied", (0, 1, 2, 3), 20)
    state = fold([said("a", "expired", 2, 3), said("a", "expired", 0, 1, at_step=20)], state)
    assert state.interventions["a"].stage == "expired"
    assert state.interventions["a"].detail == "its last step was 19"


def test_a_change_that_a_later_one_ends_is_reverted_and_says_by_what() -> None:
    state = sent(trained(), "a", "lr-factor")
    first = Hyper((LrChange(10, 0.5, "a", 40),))
    state = fold([said("a", "applied", 0, 1, 2, 3, hyper=first)], state)
    state = sent(state, "b", "lr", 1e-4)
    second = Hyper((LrChange(10, 0.5, "a", 12), LrChange(12, 0.2, "b")))
    state = fold([said("b", "applied", 0, 1, hyper=second, at_step=12)], state)
    assert state.interventions["a"].stage == "reverted"
    assert state.interventions["a"].detail == "superseded by b of ann at step 12"
    late = fold([said("a", "expired", 0, 1, 2, 3, at_step=12)], state)
    assert late.interventions["a"].stage == "reverted", "what was taken back does not expire"


def test_whoever_changed_a_thing_last_is_remembered_by_its_name() -> None:
    state = sent(trained(), "a", "lr-factor")
    assert state.touched["lr"].by == "ann"
    before = state.touched["lr"].seq
    state = fold([said("a", "applied", 0, 1, hyper=Hyper((LrChange(10, 0.5, "a"),)))], state)
    assert state.touched["lr"].seq == state.seq > before
    assert "a (why) from step 10 on" in state.touched["lr"].what
    state = sent(state, "o", "optimizer", values={"beta2": 0.9})
    assert set(state.touched) == {"lr", "beta2"}


def test_what_a_load_has_undone_on_one_node_shows() -> None:
    good = {"lr": 1e-4, "beta2": 0.98}
    state = fold([said("", "loaded", 0, 1, readback=good)], trained())
    assert state.attempt is not None
    assert (state.attempt.readback, state.attempt.differs) == (good, ())
    state = fold([said("", "loaded", 2, 3, readback={**good, "beta2": 0.95})], state)
    assert state.attempt is not None
    assert state.attempt.differs == ("beta2 is 0.95 on n1, 0.98 on others",)


def test_what_is_said_by_an_older_attempt_changes_nothing() -> None:
    state = sent(trained(), "a", "grad-clip")
    old = msgspec.structs.replace(said("a", "applied", 0, 1, 2, 3, hyper=CLIP), attempt=0)
    assert fold([old], state).interventions == state.interventions
    assert fold([old], state).hyper == state.hyper


def test_a_journal_from_before_changes_had_steps_folds_as_it_did() -> None:
    lines = [
        {
            "kind": "intervention-requested",
            "id": "a",
            "action": "grad-clip",
            "by": "ann",
            "reason": "why",
            "value": 0.3,
        },
        {
            "kind": "command-applied",
            "attempt": 1,
            "seq": 1,
            "node": "n0",
            "ranks": [0, 1, 2, 3],
            "at_step": 6,
            "readback": {"grad_clip": 0.3},
            "previous": {"grad_clip": 1.0},
            "hyper": {
                "lr_changes": [{"from_step": 3, "factor": 0.5, "cause": "x"}],
                "grad_clip": 0.3,
            },
        },
    ]
    request, applied = (msgspec.convert(line, ev.Event) for line in lines)  # type: ignore[call-overload]
    state = fold([request], trained())
    command = {"seq": 1, "kind": "grad-clip", "value": 0.3, "cause": "a"}
    send = d.SendCommand(msgspec.convert(command, Command), "a")
    state = fold([applied], fold([decided(state, send)], state))
    assert state.interventions["a"].stage == "applied"
    assert state.hyper.value_at("grad-clip", 6) == 0.3
    assert state.hyper.factor_at(6) == 0.5
