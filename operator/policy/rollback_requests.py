"""What a person asks for who wants to go back to an earlier state, by its step or its name.

A run that is paused, or waits for nodes, begins again with it when its time comes.
Changes that people have made stay in force: one that was made later than the state comes again at
its step. Whoever wants less of them takes them back.
"""

from __future__ import annotations

from ...logbook.decisions import Decision, StartAttempt
from ...logbook.events import InterventionRequested
from ...logbook.plan import AttemptPlan
from ...logbook.state import RunState
from ...logbook.words import steps_text
from ..spec import RunSpec
from .candidates import MAX_CANDIDATES, usable_until
from .context import make_decision, said_by
from .placement import plan_placement
from .preflight import gate_attempt

ROLLBACK = "rollback"


def refuse(state: RunState, request: InterventionRequested) -> str:
    """Return why the run cannot go back so, "" when it can."""
    if state.status.is_terminal:
        return f"the run is {state.status}"
    name = request.target
    if name and name not in state.checkpoints:
        return f"there is no checkpoint {name!r}"
    limit_step = limit_of(state, request)
    if limit_step < 0 or (limit_step != request.value and not name):
        return f"{request.value:g} is no step"
    if not name and limit_step > state.step:
        return f"step {limit_step} is still to come: step {state.step} is completed"
    choice = usable_until(state, limit_step)
    if name and name not in choice.ranked:
        why = dict(choice.passed_over).get(name, "it is not whole, or not of this lineage")
        return f"{name} cannot be resumed from: {why}"
    if not choice.ranked:
        return f"no sound checkpoint is of step {limit_step} or an earlier one"
    return ""


def limit_of(state: RunState, request: InterventionRequested) -> int:
    """Return the newest step that the run may go back to."""
    known = state.checkpoints.get(request.target)
    return known.step if known is not None else int(request.value)


def begin(state: RunState, spec: RunSpec, now_s: float) -> Decision | None:
    """Return the attempt of a run at a stand that somebody has asked to go back, else None."""
    for known in state.interventions.values():
        request = known.request
        if known.stage == "requested" and request.action == ROLLBACK and not refuse(state, request):
            return plan(state, spec, request, said_by(request), now_s)
    return None


def plan(
    state: RunState, spec: RunSpec, request: InterventionRequested, said: str, now_s: float
) -> Decision | None:
    """Return the attempt that goes back; None while too few nodes could carry it."""
    placed = plan_placement(state, spec, now_s)
    if placed is None:
        return None
    if state.attempt is None:
        gate = gate_attempt(state, spec, placed[1], said)
        if gate is not None:
            return gate
    ranked = usable_until(state, limit_of(state, request)).ranked
    if request.target:
        ranked = (request.target, *(name for name in ranked if name != request.target))
    step = state.checkpoints[ranked[0]].step
    attempt = AttemptPlan(
        attempt=state.num_attempts + 1,
        mesh=placed[0],
        placements=placed[1],
        checkpoints=ranked[:MAX_CANDIDATES],
        resume_step=step,
        hyper=state.hyper,
        first_command=state.next_command,
    )
    action = StartAttempt(attempt, intervention=request.id)
    why = f"{said}: back to {ranked[0]}, {steps_text(state.step - step)} given up"
    return make_decision(
        state,
        action,
        why,
        evidence=(("step before", str(state.step)), ("step after", str(step))),
        alternatives=(("memory", "it holds what is to be left behind"),),
    )
