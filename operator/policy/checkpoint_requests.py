"""What people ask about checkpoints: to keep one, to read one back, to let old ones go."""

from __future__ import annotations

from collections.abc import Callable

from ...logbook.decisions import (
    Action,
    CompleteIntervention,
    Decision,
    PinCheckpoint,
    PruneCheckpoints,
    QuarantineCheckpoint,
    ReleaseCheckpoint,
    UnpinCheckpoint,
    VerifyCheckpoint,
)
from ...logbook.events import InterventionRequested
from ...logbook.state import Intervention, RunState
from ..spec import RunSpec
from .candidates import doomed, newest_checkpoint
from .context import make_decision, said_by
from .storage import is_being_read, is_choosing, retention_plan

PRUNE = "prune"
_ACTIONS: dict[str, Callable[[str], Action]] = {
    "pin": PinCheckpoint,
    "unpin": UnpinCheckpoint,
    "verify": VerifyCheckpoint,
    "quarantine-checkpoint": QuarantineCheckpoint,
    "release-checkpoint": ReleaseCheckpoint,
}
CHECKPOINT_ACTIONS = (*_ACTIONS, PRUNE)


def refuse(state: RunState, request: InterventionRequested) -> str:
    """Return why a request about checkpoints cannot be carried out, "" when it can."""
    if request.action == PRUNE:
        return ""
    if request.target not in state.checkpoints:
        return f"there is no checkpoint {request.target!r}"
    if request.target in doomed(state):
        return f"{request.target} is being deleted"
    if request.action == "quarantine-checkpoint" and is_last(state, request.target):
        return f"{request.target} is the only checkpoint that the run could resume from"
    return ""


def is_last(state: RunState, checkpoint: str) -> bool:
    """Whether a checkpoint is the only one that can be resumed from."""
    return newest_checkpoint(state).ranked == (checkpoint,)


def answer(
    state: RunState, spec: RunSpec, request: InterventionRequested, now_s: float
) -> Decision | None:
    """Return the decision that carries a request out; None while it has to wait."""
    said = said_by(request)
    if request.action == PRUNE:
        return _prune(state, spec, said, now_s)
    known = state.checkpoints[request.target]
    if request.action == "verify" and is_being_read(state, known, now_s):
        return None
    return make_decision(state, _ACTIONS[request.action](request.target), said)


def _prune(state: RunState, spec: RunSpec, said: str, now_s: float) -> Decision | None:
    if is_choosing(state):
        return None
    plan = retention_plan(state, spec, now_s)
    if not plan.delete:
        return None
    why = "; ".join(f"{name}: {reason}" for name, reason in plan.delete)
    action = PruneCheckpoints(plan.delete_ids)
    return make_decision(state, action, f"{said}; {why}", evidence=plan.keep)


def complete(state: RunState, spec: RunSpec, known: Intervention, now_s: float) -> Decision | None:
    """Return the decision that closes a request whose effect is in the state; None before."""
    request = known.request
    said = (
        _pruned(state, spec, now_s)
        if request.action == PRUNE
        else _in_force(state, known, request.target)
    )
    return make_decision(state, CompleteIntervention(request.id), said) if said else None


def _pruned(state: RunState, spec: RunSpec, now_s: float) -> str:
    if is_choosing(state) or doomed(state) or retention_plan(state, spec, now_s).delete:
        return ""
    return f"retention keeps all {len(state.checkpoints)} checkpoints that there are"


def _in_force(state: RunState, known: Intervention, name: str) -> str:
    found = state.checkpoints.get(name)
    action = known.request.action
    if found is None:
        return ""
    if action == "verify":
        asked_s = found.verify_asked_s
        was_asked = asked_s is not None and asked_s >= known.requested_s
        # However long the reading takes: until then only an older one speaks.
        is_awaited = any(
            decision.action == VerifyCheckpoint(name) for decision in state.pending.values()
        )
        if not was_asked or found.verified is None or is_awaited:
            return ""
        return f"{name} is sound" if found.verified else f"{name} is NOT sound: {found.error}"
    is_done = {
        "pin": name in state.pins,
        "unpin": name not in state.pins,
        "quarantine-checkpoint": bool(found.quarantined),
        "release-checkpoint": not found.quarantined,
    }[action]
    return f"{action} is in force" if is_done else ""
