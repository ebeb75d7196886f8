"""What the ranks of a node find in a simulated preflight."""

from __future__ import annotations

from collections.abc import Mapping

from ...logbook.plan import PreflightPlan
from ...logbook.preflight import LIMITS, CheckResult, GroupResult, PreflightDone
from ..preflight import plan_order


def answers(
    plan: PreflightPlan, node: str, sick: Mapping[str, str]
) -> tuple[tuple[int, PreflightDone], ...]:
    """Return what each rank of node reports; sick: by node, the check that fails there.

    "collectives" fails with every partner, as a bad network card does; any other is local.
    """
    order = plan_order(len(plan.nodes), plan.ranks_per_node, LIMITS[plan.thoroughness], "", "")
    return tuple(
        (rank, _done(plan, node, rank, sick, _groups(plan, rank, order.rounds, sick)))
        for rank, place in enumerate(plan.rank_nodes)
        if place == node
    )


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
    rounds: tuple[tuple[tuple[int, ...], ...], ...],
    sick: Mapping[str, str],
) -> tuple[GroupResult, ...]:
    per_unit = plan.ranks_per_node if len(plan.nodes) > 1 else 1
    found = []
    for number, groups in enumerate(rounds):
        for units in groups:
            if rank // per_unit in units:
                nodes = {plan.rank_nodes[unit * per_unit] for unit in units}
                is_bad = any(sick.get(node) == "collectives" for node in nodes)
                error = "RuntimeError: timed out" if is_bad and len(units) > 1 else ""
                found.append(
                    GroupResult(
                        round=number,
                        units=units,
                        all_gather_bytes_per_s=0.0 if error else 1e9,
                        all_reduce_bytes_per_s=0.0 if error else 1e9,
                        error=error,
                    )
                )
    return tuple(found)
