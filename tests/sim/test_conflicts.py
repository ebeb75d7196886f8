"""People who meet: nobody undoes unseen what somebody else has just done."""

from __future__ import annotations

import pytest
from midwatch.logbook import decisions as d

from .night import Night
from .test_people import LONG, finished, stage
from .test_steering import settled


def test_of_two_people_at_once_the_later_sees_a_conflict() -> None:
    night = Night(LONG)
    night.run_to_step(43)
    seen = night.state.seq
    ann = night.ask("lr-factor", 0.5, id="ann", seen_seq=seen)
    bob = night.ask("lr", 5e-4, id="bob", seen_seq=seen)
    other = night.ask("grad-clip", 0.3, id="other", seen_seq=seen)
    settled(night, "bob", "rejected")
    said = night.state.interventions[bob].detail
    assert said.startswith("conflict: lr was changed by ann at ")
    assert "with ann (test), event" in said
    night.run_for(5.0)
    again = night.ask("lr", 5e-4, id="again", seen_seq=night.state.seq)
    finished(night)
    stages = [stage(night, name) for name in (ann, bob, other, again)]
    assert stages == ["applied", "rejected", "applied", "applied"]


def test_a_change_by_the_policy_itself_is_a_conflict_too() -> None:
    night = Night(LONG)
    night.run_to_step(43)
    seen = night.state.seq
    night.ask("quarantine", target="node-0", seen_seq=seen)
    night.run_for(2.0)
    name = night.ask("release", target="node-0", seen_seq=seen)
    settled(night, name, "rejected")
    assert "node node-0 was changed by" in night.state.interventions[name].detail


@pytest.mark.parametrize(
    ("action", "opposite"), [("pin", "unpin"), ("quarantine-checkpoint", "release-checkpoint")]
)
def test_what_one_wants_of_a_checkpoint_another_does_not_undo_unseen(
    action: str, opposite: str
) -> None:
    night = Night(LONG)
    night.run_to_step(63)
    name, seen = list(night.state.checkpoints)[-1], night.state.seq
    other = next(iter(night.state.checkpoints))
    ann = night.ask(action, target=name, id="ann", seen_seq=seen)
    settled(night, ann, "applied")
    bob = night.ask(opposite, target=name, id="bob", seen_seq=seen)
    settled(night, bob, "rejected")
    said = night.state.interventions[bob].detail
    assert said.startswith(f"conflict: checkpoint {name} was changed by ann at ")
    assert "with ann (test), event" in said
    # Another checkpoint is another thing, and who has looked again may do it.
    night.ask(action, target=other, id="else", seen_seq=seen)
    night.ask(opposite, target=name, id="again", seen_seq=night.state.seq)
    settled(night, "again", "applied")
    settled(night, "else", "applied")


def test_who_does_not_know_that_the_run_was_paused_does_not_resume_or_stop_it() -> None:
    night = Night(LONG)
    night.run_to_step(43)
    seen = night.state.seq
    night.ask("pause", id="ann-pause", seen_seq=seen)
    night.run(lambda s: bool(s.paused))
    for action in ("resume", "stop"):
        name = night.ask(action, id=f"bob-{action}", seen_seq=seen)
        settled(night, name, "rejected")
        detail = night.state.interventions[name].detail
        assert detail.startswith("conflict: status was changed by ann at "), detail
    night.ask("resume", seen_seq=night.state.seq)
    finished(night)
    assert night.state.touched["status"].by == "midwatch", "it came to its end by itself"


def test_what_was_done_to_the_same_thing_a_moment_ago_stands_in_the_decision() -> None:
    night = Night(LONG)
    night.run_to_step(43)
    settled(night, night.ask("lr-factor", 0.5, id="first"), "applied")
    night.ask("lr-factor", 0.5, id="second")
    night.ask("grad-clip", 0.3, id="clip")
    settled(night, "second", "applied")
    settled(night, "clip", "applied")
    of = {
        x.action.intervention: [value for what, value in x.evidence if what == "just before"]
        for x in night.checker.decisions
        if isinstance(x.action, d.SendCommand)
    }
    assert of["first"] == of["clip"] == []
    (met,) = of["second"]
    assert met.startswith("lr was changed by ann at ")
    assert "with first (test) from step" in met


@pytest.mark.parametrize(
    ("action", "value", "expected", "wanted"),
    [
        ("grad-clip", 0.3, 1.0, "applied"),
        ("grad-clip", 0.3, 0.5, "rejected"),
        ("lr-factor", 0.5, 1.0, "applied"),
        ("lr-factor", 0.5, 0.9, "rejected"),
    ],
)
def test_a_value_that_is_not_what_its_author_expects_is_left_alone(
    action: str, value: float, expected: float, wanted: str
) -> None:
    night = Night(LONG)
    night.run_to_step(43)
    name = night.ask(action, value, expect_value=expected)
    settled(night, name, wanted)
    if wanted == "rejected":
        assert "conflict: " in night.state.interventions[name].detail
