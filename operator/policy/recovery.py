"""Answers to a diagnosed fault: who is cordoned, where and from what the next attempt starts."""

from __future__ import annotations

from ...logbook.decisions import (
    AwaitNodes,
    Decision,
    IncidentDraft,
    PauseRun,
    QuarantineNode,
    StartAttempt,
)
from ...logbook.plan import AttemptPlan
from ...logbook.state import RunState
from ..spec import RunSpec
from .budget import spent_budget
from .candidates import resume_point
from .context import Pairs, make_decision, next_command, next_incident_id
from .diagnosis import Diagnosis, diagnose
from .placement import plan_placement
from .rollback import plan_rollback


def answer_failure(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Decide about the current attempt's fault, if it has one that is settled.

    Two decisions where a node is to blame: quarantine first, so that the placement of the second,
    made on the folded state, already avoids it.
    """
    diagnosis = diagnose(state, spec, now_s)
    if diagnosis is None:
        return []
    draft = _draft(state, diagnosis)
    node = _node_to_quarantine(state, spec, diagnosis)
    if node is not None:
        return [
            make_decision(
                state,
                QuarantineNode(node),
                f"{diagnosis.reason}; nothing more is placed on {node}",
                evidence=diagnosis.evidence,
                opens=draft,
            )
        ]
    if diagnosis.is_numeric:
        return [plan_rollback(state, spec, now_s, _opens(state, draft))]
    spent = spent_budget(state, spec, now_s)
    if spent is not None:
        return [_pause(state, spent, diagnosis.evidence, _opens(state, draft))]
    reason = f"{diagnosis.reason}; training resumes from the newest state that is whole"
    return [_restart(state, spec, reason, diagnosis.evidence, _opens(state, draft))]


def start(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Start the first attempt, or the next one of a run that waited for nodes or for a human."""
    if state.attempt is not None or plan_placement(state, spec) is None:
        return []
    spent = spent_budget(state, spec, now_s)
    if spent is not None:
        return [_pause(state, spent, (), None)]
    waited = "enough nodes are ready" if state.num_attempts else "all nodes are ready"
    return [_restart(state, spec, waited, (), None)]


def _draft(state: RunState, diagnosis: Diagnosis) -> IncidentDraft:
    attempt = state.attempt
    assert attempt is not None
    alarm = attempt.alarm if diagnosis.is_numeric else None
    return IncidentDraft(
        id=next_incident_id(state),
        fault=diagnosis.fault,
        title=diagnosis.title,
        step=state.step,
        seen_s=diagnosis.seen_s,
        onset_step=alarm.finding.onset_step if alarm is not None else state.step,
        node=diagnosis.node,
        rank=diagnosis.rank,
        is_numeric=diagnosis.is_numeric,
        finding=alarm.id if alarm is not None else "",
    )


def _opens(state: RunState, draft: IncidentDraft) -> IncidentDraft | str:
    """The draft, or the id of the incident that this attempt's fault has already opened."""
    attempt = state.attempt
    for name in state.open_incidents:
        known = state.incidents[name]
        same = known.draft.fault == draft.fault and known.draft.node == draft.node
        unanswered = known.attempt_after is None and same
        if attempt is not None and known.attempt_before == attempt.number and unanswered:
            return name
    return draft


def _node_to_quarantine(state: RunState, spec: RunSpec, diagnosis: Diagnosis) -> str | None:
    known = state.nodes.get(diagnosis.node or "")
    if known is None or known.quarantined:
        return None
    if diagnosis.fault == "node-lost":
        return known.node
    # This hang is the one more that the count does not hold yet.
    if diagnosis.fault == "hang" and known.num_hangs + 1 >= spec.restart.quarantine_after_hangs:
        return known.node
    return None


def _pause(
    state: RunState, spent: tuple[str, str], evidence: Pairs, opens: IncidentDraft | str | None
) -> Decision:
    code, reason = spent
    return make_decision(
        state,
        PauseRun(code),
        f"{reason}; a human must look before it goes on",
        evidence=evidence,
        opens=opens if isinstance(opens, IncidentDraft) else None,
        incident=opens if isinstance(opens, str) else None,
    )


def _restart(
    state: RunState,
    spec: RunSpec,
    reason: str,
    evidence: Pairs,
    opens: IncidentDraft | str | None,
) -> Decision:
    placed = plan_placement(state, spec)
    draft = opens if isinstance(opens, IncidentDraft) else None
    incident = opens if isinstance(opens, str) else None
    if placed is None:
        usable = sum(1 for n in state.nodes.values() if n.is_usable)
        return make_decision(
            state,
            AwaitNodes(),
            f"{reason}; {usable} of {spec.num_nodes} nodes are usable and no spare is left: "
            "the run waits for a node",
            evidence=evidence,
            opens=draft,
            incident=incident,
        )
    mesh, placements = placed
    choice = resume_point(state, spec)
    plan = AttemptPlan(
        attempt=state.num_attempts + 1,
        mesh=mesh,
        placements=placements,
        checkpoints=choice.candidates,
        resume_step=choice.resume_step,
        hyper=state.hyper,
        first_command=next_command(state),
    )
    source = choice.candidates[0] if choice.candidates else "the beginning (no checkpoint yet)"
    return make_decision(
        state,
        StartAttempt(plan),
        f"{reason}: {source}",
        evidence=(*evidence, ("nodes", ", ".join(plan.nodes)), ("resume from", source)),
        alternatives=choice.passed_over,
        opens=draft,
        incident=incident,
    )
