"""Answers to what people ask for: every request is carried out or refused with a reason."""

from __future__ import annotations

from msgspec.structs import replace

from ...logbook.decisions import (
    ON_REQUEST,
    AcknowledgeIncident,
    Action,
    CompleteIntervention,
    Decision,
    EndRun,
    ExpireIntervention,
    PauseRun,
    QuarantineNode,
    RejectIntervention,
    ReleaseNode,
    ResumeRun,
    SendCommand,
    SetDetector,
)
from ...logbook.events import InterventionRequested
from ...logbook.fold_interventions import ENDINGS, is_unheard, recent_touches
from ...logbook.hyper import Command
from ...logbook.phrases import touch_text
from ...logbook.state import Intervention, RunState
from ..spec import RunSpec
from . import checkpoint_requests, rollback_requests
from .checkpoint_requests import CHECKPOINT_ACTIONS
from .context import is_for_a_while, is_training, make_decision, said_by
from .detectors import switch_of
from .foretell import foretell
from .refusals import refuse
from .rungs import given_up

EXPIRY_GRACE_STEPS = 20
"""Steps that ranks have to tell that a change is over before it is taken for granted."""
RESEND_S = 10.0
"""A command that no rank has confirmed within this, or within three steps, is sent again."""


def answer_requests(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Decide about the oldest request that can be decided about now."""
    for known in state.interventions.values():
        if known.stage == "requested":
            decision = _answer(state, spec, known.request, now_s)
        elif known.stage in ("sent", "scheduled") or is_for_a_while(known):
            decision = _follow_up(state, spec, known, now_s)
        else:
            continue
        if decision is not None:
            return [decision]
    return []


def _answer(
    state: RunState, spec: RunSpec, request: InterventionRequested, now_s: float
) -> Decision | None:
    refusal = refuse(state, spec, request)
    if refusal:
        return make_decision(state, RejectIntervention(request.id), refusal)
    decision = _carry_out(state, spec, request, now_s)
    if decision is None:
        return None
    # Who asks may not know what somebody else did to the same thing a moment ago.
    touches = recent_touches(state, request, now_s).items()
    met = tuple(("just before", touch_text(topic, touch)) for topic, touch in touches)
    return replace(decision, evidence=(*decision.evidence, *met))


def _carry_out(
    state: RunState, spec: RunSpec, request: InterventionRequested, now_s: float
) -> Decision | None:
    if request.action in CHECKPOINT_ACTIONS:
        return checkpoint_requests.answer(state, spec, request, now_s)
    said = said_by(request)
    if request.action == "revert" and is_unheard(state, state.interventions[request.target]):
        return _forget(state, spec, request, said)
    action = _action_at_once(state, request)
    if action is not None:
        shown = foretell(state, spec, request) if request.action == "detector" else ()
        return make_decision(state, action, said, evidence=shown)
    if not is_training(state):
        return None
    if request.action == rollback_requests.ROLLBACK:
        return rollback_requests.plan(state, spec, request, said, now_s)
    send = SendCommand(_command(state.next_command, request, spec), request.id)
    evidence = (*foretell(state, spec, request), *given_up(state, request))
    return make_decision(state, send, said, evidence=evidence)


def _forget(state: RunState, spec: RunSpec, request: InterventionRequested, said: str) -> Decision:
    """Take back what no rank has taken: none needs to be told."""
    why = f"{said}: no rank had taken {request.target}"
    shown = foretell(state, spec, request)
    done = CompleteIntervention(request.id)
    return make_decision(state, done, why, evidence=shown, reverts=(request.target,))


def _action_at_once(state: RunState, request: InterventionRequested) -> Action | None:
    """What needs no rank to carry it out, None where ranks are needed."""
    target, is_due = request.target, request.at_step is None
    match request.action:
        case "resume":
            return ResumeRun()
        case "detector":
            return SetDetector(*switch_of(target))
        case "quarantine":
            return QuarantineNode(target)
        case "release":
            return ReleaseNode(target)
        case "ack":
            return AcknowledgeIncident(target, request.by)
        case "stop" | "pause" if state.attempt is None and is_due:
            return _ending(state, request)
    return None


def _ending(state: RunState, request: InterventionRequested) -> Action:
    stopped = EndRun(stopped=True, step=state.step)
    return PauseRun(ON_REQUEST) if request.action == "pause" else stopped


def _command(seq: int, request: InterventionRequested, spec: RunSpec) -> Command:
    # How long a range of samples is in data steps, only ranks can say: they get the limit.
    most = float(spec.limits.skip_steps_max)
    return Command(
        seq,
        request.action,
        most if request.action == "skip" else request.value,
        request.id,
        request.values,
        request.target,
        request.at_step or 0,
        request.for_steps or 0,
    )


def _follow_up(
    state: RunState, spec: RunSpec, known: Intervention, now_s: float
) -> Decision | None:
    """A command is sent again until it is confirmed, unless its change is in the start command.

    To the same attempt it goes under the same number, which a rank that has it ignores. A new
    attempt expects every number from its first one on, so there it gets a new one.
    """
    request, seq = known.request, known.seq
    is_ending = request.action in ENDINGS
    if is_ending and state.attempt is None and (request.at_step or 0) <= state.step:
        why = (
            f"attempt {known.sent_attempt} ended before it could {request.action}, none is running"
        )
        return make_decision(state, _ending(state, request), why)
    if request.action == "rollback" or not is_training(state):
        return None
    if known.stage == "applied":
        return _expiry(state, known)
    if known.sent_attempt == state.num_attempts:
        waited_s = now_s - known.sent_s
        if known.acks or known.stage == "scheduled" or waited_s < _patience_s(state, known):
            return None
        why = f"no rank has confirmed it within {waited_s:.0f} s: sent again"
    elif known.acks:
        why = f"applied at step {known.at_step}; attempt {state.num_attempts} started with it"
        return make_decision(state, CompleteIntervention(request.id), why)
    elif known.stage == "scheduled":
        return None  # It is in the start command, and waits for its step there.
    else:
        seq = state.next_command
        why = f"attempt {known.sent_attempt} ended before it took effect: sent again"
    assert seq is not None
    return make_decision(state, SendCommand(_command(seq, request, spec), request.id), why)


def _expiry(state: RunState, known: Intervention) -> Decision | None:
    """What ranks do not say of the end of a change, since none came past it, follows from the
    step."""
    until = known.until_step
    if until is None or state.step < until + EXPIRY_GRACE_STEPS:
        return None
    why = f"its last step was {until - 1}, the run is at step {state.step}"
    return make_decision(state, ExpireIntervention(known.request.id), why)


def _patience_s(state: RunState, known: Intervention) -> float:
    # Twice as long each time: a rank that cannot confirm is not helped by a flood.
    once_s = max(RESEND_S, 3.0 * (state.step_median.value or 0.0))
    return once_s * 2.0 ** min(known.num_sent - 1, 10)


def complete_done(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Mark requests whose effect is already in the state."""
    for known in state.interventions.values():
        closing = _completion(state, spec, known, now_s) if known.stage == "requested" else None
        if closing is not None:
            return [closing]
    return []


def plan_answer(
    state: RunState, spec: RunSpec, request: InterventionRequested, now_s: float
) -> Decision | None:
    """Return what would be decided about a request made now, None while it would have to wait."""
    known = Intervention(request=request, requested_s=now_s)
    asked = replace(state, interventions={**state.interventions, request.id: known})
    found = _completion(asked, spec, known, now_s) or _answer(asked, spec, request, now_s)
    if found is None and state.attempt is None:
        return rollback_requests.begin(asked, spec, now_s)
    return found


def _completion(
    state: RunState, spec: RunSpec, known: Intervention, now_s: float
) -> Decision | None:
    request, node = known.request, state.nodes.get(known.request.target)
    if request.action in CHECKPOINT_ACTIONS:
        return checkpoint_requests.complete(state, spec, known, now_s)
    done = {
        "quarantine": node is not None and bool(node.quarantined),
        "release": node is not None and not node.is_blamed,
        "resume": state.resumed_s >= known.requested_s,
        "detector": _is_switched(state, request.target),
        "ack": _is_acknowledged(state, request.target),
    }.get(request.action, False)
    done_id = CompleteIntervention(request.id)
    return make_decision(state, done_id, f"{request.action} is in force") if done else None


def _is_switched(state: RunState, target: str) -> bool:
    detector, mode = switch_of(target)
    return state.detectors.get(detector) == mode


def _is_acknowledged(state: RunState, incident: str) -> bool:
    known = state.incidents.get(incident)
    return known is not None and bool(known.acknowledged)
