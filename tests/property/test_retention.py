"""Retention, whatever it is given, never deletes what a recovery may need."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from midwatch.checkpoints.manifest import checkpoint_id
from midwatch.checkpoints.retention import (
    Protected,
    Retained,
    RetentionRules,
    plan_local,
    plan_retention,
)

ATTEMPT = 5


def retained(
    step: int, attempt: int, verified: bool | None, abandoned: bool, age_s: float = 0.0
) -> Retained:
    return Retained(
        id=checkpoint_id(step, attempt),
        step=step,
        attempt=attempt,
        age_s=age_s,
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
        st.sampled_from([0.0, 50.0, 150.0]),
    ),
    max_size=25,
    unique_by=lambda c: c.id,
)
rule_sets = st.builds(
    RetentionRules,
    keep_newest=st.integers(0, 6),
    keep_every_steps=st.sampled_from([0, 1, 50, 100]),
    max_age_s=st.sampled_from([None, None, 100.0]),
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
        wanted=dict.fromkeys(sorted(draw(named)), "a rollback may want it"),
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
    assert not gone & set(protected.wanted)
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
    newest = lineage[len(lineage) - rules.keep_newest :]
    assert not {c.id for c in newest if not is_too_old(c, rules)} & gone


def is_too_old(candidate: Retained, rules: RetentionRules) -> bool:
    return rules.max_age_s is not None and candidate.age_s > rules.max_age_s


@given(cases())
def test_nothing_old_stays_but_what_is_needed(case: Any) -> None:
    candidates, rules, protected, _ = case
    by_id = {c.id: c for c in candidates}
    for name, reason in planned(case).keep:
        if is_too_old(by_id[name], rules):
            needed = {protected.last_good, *protected.pins, *protected.in_use, *protected.wanted}
            is_newer = by_id[name].attempt > ATTEMPT
            assert name in needed or is_newer or reason in ("newest verified", "newest")


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
            milestone = min(inside, key=lambda c: (c.step, c.attempt))
            assert is_too_old(milestone, rules) or milestone.id not in gone


@example(([retained(10, 1, True, False), retained(20, 1, True, False)], RetentionRules(
    keep_newest=1), Protected(), []))  # fmt: skip
@given(cases())
def test_counts_are_respected(case: Any) -> None:
    """Each thing kept has a stated cause; nothing is kept for none."""
    candidates, rules, protected, _ = case
    plan = planned(case)
    special = len(protected.pins) + len(protected.in_use) + len(protected.wanted) + 1
    younger = sum(c.attempt > ATTEMPT for c in candidates)
    milestones = len(candidates) if rules.keep_every_steps else 0
    assert len(plan.keep) <= rules.keep_newest + 2 + special + younger + milestones


locals_ = st.lists(st.booleans(), max_size=12).map(
    lambda flags: [(checkpoint_id(100 - n, 1), is_up) for n, is_up in enumerate(flags)]
)


@given(locals_, st.integers(0, 5))
def test_a_node_keeps_what_is_nowhere_else_and_the_newest_of_the_rest(
    newest_first: list[tuple[str, bool]], keep: int
) -> None:
    gone = plan_local(newest_first, keep)
    uploaded = [name for name, is_uploaded in newest_first if is_uploaded]
    assert set(gone) <= set(uploaded), "what is not uploaded must never go"
    assert [name for name in uploaded if name not in gone] == uploaded[:keep]
    left = [(name, is_up) for name, is_up in newest_first if name not in gone]
    assert plan_local(left, keep) == (), "carried out once, it has nothing more to do"
