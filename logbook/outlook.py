"""What to watch after an incident, from what was done about it and how things stand. Pure."""

from __future__ import annotations

from .decisions import StartAttempt
from .state import Incident, NodeState, RunState

ALIKE_SHOWN = 5


def outlook_text(state: RunState, incident: Incident) -> str:
    """Return what to watch next, and which incidents before it were like this one."""
    draft = incident.draft
    if draft.is_numeric:
        ahead = _of_numbers(incident)
    elif (node := state.nodes.get(draft.node or "")) is not None:
        ahead = _of_node(state, node)
    else:
        ahead = _of_place(state, incident)
    return " ".join(filter(None, (ahead, _earlier(state, incident))))


def _of_numbers(incident: Incident) -> str:
    figures = f"Loss, gradient norm and activation norm past step {incident.draft.onset_step}"
    starts = [d.action for d in incident.decisions if isinstance(d.action, StartAttempt)]
    if not starts:
        return f"{figures}, where it began: nothing was changed, so it has to pass by itself."
    rate = ""
    if starts[-1].lr_factor != 1.0:
        rate = f", now at x{starts[-1].lr_factor:.3g} of the rate it had"
    return (
        f"{figures}, where it began{rate}; a recurrence goes further back and lowers the rate "
        "again."
    )


def _of_node(state: RunState, node: NodeState) -> str:
    count = _num_spares(state)
    spares = f"{count} spare node{' is' if count == 1 else 's are'} left."
    if node.quarantined:
        until = "until somebody releases it: have it tried out before"
        return f"Node {node.node} is out {until}. {spares}"
    if not node.present:
        machine = f"machine {node.machine}" if node.machine else f"host {node.host}"
        return f"Node {node.node} is gone: whether {machine} comes back, and as what. {spares}"
    lost = f"; it was lost {node.num_losses} times already" if node.num_losses > 1 else ""
    use = "is in use again" if _is_placed(state, node.node) else "stands by as a spare"
    return f"Node {node.node} {use}: another failure there is no coincidence{lost}."


def _of_place(state: RunState, incident: Incident) -> str:
    step = incident.draft.step
    if state.step > step and incident.recovered_s is not None:
        return f"Training is past step {step}, where it happened: whether it comes back elsewhere."
    return f"Whether it comes back at step {step}, or on one node again and again."


def _is_placed(state: RunState, node: str) -> bool:
    return state.attempt is not None and node in state.attempt.plan.nodes


def _num_spares(state: RunState) -> int:
    return sum(n.is_usable and not _is_placed(state, n.node) for n in state.nodes.values())


def _earlier(state: RunState, incident: Incident) -> str:
    """Return which incidents before it were like this one."""
    draft = incident.draft
    alike: list[str] = []
    for name, other in state.incidents.items():
        if name == draft.id:
            break
        same_node = draft.node is not None and other.draft.node == draft.node
        if other.draft.fault == draft.fault or same_node:
            alike.append(name)
    if not alike:
        return ""
    more = f" and {len(alike) - ALIKE_SHOWN} before" if len(alike) > ALIKE_SHOWN else ""
    return f"It is not the first of its kind: {', '.join(alike[-ALIKE_SHOWN:])}{more}."
