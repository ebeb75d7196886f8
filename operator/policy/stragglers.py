"""A straggler is left out at the next restart anyhow; one that costs enough is replaced at once.

Every rank waits for the slowest, so what a straggler costs a step, it costs the whole run. Against
that stands what a restart costs now: to start, as measured, and to train again what was not saved.
"""

from __future__ import annotations

import statistics

from ...health.nodes.straggler import DETECTOR
from ...logbook.decisions import Decision, IncidentDraft
from ...logbook.events import FindingSeen
from ...logbook.state import AttemptState, NodeState, RunState
from ..spec import RunSpec
from .budget import spent_budget
from .candidates import resume_point
from .context import About, Pairs, is_training, next_incident_id
from .node_marks import node_marks
from .placement import plan_placement
from .preflight import wants_preflight
from .recovery import restart

MIN_STEPS = 20
"""So many steps of the attempt must be known before the price of a restart is."""


def replace_straggler(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Restart without the costliest straggler, if that pays for itself soon enough."""
    attempt = state.attempt
    payback_s = spec.restart.straggler_payback_s
    is_steady = is_training(state) and attempt is not None and attempt.num_steps >= MIN_STEPS
    if attempt is None or not payback_s or not is_steady or state.stopping:
        return []
    slow = _costliest(state, attempt)
    if slow is None or spent_budget(state, spec, now_s) is not None:
        return []
    spare = _ready_spare(state, spec, attempt, state.nodes[slow.finding.node or ""].host)
    step_s = statistics.median(sample.step_s for sample in state.samples[-MIN_STEPS:])
    cost_s, lost_s = _restart_cost_s(state, spec, attempt, step_s)
    share = min(slow.finding.cost_s / step_s, 1.0) if step_s > 0 else 0.0
    pays_after_s = cost_s / share if share > 0 else float("inf")
    if spare is None or pays_after_s > payback_s or not _leaves_out(state, spec, now_s, slow):
        return []
    evidence: Pairs = (
        ("finding", slow.id),
        ("costs every step", f"{slow.finding.cost_s:.3g} s of {step_s:.3g} s"),
        ("a restart costs", f"{cost_s:.1f} s, {lost_s:.1f} s of it to train again"),
        ("pays for itself after", f"{pays_after_s:.0f} s, allowed {payback_s:.0f} s"),
        ("spare", spare.node),
    )
    reason = (
        f"{slow.finding.message}; replacing {slow.finding.node} pays for itself within "
        f"{pays_after_s:.0f} s; training resumes from the newest state that is whole"
    )
    return [restart(state, spec, now_s, reason, evidence, _about(state, slow))]


def _costliest(state: RunState, attempt: AttemptState) -> FindingSeen | None:
    if not node_marks(state.nodes).drained:
        return None
    marks = [state.nodes[name].drain for name in attempt.plan.nodes]
    slow = [m for m in marks if m is not None and m.finding.detector == DETECTOR]
    # What was found in an earlier attempt need not hold in this one.
    slow = [m for m in slow if m.attempt == attempt.number and m.finding.cost_s > 0]
    return max(slow, key=lambda m: m.finding.cost_s, default=None)


def _ready_spare(
    state: RunState, spec: RunSpec, attempt: AttemptState, slow_host: str
) -> NodeState | None:
    """Return a proven spare; one on the straggler's own machine would be no faster."""
    for node in state.nodes.values():
        is_able = node.is_usable and node.slots >= spec.nodes.ranks_per_node
        is_proven = node.drain is None and not wants_preflight(state, spec, node)
        is_elsewhere = node.host != slow_host and node.node not in attempt.plan.nodes
        if is_able and is_proven and is_elsewhere:
            return node
    return None


def _restart_cost_s(
    state: RunState, spec: RunSpec, attempt: AttemptState, step_s: float
) -> tuple[float, float]:
    """Return what a restart costs now, and how much of it is training again, in seconds."""
    assert attempt.first_step_s is not None
    lost_s = max(state.step - resume_point(state, spec).resume_step, 0) * step_s
    return attempt.first_step_s - attempt.started_s + lost_s, lost_s


def _leaves_out(state: RunState, spec: RunSpec, now_s: float, slow: FindingSeen) -> bool:
    placed = plan_placement(state, spec, now_s)
    return placed is not None and all(place.node != slow.finding.node for place in placed[1])


def _about(state: RunState, slow: FindingSeen) -> About:
    finding = slow.finding
    for name in state.open_incidents:
        known = state.incidents[name]
        if known.draft.finding == slow.id and known.attempt_after is None:
            return name
    return IncidentDraft(
        id=next_incident_id(state),
        fault=finding.kind,
        title=finding.message[:200],
        step=state.step,
        seen_s=state.time_s,
        onset_step=finding.onset_step,
        node=finding.node,
        rank=finding.rank,
        finding=slow.id,
    )
