"""Answers to what people ask for: every request is carried out or refused with a reason."""

from __future__ import annotations

from ...logbook.decisions import (
    Action,
    CompleteIntervention,
    Decision,
    EndRun,
    QuarantineNode,
    RejectIntervention,
    ReleaseNode,
    ResumeRun,
    SendCommand,
    SetDetector,
)
from ...logbook.events import InterventionRequested
from ...logbook.state import Intervention, RunState, Status
from ...logbook.wire import Command
from ..spec import RunSpec
from . import checkpoint_requests
from .checkpoint_requests import CHECKPOINT_ACTIONS
from .context import make_decision
from .detectors import refuse_switch, switch_of

COMMANDS = ("lr", "lr-factor", "grad-clip", "checkpoint", "stop")
RESEND_S = 10.0
"""A command that no rank has confirmed within this, or within three steps, is sent again."""


def answer_requests(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Decide about the oldest request that can be decided about now."""
    for known in state.interventions.values():
        if known.stage == "requested":
            decision = _answer(state, spec, known.request, now_s)
        elif known.stage == "sent":
            decision = _follow_up(state, known, now_s)
        else:
            continue
        if decision is not None:
            return [decision]
    return []


def _answer(
    state: RunState, spec: RunSpec, request: InterventionRequested, now_s: float
) -> Decision | None:
    refusal = _refusal(state, spec, request)
    if refusal:
        return make_decision(state, RejectIntervention(request.id), refusal)
    if request.action in CHECKPOINT_ACTIONS:
        return checkpoint_requests.answer(state, spec, request, now_s)
    said = f"{request.by} asked: {request.reason or 'no reason given'}"
    if request.action == "resume":
        return make_decision(state, ResumeRun(), said)
    if request.action == "detector":
        return make_decision(state, SetDetector(*switch_of(request.target)), said)
    if request.action in ("quarantine", "release"):
        make: Action = (
            QuarantineNode(request.target)
            if request.action == "quarantine"
            else ReleaseNode(request.target)
        )
        return make_decision(state, make, said)
    if request.action == "stop" and state.attempt is None:
        return make_decision(state, EndRun(stopped=True, step=state.step), said)
    if not is_training(state):
        return None
    command = Command(state.next_command, request.action, request.value, request.id)
    return make_decision(state, SendCommand(command, request.id), said)


def _refusal(state: RunState, spec: RunSpec, request: InterventionRequested) -> str:
    limits, value = spec.limits, request.value
    status = state.status
    node = state.nodes.get(request.target)
    attempt = request.expect_attempt
    if attempt is not None and attempt != state.num_attempts:
        return f"conflict: attempt {attempt} was expected, attempt {state.num_attempts} is current"
    if request.action in CHECKPOINT_ACTIONS:
        return checkpoint_requests.refuse(state, request)
    if request.action in ("quarantine", "release"):
        return "" if node is not None else f"there is no node {request.target!r}"
    if request.action == "detector":
        return refuse_switch(request.target)
    if request.action == "resume":
        paused = status in (Status.PAUSED, Status.STOPPED)
        return "" if paused else f"only a paused or stopped run can be resumed; it is {status}"
    if request.action not in COMMANDS:
        return f"unknown action {request.action!r}"
    if status.is_terminal:
        return f"the run is {status}"
    if request.action == "lr" and not limits.lr_min <= value <= limits.lr_max:
        return f"lr {value:g} is outside limits [{limits.lr_min:g}, {limits.lr_max:g}]"
    largest = limits.lr_factor_max
    if request.action == "lr-factor" and not 1 / largest <= value <= largest:
        return f"factor {value:g} is outside limits [{1 / largest:g}, {largest:g}]"
    if request.action == "grad-clip" and not 0 < value < float("inf"):
        return f"clip {value:g} is not a positive number"
    return ""


def _follow_up(state: RunState, known: Intervention, now_s: float) -> Decision | None:
    """A command is sent again until it is confirmed, unless its change is in the start command.

    To the same attempt it goes under the same number, which a rank that has it ignores. A new
    attempt expects every number from its first one on, so there it gets a new one.
    """
    request, seq = known.request, known.seq
    if request.action == "stop" and state.attempt is None:
        why = f"attempt {known.sent_attempt} ended before it could stop, and none is running"
        return make_decision(state, EndRun(stopped=True, step=state.step), why)
    if not is_training(state):
        return None
    if known.sent_attempt == state.num_attempts:
        waited_s = now_s - known.sent_s
        if known.acks or waited_s < _patience_s(state, known):
            return None
        why = f"no rank has confirmed it within {waited_s:.0f} s: sent again"
    elif known.acks:
        why = f"applied at step {known.at_step}; attempt {state.num_attempts} started with it"
        return make_decision(state, CompleteIntervention(request.id), why)
    else:
        seq = state.next_command
        why = f"attempt {known.sent_attempt} ended before it took effect: sent again"
    assert seq is not None
    command = Command(seq, request.action, request.value, request.id)
    return make_decision(state, SendCommand(command, request.id), why)


def _patience_s(state: RunState, known: Intervention) -> float:
    # Twice as long each time: a rank that cannot confirm is not helped by a flood.
    once_s = max(RESEND_S, 3.0 * (state.step_median.value or 0.0))
    return once_s * 2.0 ** min(known.num_sent - 1, 10)


def complete_done(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Mark requests whose effect is already in the state."""
    for known in state.interventions.values():
        if known.stage != "requested":
            continue
        request, node = known.request, state.nodes.get(known.request.target)
        if request.action in CHECKPOINT_ACTIONS:
            closing = checkpoint_requests.complete(state, spec, known, now_s)
            if closing is not None:
                return [closing]
            continue
        done = {
            "quarantine": node is not None and bool(node.quarantined),
            "release": node is not None and not node.quarantined,
            "resume": state.resumed_s >= known.requested_s,
            "detector": _is_switched(state, request.target),
        }.get(request.action, False)
        if done:
            done_id = CompleteIntervention(request.id)
            return [make_decision(state, done_id, f"{request.action} is in force")]
    return []


def _is_switched(state: RunState, target: str) -> bool:
    detector, mode = switch_of(target)
    return state.detectors.get(detector) == mode


def is_training(state: RunState) -> bool:
    """Whether the current attempt completes steps and nothing is known to be wrong with it."""
    attempt = state.attempt
    return (
        attempt is not None
        and attempt.first_step_s is not None
        and attempt.signal_s is None
        and not attempt.finished
    )
