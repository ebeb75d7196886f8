"""When nodes are tried out: before they first carry ranks, and when they are suspected.

A node that has trained needs no preflight, so a restart after a fault waits for none. A suspected
node is passed over where another one can take its ranks, and is tried out beside the run; only
where it must carry ranks does the next attempt wait for the outcome.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...health.nodes.preflight_judge import DETECTOR
from ...logbook.decisions import Decision, EndPreflight, RunPreflight
from ...logbook.plan import Placement, PreflightPlan
from ...logbook.preflight import Thoroughness
from ...logbook.state import NodeState, RunState
from ..spec import RunSpec
from .context import About, Pairs, is_training, make_decision
from .detectors import node_mode
from .node_marks import node_marks

EVIDENCE_MAX = 16
GATHER_S = 5.0
"""After this long without another node joining, those at hand are tried out without the rest."""


def wants_preflight(state: RunState, spec: RunSpec, node: NodeState) -> str:
    """Return why a node must be tried out before it carries ranks, "" when it need not be."""
    if spec.nodes.preflight == "off" or node_mode(state, spec, DETECTOR) == "off":
        return ""
    if node.suspicion:
        return node.suspicion
    if node.examined == node.incarnation:
        return ""
    if node.num_losses:
        return "came back after it was lost"
    return "not tried out in this run yet"


def unproven_nodes(state: RunState, spec: RunSpec) -> tuple[str, ...]:
    """Return the nodes that a placement passes over where it can, for want of a preflight."""
    marked = node_marks(state.nodes).unproven
    return tuple(n.node for n in marked if wants_preflight(state, spec, n))


def gate_attempt(
    state: RunState,
    spec: RunSpec,
    placements: Sequence[Placement],
    reason: str,
    evidence: Pairs = (),
    about: About = None,
) -> Decision | None:
    """Return the preflight that an attempt on these places must wait for, None where it need not.

    Before the first attempt the spares are tried out too: they are at hand, and nothing waits.
    """
    placed = [state.nodes[place.node] for place in placements]
    if not state.num_attempts:
        placed += [n for n in _able(state, spec) if n.is_usable and n not in placed]
    wanting = [node for node in placed if wants_preflight(state, spec, node)]
    if not any(node.node == place.node for node in wanting for place in placements):
        return None
    whys = dict.fromkeys(wants_preflight(state, spec, node) for node in wanting)
    names = [node.node for node in wanting]
    some = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    plan = _plan(state, spec, names, is_gate=True)
    text = f"{reason}; but first {some} must be tried out ({'; '.join(list(whys)[:4])})"
    return make_decision(state, RunPreflight(plan), text, evidence=evidence, about=about)


def is_gathering(state: RunState, spec: RunSpec, now_s: float) -> bool:
    """Whether the first preflight waits a little for nodes that are still coming up.

    Among more nodes a bad one is singled out more surely, and late ones are tried out twice.
    """
    if state.num_attempts or state.num_preflights or spec.nodes.preflight == "off":
        return False
    present = [node for node in state.nodes.values() if node.present]
    if len(present) >= spec.num_nodes + spec.nodes.spares:
        return False
    last_s = max((node.joined_s for node in present), default=now_s)
    return now_s - last_s < GATHER_S


def is_gated(state: RunState) -> bool:
    """Whether the next attempt waits for the preflight under way."""
    return state.preflight is not None and state.preflight.plan.is_gate


def examine_idle(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Try out a node that carries no ranks, one at a time, while the run trains or waits."""
    if state.preflight is not None or state.stopping or spec.nodes.preflight == "off":
        return []
    if state.attempt is not None and not is_training(state):
        return []
    if state.attempt is None and not state.num_attempts:
        # Those that are there are tried out together, right before the first attempt.
        return []
    for node in node_marks(state.nodes).unproven:
        is_worth_it = node.is_usable or bool(node.suspicion)
        if not (is_worth_it and _is_able(node, spec)):
            continue
        placed = state.attempt.plan.nodes if state.attempt is not None else ()
        why = wants_preflight(state, spec, node)
        if why and node.node not in placed:
            plan = _plan(state, spec, [node.node], is_gate=False)
            return [make_decision(state, RunPreflight(plan), f"{node.node}: {why}")]
    return []


def end_preflight(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Draw the line under a preflight whose outcome is known."""
    current = state.preflight
    if current is None or current.judged is None:
        return []
    judged, plan = current.judged, current.plan
    nodes = f"{len(plan.nodes)} nodes" if len(plan.nodes) > 1 else plan.nodes[0]
    if judged.error:
        why = f"the preflight of {nodes} proves nothing ({judged.error}); the run goes on without"
    elif judged.bad_nodes:
        why = f"{', '.join(judged.bad_nodes)} failed the preflight of {nodes}"
    elif judged.failed:
        why = f"{len(judged.failed)} checks failed on {nodes}, which single nobody out"
    else:
        why = f"all {judged.checks_total} checks passed on {nodes}"
    evidence = tuple((f"{r.name} on {r.node}", r.message) for r in judged.failed[:EVIDENCE_MAX])
    return [make_decision(state, EndPreflight(plan.number), why, evidence=evidence)]


def _able(state: RunState, spec: RunSpec) -> list[NodeState]:
    return [node for node in state.nodes.values() if _is_able(node, spec)]


def _is_able(node: NodeState, spec: RunSpec) -> bool:
    return node.present and node.slots >= spec.nodes.ranks_per_node


def _plan(state: RunState, spec: RunSpec, nodes: Sequence[str], *, is_gate: bool) -> PreflightPlan:
    return PreflightPlan(
        number=state.num_preflights + 1,
        nodes=tuple(nodes),
        ranks_per_node=spec.nodes.ranks_per_node,
        thoroughness=Thoroughness(spec.nodes.preflight),
        is_gate=is_gate,
    )
