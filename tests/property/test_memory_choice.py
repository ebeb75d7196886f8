"""Whatever is held where, all ranks choose alike, and nobody is promised what nobody has."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from midwatch.checkpoints.memory import Generation
from midwatch.checkpoints.memory_choice import (
    Holding,
    missing_shards,
    plan_transfers,
    whole_generations,
)
from midwatch.logbook.wire import Mesh

WORLD = 4
MESH = Mesh(2, 2)
generations = st.builds(Generation, st.integers(1, 4), st.integers(1, 2))
holdings = st.builds(Holding, generations, st.integers(0, WORLD - 1), st.just(MESH), st.booleans())
rows = st.lists(st.lists(holdings, max_size=6), min_size=WORLD, max_size=WORLD)
shards = st.lists(
    st.lists(st.integers(0, WORLD - 1), max_size=4, unique=True), min_size=WORLD, max_size=WORLD
)


@given(rows, st.integers(0, 4))
def test_a_whole_generation_has_every_shard_and_they_come_newest_first(
    held: list[list[Holding]], oldest_step: int
) -> None:
    found = whole_generations(held, oldest_step)
    assert found == sorted(found, reverse=True)
    for generation in {h.generation for row in held for h in row}:
        ranks = {h.rank for row in held for h in row if h.generation == generation}
        is_whole = ranks == set(range(WORLD)) and generation.step >= oldest_step
        assert (generation in found) == is_whole


@given(rows)
def test_what_the_newest_generation_lacks_is_named(held: list[list[Holding]]) -> None:
    every = [h for row in held for h in row]
    newest = max((h.generation for h in every), default=None)
    lost = sorted(set(range(WORLD)) - {h.rank for h in every if h.generation == newest})
    reason = missing_shards(held)
    assert (reason == "") == (not every or not lost)
    assert not reason or f"ranks {lost} " in reason


@given(shards, shards)
def test_transfers_bring_every_rank_what_it_wants_from_one_who_has_it(
    sound: list[list[int]], wanted: list[list[int]]
) -> None:
    plan = plan_transfers(sound, wanted)
    is_possible = all(any(s in have for have in sound) for row in wanted for s in row)
    assert (plan is not None) == is_possible
    if plan is None:
        return
    got = {(t.taker, t.shard) for t in plan}
    assert len(got) == len(plan)
    assert all(t.shard in sound[t.giver] and t.giver != t.taker for t in plan)
    for rank, row in enumerate(wanted):
        assert all(s in sound[rank] or (rank, s) in got for s in row)
