"""Which nodes carry which ranks."""

from __future__ import annotations

from ...logbook.plan import Placement
from ...logbook.state import RunState
from ...logbook.wire import Mesh
from ..spec import RunSpec
from .nodes import drained_nodes
from .preflight import unproven_nodes


def plan_placement(
    state: RunState, spec: RunSpec, now_s: float, avoid: tuple[str, ...] = ()
) -> tuple[Mesh, tuple[Placement, ...]] | None:
    """Return mesh and placements on usable nodes, or None while there are too few.

    Nodes of the last attempt keep their ranks where they can, so that what they hold locally stays
    of use; a hole is filled with the node that joined first. With when_short = "shrink", dp_shard
    falls to the largest value the usable nodes can carry, once no more of them can be expected.
    Nodes to avoid carry ranks only where there are too few others.
    """
    per_node = spec.nodes.ranks_per_node
    usable = [n.node for n in state.nodes.values() if n.is_usable and n.slots >= per_node]
    mesh = _fitting_mesh(spec, len(usable), may_shrink=_may_shrink(state, spec, now_s))
    if mesh is None:
        return None
    wanted = mesh.world_size // per_node
    passed_over = (*avoid, *drained_nodes(state))
    unproven = unproven_nodes(state, spec)
    others = [node for node in usable if node not in passed_over]
    # Those to be tried out first come last of the good ones, for a restart is in a hurry.
    others.sort(key=lambda node: node in unproven)
    others = others[: max(wanted, sum(node not in unproven for node in others))]
    needed = max(wanted - len(others), 0)
    usable = others + [node for node in usable if node in passed_over][:needed]
    chosen = _keep_places(state.places, usable, wanted)
    placements = tuple(
        Placement(node, index * per_node, per_node) for index, node in enumerate(chosen)
    )
    return mesh, placements


def _may_shrink(state: RunState, spec: RunSpec, now_s: float) -> bool:
    if spec.nodes.when_short == "wait":
        return False
    quarantined = sum(1 for node in state.nodes.values() if node.quarantined)
    if spec.nodes.spares < quarantined:
        return True
    # The rest are still coming up, or coming back: soon, or not at all.
    return state.attempt is None and now_s - state.idle_s >= spec.restart.start_deadline_s


def _fitting_mesh(spec: RunSpec, num_usable: int, *, may_shrink: bool) -> Mesh | None:
    full = Mesh(spec.mesh.dp_shard, spec.mesh.tp)
    if num_usable >= spec.num_nodes:
        return full
    if not may_shrink:
        return None
    per_node = spec.nodes.ranks_per_node
    for dp_shard in range(full.dp_shard - 1, 0, -1):
        ranks = dp_shard * full.tp
        if ranks % per_node == 0 and ranks // per_node <= num_usable:
            return Mesh(dp_shard, full.tp)
    return None


def _keep_places(before: tuple[str, ...], usable: list[str], wanted: int) -> list[str]:
    places: list[str | None] = [node if node in usable else None for node in before[:wanted]]
    places += [None] * (wanted - len(places))
    free = iter([node for node in usable if node not in places])
    return [node if node is not None else next(free) for node in places]
