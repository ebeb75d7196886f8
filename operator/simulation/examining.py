"""What the ranks of a node find in a simulated preflight."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from ...logbook.plan import PreflightPlan
from ...logbook.preflight import LIMITS, CheckResult, GroupResult, PreflightDone, Thoroughness
from ..preflight import plan_order


def answers(
    plan: PreflightPlan, node: str, sick: Mapping[str, str]
) -> tuple[tuple[int, PreflightDone], ...]:
    """Return what each rank of node reports; sick: by node, the check that fails there.

    "collectives" fails with every partner, as a bad network card does; any other is local.
    """
    bad = tuple(sorted((name, sick[name]) for name in plan.nodes if name in sick))
    rounds = _rounds(len(plan.nodes), plan.ranks_per_node, plan.thoroughness)
    first = plan.nodes.index(node) * plan.ranks_per_node
    return tuple(
        (rank, _done(plan, node, rank, dict(bad), _groups(plan, rank, rounds, dict(bad))))
        for rank in range(first, first + plan.ranks_per_node)
    )


@lru_cache(maxsize=4)
def _rounds(
    num_nodes: int, ranks_per_node: int, thoroughness: Thoroughness
) -> tuple[dict[int, tuple[int, ...]], ...]:
    """Return, for each round, the group of each unit."""
    order = plan_order(num_nodes, ranks_per_node, LIMITS[thoroughness], "", "")
    return tuple({unit: units for units in groups for unit in units} for groups in order.rounds)


def _done(
    plan: PreflightPlan,
    node: str,
    rank: int,
    sick: Mapping[str, str],
    groups: tuple[GroupResult, ...],
) -> PreflightDone:
    fault = sick.get(node, "")
    is_bad = fault == "memory" and rank % plan.ranks_per_node == 0
    memory = CheckResult(
        name="memory",
        node=node,
        rank=rank,
        ok=not is_bad,
        quantity="wrong_words_total",
        value=float(is_bad),
        limit=0.0,
        message="1 words did not hold" if is_bad else "",
    )
    return PreflightDone(
        rank=rank, node=node, kind="sim", checksum="c", results=(memory,), groups=groups
    )


def _groups(
    plan: PreflightPlan,
    rank: int,
    rounds: tuple[dict[int, tuple[int, ...]], ...],
    sick: Mapping[str, str],
) -> tuple[GroupResult, ...]:
    has_many = len(plan.nodes) > 1
    unit = rank // plan.ranks_per_node if has_many else rank
    found = []
    for number, groups in enumerate(rounds):
        units = groups.get(unit, ())
        if not units:
            continue
        nodes = [plan.nodes[each if has_many else 0] for each in units]
        is_bad = any(sick.get(node) == "collectives" for node in nodes)
        error = "RuntimeError: timed out" if is_bad and len(units) > 1 else ""
        speed = 0.0 if error else 1e9
        found.append(
            GroupResult(
                round=number,
                units=units,
                all_gather_bytes_per_s=speed,
                all_reduce_bytes_per_s=speed,
                error=error,
            )
        )
    return tuple(found)
