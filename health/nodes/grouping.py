"""Who works with whom in a preflight, and which of them its outcomes single out.

A collective between two nodes fails when either of them is bad, and does not say which. So every
node is tried with several partners, in rounds of pairs that never repeat a pair: a node that works
with anybody is sound, and a node that fails with a partner known to be sound is bad. With three
rounds (pairs, then two regroupings) one bad node among three or more is always singled out, and so
are two among an even number from four on; whatever cannot be told stays a suspect, and no sound
node is ever blamed.

Pure. Units are numbered from 0; a unit is a node, or a single rank where there is only one node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

NUM_ROUNDS = 3
Group = tuple[int, ...]


class GroupOutcome(msgspec.Struct, frozen=True):
    """A group of units worked together; ok: everything came out right and fast enough."""

    units: Group
    ok: bool


class GroupVerdict(msgspec.Struct, frozen=True):
    """What the outcomes say of every unit; the fields are disjoint and sorted.

    bad:      failed with a partner known to be sound, or all alone.
    suspects: failed, but only with partners in doubt themselves, so that either may be at fault.
    untested: were in no group that came to an outcome.
    links:    pairs that failed although both units work with others: the way between them is at
        fault, or the fault comes and goes. Neither unit is blamed for it.
    """

    bad: tuple[int, ...] = ()
    suspects: tuple[int, ...] = ()
    untested: tuple[int, ...] = ()
    links: tuple[Group, ...] = ()


def plan_rounds(num_units: int, num_rounds: int = NUM_ROUNDS) -> tuple[tuple[Group, ...], ...]:
    """Return rounds of disjoint pairs in which no pair occurs twice.

    With an odd number one unit rests in each round, another one every time. There are fewer rounds
    when fewer are possible: two units meet once, a single one never.
    Source: the circle method of round-robin tournaments.
    """
    seats: list[int | None] = [*range(num_units)]
    if num_units % 2:
        seats.append(None)
    rounds = []
    for _ in range(min(num_rounds, len(seats) - 1)):
        half = len(seats) // 2
        facing = zip(seats[:half], reversed(seats[half:]), strict=True)
        pairs = [(a, b) for a, b in facing if a is not None and b is not None]
        rounds.append(tuple(sorted((min(pair), max(pair)) for pair in pairs)))
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return tuple(rounds)


def plan_groups(num_units: int, ranks_per_unit: int) -> tuple[tuple[Group, ...], ...]:
    """Return all rounds of a preflight: each unit by itself if it has ranks enough, then pairs."""
    alone = (tuple((unit,) for unit in range(num_units)),) if ranks_per_unit > 1 else ()
    return alone + (plan_rounds(num_units) if num_units > 1 else ())


def judge_groups(num_units: int, outcomes: Sequence[GroupOutcome]) -> GroupVerdict:
    """Return who is at fault, from what groups of units did.

    Working alone proves nothing about working with others, so it can only condemn. A unit that has
    worked with another one is sound, whatever else it took part in.
    """
    alone = [outcome for outcome in outcomes if len(outcome.units) == 1]
    together = [outcome for outcome in outcomes if len(outcome.units) > 1]
    sound = {unit for outcome in together if outcome.ok for unit in outcome.units}
    bad = {outcome.units[0] for outcome in alone if not outcome.ok}
    suspects: set[int] = set()
    links: list[Group] = []
    for outcome in together:
        if outcome.ok:
            continue
        doubtful = set(outcome.units) - sound
        if len(doubtful) == 1:
            bad |= doubtful
        elif doubtful:
            suspects |= doubtful
        elif bad.isdisjoint(outcome.units):
            links.append(outcome.units)
    seen = {unit for outcome in outcomes for unit in outcome.units}
    return GroupVerdict(
        bad=tuple(sorted(bad)),
        suspects=tuple(sorted(suspects - bad)),
        untested=tuple(sorted(set(range(num_units)) - seen)),
        links=tuple(sorted(links)),
    )


def reference_bandwidth(bandwidths: Iterable[float]) -> float | None:
    """Return what groups of one size should reach; None when there is nothing to compare with.

    One bad unit is in two of three pairs among three units, and in half of them among four, so the
    middle would be spoilt; four fifths up the order is not, and ignores a lucky few.
    """
    known = sorted(bandwidth for bandwidth in bandwidths if bandwidth > 0.0)
    if len(known) < 2:
        return None
    return known[-(-4 * (len(known) - 1) // 5)]


def odd_ones_out(values: Mapping[int, str]) -> tuple[tuple[int, ...], bool]:
    """Return the keys whose value differs from that of most, and whether most agree at all.

    Without a strict majority nobody can be believed: then all keys are returned, and False.
    """
    counts: dict[str, int] = {}
    for value in values.values():
        counts[value] = counts.get(value, 0) + 1
    if len(counts) < 2:
        return (), True
    common = max(sorted(counts), key=lambda value: counts[value])
    if 2 * counts[common] <= len(values):
        return tuple(sorted(values)), False
    return tuple(sorted(key for key, value in values.items() if value != common)), True
