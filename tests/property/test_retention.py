"""Retention, whatever it is given, never deletes what a recovery may need."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from midwatch.checkpoints.manifest import checkpoint_id
from midwatch.checkpoints.retention import Protected, Retained, RetentionRules, plan_retention

ATTEMPT = 5


def retained(step: int, attempt: int, verified: bool | None, abandoned: bool) -> Retained:
    return Retained(
        id=checkpoint_id(step, attempt),
        step=step,
        attempt=attempt,
        verified=verified,
        abandoned=abandoned,
    )


candidate_sets = st.lists(
    st.builds(
        retained,
        st.integers(0, 400),
        st.integers(1, ATTEMPT + 1),
        st.sampled_from([True, True, None, False]),
        st.booleans(),
    ),
    max_size=25,
    unique_by=lambda c: c.id,
)
rule_sets = st.builds(
    RetentionRules, keep_newest=st.integers(0, 6), keep_every_steps=st.sampled_from([0, 1, 50, 100])
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Retained], RetentionRules, Protected, list[str]]:
    candidates = draw(candidate_sets)
    some = st.sampled_from([c.id for c in candidates]) if candidates else st.nothing()
    named = st.frozensets(some, max_size=3) if candidates else st.just(frozenset())
    protected = Protected(
        last_good=draw(st.none() | some) if candidates else None,
        pins=draw(named),
        in_use=draw(named),
    )
    taken = {c.id for c in candidates}
    garbage = [
        checkpoint_id(step, attempt)
        for step, attempt in draw(
            st.lists(st.tuples(st.integers(0, 400), st.integers(1, ATTEMPT + 2)), max_size=5)
        )
    ]
    return candidates, draw(rule_sets), protected, [g for g in garbage if g not in taken]


def planned(case: Any) -> Any:
    candidates, rules, protected, garbage = case
    return plan_retention(candidates, rules, protected, current_attempt=ATTEMPT, garbage=garbage)


@given(cases())
def test_what_is_needed_stays(case: Any) -> None:
    candidates, rules, protected, _ = case
    gone = set(planned(case).delete_ids)
    assert protected.last_good not in gone
    assert not gone & set(protected.pins)
    assert not gone & set(protected.in_use)
    assert not {c.id for c in candidates if c.attempt > ATTEMPT} & gone
    lineage = sorted(
        (c for c in candidates if not c.abandoned and c.verified is not False),
        key=lambda c: (c.step, c.attempt),
    )
    verified = [c for c in lineage if c.verified]
    if verified:
        assert verified[-1].id not in gone
    if lineage:
        assert lineage[-1].id not in gone
    assert not {c.id for c in lineage[len(lineage) - rules.keep_newest :]} & gone


@given(cases())
def test_something_is_always_left(case: Any) -> None:
    candidates = case[0]
    assert not candidates or len(planned(case).keep) >= 1


@given(cases())
def test_every_checkpoint_is_decided_once_and_with_a_reason(case: Any) -> None:
    candidates, _, _, garbage = case
    plan = planned(case)
    decided = [name for name, _ in (*plan.delete, *plan.keep)]
    assert len(decided) == len(set(decided))
    assert {c.id for c in candidates} <= set(decided)
    assert set(decided) <= {c.id for c in candidates} | set(garbage)
    assert all(reason for _, reason in (*plan.delete, *plan.keep))


@given(cases())
def test_garbage_goes_only_when_its_attempt_is_over(case: Any) -> None:
    garbage = case[3]
    gone = set(planned(case).delete_ids)
    for name in garbage:
        assert (name in gone) == (int(name[-4:]) < ATTEMPT)


@given(cases())
def test_a_plan_carried_out_leaves_nothing_to_do(case: Any) -> None:
    candidates, rules, protected, garbage = case
    gone = set(planned(case).delete_ids)
    left = [c for c in candidates if c.id not in gone]
    again = planned((left, rules, protected, [g for g in garbage if g not in gone]))
    assert again.delete == ()


@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_candidates_does_not_matter(case: Any, random: Any) -> None:
    candidates, rules, protected, garbage = case
    shuffled = list(candidates)
    random.shuffle(shuffled)
    assert planned((shuffled, rules, protected, garbage)) == planned(case)


@given(cases())
@example(([retained(s, 1, True, False) for s in range(0, 300, 10)], RetentionRules(
    keep_newest=1, keep_every_steps=100), Protected(), []))  # fmt: skip
def test_milestones_stay(case: Any) -> None:
    candidates, rules, _, _ = case
    gone = set(planned(case).delete_ids)
    if rules.keep_every_steps:
        lineage = [c for c in candidates if not c.abandoned and c.verified is not False]
        for window in {-(-c.step // rules.keep_every_steps) for c in lineage} - {0}:
            inside = [c for c in lineage if -(-c.step // rules.keep_every_steps) == window]
            assert min(inside, key=lambda c: (c.step, c.attempt)).id not in gone


@example(([retained(10, 1, True, False), retained(20, 1, True, False)], RetentionRules(
    keep_newest=1), Protected(), []))  # fmt: skip
@given(cases())
def test_counts_are_respected(case: Any) -> None:
    """Each thing kept has a stated cause; nothing is kept for none."""
    candidates, rules, protected, _ = case
    plan = planned(case)
    special = len(protected.pins) + len(protected.in_use) + 1
    younger = sum(c.attempt > ATTEMPT for c in candidates)
    milestones = len(candidates) if rules.keep_every_steps else 0
    assert len(plan.keep) <= rules.keep_newest + 2 + special + younger + milestones
