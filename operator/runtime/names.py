"""How the actors of a run are named in the Ray cluster."""

from __future__ import annotations

NAMESPACE = "midwatch"


def controller_name(run: str) -> str:
    """Return the name of a run's controller actor."""
    return f"{run}/controller"


def agent_name(run: str, node: str) -> str:
    """Return the name of the agent actor of one node of a run."""
    return f"{run}/agent/{node}"


def places_name(run: str) -> str:
    """Return the name of the placement group that holds a run's machines."""
    return f"{run}/nodes"


def node_names(num_nodes: int, num_spares: int) -> tuple[str, ...]:
    """Return the names of a run's nodes, spares last: node-0, node-1, ..."""
    return tuple(f"node-{index}" for index in range(num_nodes + num_spares))
