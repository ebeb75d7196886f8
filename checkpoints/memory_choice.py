"""Which generation all nodes together hold whole, and who gives what to whom: pure, so that every
rank comes to the same conclusions from what all ranks have said.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..logbook.wire import Mesh
from .memory import Generation


class Holding(msgspec.Struct, frozen=True, array_like=True):
    """A buffer in the sight of one rank: the shard of `rank` of a generation saved on mesh."""

    generation: Generation
    rank: int
    mesh: Mesh
    is_sufficient: bool


class Transfer(msgspec.Struct, frozen=True):
    """giver sends the shard of rank `shard` to taker."""

    shard: int
    giver: int
    taker: int


def whole_generations(holdings: Sequence[Sequence[Holding]], oldest_step: int) -> list[Generation]:
    """Return the generations of which every shard is held somewhere, newest first.

    holdings:    of each rank, in rank order. oldest_step: older ones are of no use.
    """
    shards: dict[Generation, dict[int, Mesh]] = {}
    for row in holdings:
        for held in row:
            shards.setdefault(held.generation, {})[held.rank] = held.mesh
    return sorted(
        (
            generation
            for generation, held in shards.items()
            if generation.step >= oldest_step and len(held) == held[min(held)].world_size
        ),
        reverse=True,
    )


def missing_shards(holdings: Sequence[Sequence[Holding]]) -> str:
    """Say of the newest generation which shards nobody holds; "" when nothing is amiss."""
    every = [held for row in holdings for held in row]
    if not every:
        return ""
    newest = max(held.generation for held in every)
    mine = [held for held in every if held.generation == newest]
    lost = sorted(set(range(mine[0].mesh.world_size)).difference(held.rank for held in mine))
    if not lost:
        return ""
    where = "is in no node's memory"
    return f"[memory-incomplete] the state of ranks {lost} after step {newest.step} {where}"


def plan_transfers(
    sound: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]
) -> list[Transfer] | None:
    """Return who sends what to whom, in one order for all ranks; None when a shard is nowhere.

    sound:  shards that each rank holds and has found sound. wanted: shards that each needs.
    The givers of a shard take turns, so that no rank sends everything.
    """
    holders: dict[int, list[int]] = {}
    for rank, shards in enumerate(sound):
        for shard in shards:
            holders.setdefault(shard, []).append(rank)
    transfers: list[Transfer] = []
    for taker, shards in enumerate(wanted):
        for shard in shards:
            if taker in holders.get(shard, ()):
                continue
            if shard not in holders:
                return None
            givers = holders[shard]
            transfers.append(Transfer(shard, givers[len(transfers) % len(givers)], taker))
    return transfers
