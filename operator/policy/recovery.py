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
from ...logbook.state import AttemptState, Incident, RunState
from ..spec import RunSpec
from . import rollback_requests
from .budget import spent_budget
from .candidates import memory_since, nothing_to_resume, resume_point
from .context import About, Pairs, make_decision, next_incident_id
from .diagnosis import Diagnosis, diagnose, diagnose_numbers
from .placement import plan_placement
from .preflight import gate_attempt, is_gated, is_gathering
from .rollback import alarm_trouble, open_trouble, plan_rollback
from .suspects import quarantine_suspect


def answer_failure(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Decide about the current attempt's fault, if it has one that is settled.

    Where nodes are to blame they are quarantined first, so that the placement of the next attempt,
    made on the folded state, already avoids them. Numeric trouble decides from where to go on,
    whatever else happened to the attempt: the newest state is not to be trusted.
    """
    attempt, diagnosis = state.attempt, diagnose(state, spec, now_s)
    if attempt is None or diagnosis is None:
        return []
    about = _about(state, attempt, diagnosis)
    node = _node_to_quarantine(state, spec, attempt, diagnosis)
    if node is not None:
        why = f"{diagnosis.reason}; nothing more is placed on {node}"
        quarantine = QuarantineNode(node)
        return [make_decision(state, quarantine, why, evidence=diagnosis.evidence, about=about)]
    numbers = diagnose_numbers(attempt, spec, now_s)
    if numbers is not None:
        also = () if diagnosis.is_numeric else (("also seen", diagnosis.title),)
        trouble = alarm_trouble(attempt, also)
        return [plan_rollback(state, spec, now_s, trouble, _about(state, attempt, numbers))]
    suspect = quarantine_suspect(state, spec, diagnosis.evidence, about)
    if suspect is not None:
        return [suspect]
    spent = spent_budget(state, spec, now_s)
    if spent is None and not resume_point(state, spec).candidates:
        spent = nothing_to_resume(state, spec)
    if spent is not None:
        return [_pause(state, spent, diagnosis.evidence, about)]
    reason = f"{diagnosis.reason}; training resumes from the newest state that is whole"
    avoid = (diagnosis.node,) if diagnosis.fault == "start-failed" and diagnosis.node else ()
    return [restart(state, spec, now_s, reason, diagnosis.evidence, about, avoid)]


def start(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Start the first attempt, or the next one of a run that waited for nodes or for a human."""
    if state.attempt is not None or is_gated(state) or is_gathering(state, spec, now_s):
        return []
    if plan_placement(state, spec, now_s) is None:
        return []
    unanswered = (n for n in reversed(state.open_incidents) if _is_unanswered(state.incidents[n]))
    about = next(unanswered, None)
    spent = spent_budget(state, spec, now_s)
    if spent is not None:
        return [_pause(state, spent, (), about)]
    asked = rollback_requests.begin(state, spec, now_s)
    if asked is not None:
        return [asked]
    trouble = open_trouble(state)
    if trouble is not None:
        return [plan_rollback(state, spec, now_s, *trouble)]
    waited = "enough nodes are ready" if state.num_attempts else "all nodes are ready"
    return [restart(state, spec, now_s, waited, (), about)]


def _is_unanswered(incident: Incident) -> bool:
    # A run may have waited while something was only watched, but not because of it.
    return incident.recovered_s is None and not incident.is_watched


def _about(state: RunState, attempt: AttemptState, diagnosis: Diagnosis) -> IncidentDraft | str:
    """The incident that this attempt's fault has already opened, or else the draft of one."""
    for name in state.open_incidents:
        known = state.incidents[name]
        same = known.draft.fault == diagnosis.fault and known.draft.node == diagnosis.node
        unanswered = known.attempt_after is None and same
        if known.attempt_before == attempt.number and unanswered:
            return name
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


def _node_to_quarantine(
    state: RunState, spec: RunSpec, attempt: AttemptState, diagnosis: Diagnosis
) -> str | None:
    blamed: tuple[str, ...] = ()
    if diagnosis.fault == "node-lost":
        blamed = tuple(node for node, _ in attempt.lost_nodes)
    elif diagnosis.fault == "hang" and diagnosis.node is not None:
        # This hang is the one more that the count does not hold yet.
        hangs = state.nodes[diagnosis.node].num_hangs + 1
        blamed = (diagnosis.node,) if hangs >= spec.restart.quarantine_after_hangs else ()
    return next((node for node in blamed if not state.nodes[node].quarantined), None)


def _pause(state: RunState, spent: tuple[str, str], evidence: Pairs, about: About) -> Decision:
    code, reason = spent
    why = f"{reason}; a human must look before it goes on"
    return make_decision(state, PauseRun(code), why, evidence=evidence, about=about)


def restart(
    state: RunState,
    spec: RunSpec,
    now_s: float,
    reason: str,
    evidence: Pairs,
    about: About,
    avoid: tuple[str, ...] = (),
) -> Decision:
    """Return the next attempt, from the newest state that is whole, or a wait for nodes."""
    placed = plan_placement(state, spec, now_s, avoid)
    if placed is None:
        usable = sum(1 for n in state.nodes.values() if n.is_usable)
        why = (
            f"{reason}; {usable} of {spec.num_nodes} nodes are usable and no spare is left: "
            "the run waits for a node"
        )
        return make_decision(state, AwaitNodes(), why, evidence=evidence, about=about)
    mesh, placements = placed
    gate = gate_attempt(state, spec, placements, reason, evidence, about)
    if gate is not None:
        return gate
    choice = resume_point(state, spec)
    plan = AttemptPlan(
        attempt=state.num_attempts + 1,
        mesh=mesh,
        placements=placements,
        checkpoints=choice.candidates,
        resume_step=choice.resume_step,
        hyper=state.hyper,
        first_command=state.next_command,
        memory_since=memory_since(state, spec),
        validated_step=state.validated_step,
    )
    source = choice.candidates[0] if choice.candidates else "the beginning (no checkpoint yet)"
    in_memory = state.last.memory_step if state.last is not None else None
    if plan.memory_since is not None and in_memory is not None:
        source = f"memory, whole to step {in_memory} when last heard of, or else {source}"
    return make_decision(
        state,
        StartAttempt(plan),
        f"{reason}: {source}",
        evidence=(*evidence, ("nodes", ", ".join(plan.nodes)), ("resume from", source)),
        alternatives=choice.passed_over,
        about=about,
    )
