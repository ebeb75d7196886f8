"""OPT's two-part rule, how it degrades, and what it says about the newer ones it passes over."""

from __future__ import annotations

import math
from typing import Any

import pytest
from midwatch.checkpoints.last_good import Candidate, Choice, Rules, choose_last_good, newest_usable
from midwatch.checkpoints.manifest import checkpoint_id
from midwatch.logbook.findings import Severity
from midwatch.logbook.state import FindingMark
from midwatch.logbook.trend import Trend
from midwatch.logbook.wire import CheckpointTags

RULES = Rules(margin_steps=20, min_scale=1.0, trend_points=10)


def trend(slope: float, points: int = 30, level: float = 3400.0) -> Trend:
    result = Trend()
    for step in range(points):
        result = result.add(step, level + slope * step)
    return result


DOWN, UP, SHORT = trend(-1.0), trend(+1.0), trend(-1.0, points=4)


def candidate(step: int, activation: Trend = DOWN, **changes: Any) -> Candidate:
    scale = changes.pop("scale", 4.0)
    tags = CheckpointTags(2.0, 0.2, 3400.0, scale, 1e-4)
    known: dict[str, Any] = {"verified": True, "tags": tags, **changes}
    return Candidate(id=checkpoint_id(step, 1), step=step, activation=activation, **known)


def choose(*candidates: Candidate, onset: int = 1000, **more: Any) -> Choice:
    return choose_last_good(candidates, onset, RULES, **more)


def steps_passed_over(choice: Choice) -> list[int]:
    return [int(name[5:13]) for name, _ in choice.passed_over]


def test_the_newest_of_those_that_meet_both_parts() -> None:
    choice = choose(candidate(700), candidate(800), candidate(900, UP), candidate(950, scale=0.5))
    assert (choice.checkpoint, choice.rule) == (checkpoint_id(800, 1), "two-part")
    assert choice.passed_over[0] == (checkpoint_id(950, 1), "loss scale 0.5 below 1")
    assert choice.passed_over[1][0] == checkpoint_id(900, 1)
    assert "activation norm changed by +" in choice.passed_over[1][1]
    assert choice.ranked == tuple(checkpoint_id(s, 1) for s in (800, 700, 900, 950))


def test_the_story_of_opt_run_12_33() -> None:
    """The activation norm climbed from 20k to 37k; only what came before it is sound."""
    climbing = [candidate(step, trend(0.055)) for step in range(20_000, 37_000, 1000)]
    choice = choose(candidate(19_000), *climbing, onset=37_000)
    assert choice.checkpoint == checkpoint_id(19_000, 1)
    assert len(choice.passed_over) == len(climbing)


@pytest.mark.parametrize(
    ("spoiled", "reason"),
    [
        ({"verified": False}, "failed verification"),
        ({"quarantined": "its restart failed at step 910"}, "its restart failed"),
        ({"abandoned": True}, "left behind"),
        ({"tags": CheckpointTags(math.nan, 0.2, 3400.0, 4.0, 1e-4)}, "not finite"),
        ({"tags": CheckpointTags(2.0, 0.2, math.inf, 4.0, 1e-4)}, "not finite"),
    ],
)
def test_what_is_never_chosen(spoiled: dict[str, Any], reason: str) -> None:
    choice = choose(candidate(800), candidate(900, **spoiled))
    assert choice.checkpoint == checkpoint_id(800, 1)
    assert reason in choice.passed_over[0][1]
    alone = choose(candidate(900, **spoiled))
    assert (alone.checkpoint, alone.rule, alone.ranked) == (None, "none", ())
    assert reason in alone.passed_over[0][1]


@pytest.mark.parametrize(
    ("step", "usable"), [(979, True), (980, True), (981, False), (1000, False), (1001, False)]
)
def test_the_margin_before_the_onset(step: int, usable: bool) -> None:
    assert (choose(candidate(step)).checkpoint is not None) == usable


def test_a_skipped_step_at_the_checkpoint_is_no_sickness() -> None:
    tags = CheckpointTags(2.0, math.inf, 3400.0, 4.0, 1e-4)
    assert choose(candidate(900, tags=tags)).rule == "two-part"


def test_a_norm_that_overflowed_afterwards_did_not_trend_down() -> None:
    overflowed = trend(-1.0).add(99, math.inf)
    choice = choose(candidate(800), candidate(900, overflowed))
    assert choice.checkpoint == checkpoint_id(800, 1)
    assert "not finite" in choice.passed_over[0][1]


