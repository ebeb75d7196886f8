"""Why a request of a person is not carried out: each answer says what is wrong and what may be."""

from __future__ import annotations

from ...logbook.events import InterventionRequested
from ...logbook.fold_interventions import is_revocable, topics_of
from ...logbook.hyper import ONCE
from ...logbook.parameters import LASTING, PARAMETERS, parse_range, refuse_values, values_of
from ...logbook.phrases import touch_text
from ...logbook.state import RunState, Status
from ..spec import RunSpec
from . import checkpoint_requests, rollback_requests
from .checkpoint_requests import CHECKPOINT_ACTIONS
from .detectors import refuse_switch

COMMANDS = (*LASTING, *ONCE, "skip", "revert")
MAX_CHANGES = 500
"""Changes of a run that a start command, one frame, can hold with room to spare."""
SAME_RATE_FRAC = 0.01
"""A rate moves with its schedule while a person looks at it."""


def refuse(state: RunState, spec: RunSpec, request: InterventionRequested) -> str:
    """Return why a request cannot be carried out now or ever, "" when it can."""
    attempt = request.expect_attempt
    if attempt is not None and attempt != state.num_attempts:
        return f"conflict: attempt {attempt} was expected, attempt {state.num_attempts} is current"
    return (
        _conflict(state, request)
        or _misfit(state, spec, request)
        or _bad_timing(state, spec, request)
        or _unexpected_value(state, request)
    )


def _conflict(state: RunState, request: InterventionRequested) -> str:
    """Somebody else has changed the same thing, and the author of the request could not know."""
    seen = request.seen_seq
    for topic in topics_of(state, request) if seen is not None else ():
        touch = state.touched.get(topic)
        if touch is not None and seen is not None and touch.seq > seen:
            return (
                f"conflict: {touch_text(topic, touch)}; this request knew of events up to {seen}. "
                "Look again, then ask again"
            )
    return ""


def _misfit(state: RunState, spec: RunSpec, request: InterventionRequested) -> str:
    action, target = request.action, request.target
    if action in CHECKPOINT_ACTIONS:
        return checkpoint_requests.refuse(state, request)
    if action in ("quarantine", "release"):
        return "" if target in state.nodes else f"there is no node {target!r}"
    if action == "detector":
        return refuse_switch(target)
    if action == "ack":
        return "" if target in state.incidents else f"there is no incident {target!r}"
    if action == "resume":
        paused = state.status in (Status.PAUSED, Status.STOPPED)
        said = f"only a paused or stopped run can be resumed; it is {state.status}"
        return "" if paused else said
    if action == "rollback":
        return rollback_requests.refuse(state, request)
    if action not in COMMANDS:
        return f"unknown action {action!r}"
    return _refuse_command(state, spec, request)


def _refuse_command(state: RunState, spec: RunSpec, request: InterventionRequested) -> str:
    action, target = request.action, request.target
    if state.status.is_terminal:
        return f"the run is {state.status}"
    if action == "pause" and state.paused:
        return f"the run is paused already: {state.pause_reason}"
    if action == "skip":
        return _refuse_skip(state, spec, target)
    if action == "revert":
        return _refuse_revert(state, request)
    if action not in ONCE and state.hyper.num_changes >= MAX_CHANGES:
        return f"{state.hyper.num_changes} changes were made already, of at most {MAX_CHANGES}"
    limits = {"limits": spec.limits.model_dump()}
    return refuse_values(action, request.value, request.values, limits)


def _refuse_revert(state: RunState, request: InterventionRequested) -> str:
    known = state.interventions.get(request.target)
    if known is None or request.target == request.id:
        return f"no change called {request.target!r} was asked for"
    if is_revocable(state, known):
        return ""
    return f"{request.target} is {known.stage}: nothing of it can be taken back any more"


def _refuse_skip(state: RunState, spec: RunSpec, target: str) -> str:
    found = parse_range(target)
    if found is None:
        return f"{target!r} is no range; give FIRST:LAST, in which LAST is not left out any more"
    first, last, is_samples = found
    if is_samples:
        return ""  # How many samples a step has is for the ranks to say.
    most = spec.limits.skip_steps_max
    if last - first > most:
        return f"{last - first} data steps are more than limits.skip_steps_max {most}"
    if state.last is not None and first <= state.last.data_step:
        return (
            f"data step {first} is behind: step {state.last.step} has trained on data step "
            f"{state.last.data_step} already"
        )
    return ""


def _bad_timing(state: RunState, spec: RunSpec, request: InterventionRequested) -> str:
    action, at_step, for_steps = request.action, request.at_step, request.for_steps
    if at_step is not None:
        last_step = spec.trainer.get("steps")
        if action not in (*LASTING, *ONCE):
            return f"{action} cannot wait for a step"
        if at_step <= state.step:
            return f"step {at_step} has passed: step {state.step} is completed"
        if isinstance(last_step, int) and at_step > last_step:
            return f"step {at_step} is behind the last one, {last_step}"
    if for_steps is not None:
        if action not in LASTING:
            return f"{action} cannot be for some steps only"
        if for_steps < 1:
            return f"{for_steps} steps are no time; give 1 or more"
        if "loss-scale" in request.values:
            return "a loss scale that was reset moves by itself and cannot be for some steps only"
    return ""


def _unexpected_value(state: RunState, request: InterventionRequested) -> str:
    expected = request.expect_value
    names = list(values_of(request.action, request.value, request.values))
    if expected is None:
        return ""
    if len(names) != 1:
        return "an expected value goes with a change of exactly one parameter"
    if state.attempt is None or state.attempt.first_step_s is None:
        return ""  # It waits for the run to train, and is asked again then.
    now = value_now(state, names[0])
    if now is None:
        return f"the expected value cannot be compared: no rank has read {names[0]} back"
    within = SAME_RATE_FRAC if names[0] == "lr" else 1e-6
    if abs(now - expected) <= within * max(abs(now), abs(expected)):
        return ""
    return f"conflict: {names[0]} was expected to be {expected:g}, it is {now:g}. Look again"


def value_now(state: RunState, name: str) -> float | None:
    """Return the value of a parameter at the last step, None where nobody has said."""
    if name == "lr":
        return state.last.lr if state.last is not None else None
    if name == "lr-factor":
        return state.hyper.factor_at(state.step + 1)
    if name == "loss-scale" and state.last is not None:
        # It moves by itself: what was read back once says nothing of now.
        return state.last.loss_scale
    if state.attempt is None:
        return None
    return state.attempt.readback.get(PARAMETERS[name].readback)
