"""Answers to what is wrong with a node itself, and what is remembered of its machine.

A finding that asks for eviction quarantines its node at once; the attempt on it is then given up by
the diagnosis. One that asks for a drain only marks the node: placement passes it over at the next
restart. Anything milder is a note.
"""

from __future__ import annotations

from ...health.nodes.lemons import Failure, GpuIdentity, MachineIdentity
from ...logbook.decisions import (
    CloseIncident,
    Decision,
    IncidentDraft,
    Observe,
    QuarantineNode,
)
from ...logbook.findings import Severity
from ...logbook.state import Incident, NodeState, RunState
from ..spec import RunSpec
from .context import make_decision, next_incident_id
from .node_marks import node_marks

LEMON = "lemon"
# How surely a fault is its node's; one that is not listed is nobody's or the program's.
_WEIGHTS = {"node-lost": 0.5, "start-failed": 0.5, "hang": 0.3}
_WEIGHT_OF_ACTION = {"evict": 1.0, "drain": 0.5}


def evict_sick(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Quarantine a node that a finding wants replaced now, whether or not it carries ranks."""
    for node in node_marks(state.nodes).evicted:
        seen = node.evict
        if seen is None or node.quarantined:
            continue
        finding = seen.finding
        is_numeric = finding.severity is Severity.ROLLBACK
        draft = IncidentDraft(
            id=next_incident_id(state),
            fault=finding.kind,
            title=f"{finding.kind} on {node.node}: {finding.message}"[:200],
            step=state.step,
            seen_s=state.time_s,
            onset_step=finding.onset_step,
            node=node.node,
            rank=finding.rank,
            is_numeric=is_numeric,
            finding=seen.id,
        )
        evidence = (
            ("finding", seen.id),
            ("detector", finding.detector),
            ("device", finding.device or "the node"),
            ("observed", f"{finding.value:.6g}"),
        )
        why = f"{finding.message}; the node is to be replaced now"
        quarantine = QuarantineNode(node.node)
        return [make_decision(state, quarantine, why, evidence=evidence, about=draft)]
    return []


def quarantine_lemons(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Use no machine that has failed too often, in this run or in others.

    What its hardware says may come late, when ranks train there already; what it did before is no
    reason to end them. It is left out at the next restart instead.
    """
    in_use = state.attempt.plan.nodes if state.attempt is not None else ()
    for node in node_marks(state.nodes).lemons:
        if node.quarantined or not node.present or node.node in in_use:
            continue
        draft = IncidentDraft(
            id=next_incident_id(state),
            fault=LEMON,
            title=f"{node.node} joined on a machine that fails again and again",
            step=state.step,
            seen_s=state.time_s,
            onset_step=state.step,
            node=node.node,
        )
        return [make_decision(state, QuarantineNode(node.node), node.lemon, about=draft)]
    return []


def close_unused(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Close the incidents of nodes that were taken out while no rank ran on them."""
    for name in state.open_incidents:
        incident = state.incidents[name]
        in_use = state.attempt.plan.nodes if state.attempt is not None else ()
        if _is_quarantine_alone(incident) and incident.draft.node not in in_use:
            outcome = f"{incident.draft.node} is out of use; no rank ran on it"
            return [make_decision(state, CloseIncident(name, outcome), outcome, about=name)]
    return []


def _is_quarantine_alone(incident: Incident) -> bool:
    draft = incident.draft
    is_of_node = bool(draft.finding) or draft.fault == LEMON
    if draft.is_numeric or not is_of_node or incident.attempt_after is not None:
        return False
    return all(isinstance(each.action, QuarantineNode) for each in incident.decisions)


def drained_nodes(state: RunState) -> tuple[str, ...]:
    """Return the nodes to be left out at the next restart."""
    marks = node_marks(state.nodes)
    return tuple(dict.fromkeys(node.node for node in (*marks.drained, *marks.lemons)))


def machine_of(node: NodeState) -> MachineIdentity:
    """Return what a node runs on, as its agent said when it joined."""
    return MachineIdentity(node.machine, tuple(GpuIdentity(*gpu) for gpu in node.gpus))


def failure_of(state: RunState, decision: Decision) -> Failure | None:
    """Return the failure that a decision lays at a machine's door, None when it lays none.

    Every incident counts once, with the decision that opens it.
    """
    draft = decision.opens
    node = state.nodes.get(draft.node or "") if draft is not None else None
    if draft is None or node is None or draft.fault == LEMON:
        return None
    seen = next((seen for seen in state.findings if seen.id == draft.finding), None)
    weight = _WEIGHTS.get(draft.fault, 0.0)
    if seen is not None and seen.finding.node == node.node:
        weight = _WEIGHT_OF_ACTION.get(seen.finding.action, 0.0)
    elif isinstance(decision.action, Observe):
        return None
    machine = machine_of(node)
    known = {gpu.uuid for gpu in machine.gpus}
    device = seen.finding.device if seen is not None else ""
    if weight <= 0 or not machine.is_known:
        return None
    return Failure(
        time_s=draft.seen_s,
        # A name may be used again; with the second of its submission it is one run only.
        run=f"{state.run}@{state.submitted_s:.0f}",
        attempt=state.num_attempts,
        machine=machine,
        cause=draft.fault,
        weight=weight,
        gpus=(device,) if device in known else (),
        host=node.host,
    )