# --- how it degrades -----------------------------------------------------------------------------

IN_ORDER = [
    ("two-part", candidate(100)),
    ("trend-unknown", candidate(200, SHORT)),
    ("scale-only", candidate(300, UP)),
    ("after-finding", candidate(350, before=FindingMark("spike", Severity.OBSERVE, 19))),
    ("unproven", candidate(400, verified=None)),
    ("scale-low", candidate(500, scale=0.5)),
]


@pytest.mark.parametrize("first", range(len(IN_ORDER)))
def test_it_degrades_in_the_stated_order(first: int) -> None:
    left = IN_ORDER[first:]
    choice = choose(*(c for _, c in left))
    assert (choice.checkpoint, choice.rule) == (left[0][1].id, left[0][0])
    assert choice.ranked == tuple(c.id for _, c in left)
    assert steps_passed_over(choice) == sorted((c.step for _, c in left[1:]), reverse=True)
    assert all(reason for _, reason in choice.passed_over)


def test_trouble_far_enough_before_a_checkpoint_does_not_count() -> None:
    near, far = (FindingMark("spike", Severity.OBSERVE, steps) for steps in (19, 20))
    choice = choose(candidate(700), candidate(800, before=far), candidate(900, before=near))
    assert (choice.checkpoint, choice.rule) == (checkpoint_id(800, 1), "two-part")
    assert choice.passed_over == ((checkpoint_id(900, 1), "taken only 19 steps after a spike"),)


def test_a_young_run_whose_norm_rises_takes_the_newest_far_enough() -> None:
    choice = choose(candidate(900, UP), candidate(950, UP), candidate(990, UP))
    assert (choice.checkpoint, choice.rule) == (checkpoint_id(950, 1), "scale-only")
    assert steps_passed_over(choice) == [990]


def test_without_tags_it_is_unproven() -> None:
    choice = choose(candidate(900, tags=None))
    assert (choice.rule, choice.checkpoint) == ("unproven", checkpoint_id(900, 1))


def test_no_candidates() -> None:
    assert choose() == Choice(None, "none")


# --- without a loss scale ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grad", "rule"), [(DOWN, "two-part"), (SHORT, "two-part"), (UP, "scale-low")]
)
def test_in_bf16_the_grad_norm_stands_in(grad: Trend, rule: str) -> None:
    choice = choose(candidate(900, scale=None, grad=grad))
    assert choice.rule == rule


def test_in_fp16_the_scale_decides_and_the_grad_norm_does_not() -> None:
    assert choose(candidate(900, grad=UP)).rule == "two-part"


# --- again and again -----------------------------------------------------------------------------


def test_each_recurrence_goes_further_back() -> None:
    candidates = [candidate(step) for step in (600, 700, 800)]
    taken: list[int] = []
    before: int | None = None
    while (name := choose(*candidates, before_step=before).checkpoint) is not None:
        before = int(name[5:13])
        taken.append(before)
    assert taken == [800, 700, 600]
    last = choose(*candidates, before_step=600)
    assert "tried already" in last.passed_over[-1][1]


def test_the_younger_attempt_wins_at_one_step() -> None:
    older, younger = candidate(900), candidate(900)
    younger = Candidate(
        id=checkpoint_id(900, 2), step=900, attempt=2, verified=True, tags=older.tags,
        activation=DOWN,
    )  # fmt: skip
    assert choose(younger, older).checkpoint == younger.id
    assert choose(older, younger).checkpoint == younger.id


# --- hardware faults -----------------------------------------------------------------------------


def test_a_hardware_fault_takes_the_newest_that_is_not_known_bad() -> None:
    choice = newest_usable(
        [
            candidate(500),
            candidate(600, UP, verified=None, scale=0.25),
            candidate(700, verified=False),
            candidate(800, abandoned=True),
            candidate(900, quarantined="twice"),
        ]
    )
    assert (choice.checkpoint, choice.rule) == (checkpoint_id(600, 1), "newest-usable")
    assert choice.ranked == (checkpoint_id(600, 1), checkpoint_id(500, 1))
    assert steps_passed_over(choice) == [900, 800, 700]


def test_a_hardware_fault_can_go_further_back_too() -> None:
    candidates = [candidate(500), candidate(600)]
    assert newest_usable(candidates, before_step=600).checkpoint == checkpoint_id(500, 1)
    assert newest_usable(candidates, before_step=500).checkpoint is None
