"""Pairs and regroupings single out the bad, and never blame a sound one."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st
from midwatch.health.nodes.grouping import (
    GroupOutcome,
    GroupVerdict,
    judge_groups,
    odd_ones_out,
    plan_groups,
    plan_rounds,
    reference_bandwidth,
)

sizes = st.integers(2, 124)


def outcomes_of(num_units: int, bad: set[int]) -> list[GroupOutcome]:
    """Return what happens when a group fails exactly if somebody in it is bad."""
    rounds = plan_rounds(num_units)
    return [GroupOutcome(g, bad.isdisjoint(g)) for groups in rounds for g in groups]


def verdict_of(num_units: int, bad: set[int]) -> GroupVerdict:
    return judge_groups(num_units, outcomes_of(num_units, bad))


@given(sizes)
def test_rounds_are_disjoint_pairs_and_no_pair_meets_twice(num_units: int) -> None:
    rounds = plan_rounds(num_units)
    assert len(rounds) == (1 if num_units == 2 else 3)
    for groups in rounds:
        units = [unit for group in groups for unit in group]
        assert len(units) == len(set(units)) == num_units - num_units % 2
    pairs = [group for groups in rounds for group in groups]
    assert len(set(pairs)) == len(pairs)
    partners = [sum(unit in pair for pair in pairs) for unit in range(num_units)]
    assert min(partners) >= min(num_units - 1, 2)


def test_every_single_bad_unit_of_every_size_is_singled_out_and_nobody_else_is_suspected() -> None:
    for num_units in range(3, 125):
        for bad in range(num_units):
            assert verdict_of(num_units, {bad}) == GroupVerdict(bad=(bad,))


def test_two_bad_units_of_an_even_number_are_singled_out() -> None:
    for num_units in range(4, 40, 2):
        for pair in combinations(range(num_units), 2):
            assert verdict_of(num_units, set(pair)) == GroupVerdict(bad=pair)


@given(st.integers(2, 62).map(lambda half: 2 * half), st.data())
def test_two_bad_units_are_singled_out_at_any_even_size(
    num_units: int, data: st.DataObject
) -> None:
    bad = data.draw(st.sets(st.integers(0, num_units - 1), min_size=2, max_size=2))
    assert set(verdict_of(num_units, bad).bad) == bad


@given(sizes, st.data())
def test_however_many_are_bad_only_bad_units_are_blamed_and_no_bad_one_goes_unseen(
    num_units: int, data: st.DataObject
) -> None:
    bad = data.draw(st.sets(st.integers(0, num_units - 1), max_size=num_units))
    verdict = verdict_of(num_units, bad)
    assert set(verdict.bad) <= bad
    assert bad <= set(verdict.bad) | set(verdict.suspects)
    assert verdict.links == ()
    assert verdict.untested == ()


@given(sizes, st.data())
def test_a_failing_link_is_not_laid_at_the_door_of_its_ends(
    num_units: int, data: st.DataObject
) -> None:
    outcomes = outcomes_of(num_units, set())
    broken = data.draw(st.sampled_from(outcomes)).units
    tried = [GroupOutcome(o.units, o.units != broken) for o in outcomes]
    verdict = judge_groups(num_units, tried)
    assert verdict.bad == ()
    if num_units == 2:
        assert verdict.suspects == (0, 1)
    else:
        assert verdict == GroupVerdict(links=(broken,))


@given(sizes, st.data())
def test_noise_that_spoils_any_groups_blames_nobody_who_worked_with_anybody(
    num_units: int, data: st.DataObject
) -> None:
    """Whatever fails at random, a unit that took part in one success is never blamed."""
    outcomes = outcomes_of(num_units, set())
    oks = data.draw(st.lists(st.booleans(), min_size=len(outcomes), max_size=len(outcomes)))
    tried = [GroupOutcome(o.units, ok) for o, ok in zip(outcomes, oks, strict=True)]
    worked = {unit for o in tried if o.ok for unit in o.units}
    assert worked.isdisjoint(judge_groups(num_units, tried).bad)


def test_a_unit_that_fails_all_alone_is_bad_even_between_two() -> None:
    rounds = plan_groups(2, ranks_per_unit=4)
    assert rounds == (((0,), (1,)), ((0, 1),))
    tried = [GroupOutcome(g, 1 not in g) for groups in rounds for g in groups]
    # Its only partner has worked with nobody, and stays in doubt.
    assert judge_groups(2, tried) == GroupVerdict(bad=(1,), suspects=(0,))


def test_units_of_one_rank_have_nothing_to_do_alone() -> None:
    assert plan_groups(2, ranks_per_unit=1) == (((0, 1),),)
    assert plan_groups(1, ranks_per_unit=1) == ()


@given(st.integers(3, 124), st.data())
def test_a_slow_unit_lies_below_a_third_of_the_reference_and_no_other_does(
    num_units: int, data: st.DataObject
) -> None:
    slow = data.draw(st.integers(0, num_units - 1))
    pairs = [group for groups in plan_rounds(num_units) for group in groups]
    spread = st.floats(0.6, 1.4)
    speeds = [data.draw(spread) * (0.1 if slow in pair else 1.0) for pair in pairs]
    reference = reference_bandwidth(speeds)
    assert reference is not None
    for pair, speed in zip(pairs, speeds, strict=True):
        assert (speed < 0.3 * reference) == (slow in pair)


def test_one_figure_is_no_reference() -> None:
    assert reference_bandwidth([1.0]) is None
    assert reference_bandwidth([0.0, 1.0]) is None


@given(st.sets(st.integers(0, 991), min_size=3), st.data())
def test_those_that_differ_from_a_majority_are_the_odd_ones(
    ranks: set[int], data: st.DataObject
) -> None:
    few = (len(ranks) - 1) // 2
    odd = data.draw(st.sets(st.sampled_from(sorted(ranks)), max_size=few))
    values = {rank: f"own {rank}" if rank in odd else "common" for rank in ranks}
    assert odd_ones_out(values) == (tuple(sorted(odd)), True)


def test_without_a_majority_all_are_in_doubt() -> None:
    assert odd_ones_out({0: "a", 1: "b"}) == ((0, 1), False)
    assert odd_ones_out({0: "a", 1: "a", 2: "b", 3: "b"}) == ((0, 1, 2, 3), False)
    assert odd_ones_out({}) == ((), True)
