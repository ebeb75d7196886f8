"""What decisions mark on nodes, detectors and checkpoints, and for whom: a person, or Midwatch."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from . import decisions as d
from .events import InterventionRequested
from .fold_interventions import about_checkpoint, touched_as_asked
from .state import RunState


def asked_for(state: RunState, action: str, target: str) -> InterventionRequested | None:
    """Return the request that a decision of the moment carries out, None where nobody asked."""
    wanted = (action, target)
    return next(
        (
            known.request
            for known in state.interventions.values()
            if known.stage == "requested" and (known.request.action, known.request.target) == wanted
        ),
        None,
    )


# --- nodes and detectors -------------------------------------------------------------------------


def quarantine_node(
    state: RunState, action: d.QuarantineNode, decision: d.Decision, time_s: float
) -> RunState:
    """Nothing is placed on a node any more."""
    known = state.nodes.get(action.node)
    if known is None:
        return state
    bad = replace(known, quarantined=decision.reason)
    state = replace(state, nodes={**state.nodes, action.node: bad})
    asked = asked_for(state, "quarantine", action.node)
    return touched_as_asked(state, f"node {action.node}", asked, decision.reason, time_s)


def release_node(
    state: RunState, action: d.ReleaseNode, decision: d.Decision, time_s: float
) -> RunState:
    """A node may be used again, whatever was held against it."""
    known = state.nodes.get(action.node)
    if known is None:
        return state
    good = replace(known, quarantined="", num_hangs=0, lemon="", evict=None, drain=None)
    state = replace(state, nodes={**state.nodes, action.node: good})
    asked = asked_for(state, "release", action.node)
    return touched_as_asked(state, f"node {action.node}", asked, decision.reason, time_s)


def set_detector(
    state: RunState, action: d.SetDetector, decision: d.Decision, time_s: float
) -> RunState:
    """A detector acts, is only recorded, or is off."""
    state = replace(state, detectors={**state.detectors, action.detector: action.mode})
    asked = asked_for(state, "detector", f"{action.detector}={action.mode}")
    return touched_as_asked(state, f"detector {action.detector}", asked, decision.reason, time_s)


# --- checkpoints ---------------------------------------------------------------------------------


def verify(
    state: RunState, action: d.VerifyCheckpoint, decision: d.Decision, time_s: float
) -> RunState:
    """A checkpoint is about to be read back."""
    return _with_checkpoint(state, action.checkpoint, verify_asked_s=time_s)


def quarantine_checkpoint(
    state: RunState, action: d.QuarantineCheckpoint, decision: d.Decision, time_s: float
) -> RunState:
    """A checkpoint is not resumed from any more."""
    state = _with_checkpoint(state, action.checkpoint, quarantined=decision.reason)
    return _marked(state, "quarantine-checkpoint", action.checkpoint, decision, time_s)


def release_checkpoint(
    state: RunState, action: d.ReleaseCheckpoint, decision: d.Decision, time_s: float
) -> RunState:
    """A quarantined checkpoint may be resumed from again."""
    state = _with_checkpoint(state, action.checkpoint, quarantined="", num_failed=0)
    return _marked(state, "release-checkpoint", action.checkpoint, decision, time_s)


def pin(state: RunState, action: d.PinCheckpoint, decision: d.Decision, time_s: float) -> RunState:
    """A checkpoint is kept, whatever retention says."""
    state = replace(state, pins={**state.pins, action.checkpoint: decision.reason})
    return _marked(state, "pin", action.checkpoint, decision, time_s)


def unpin(
    state: RunState, action: d.UnpinCheckpoint, decision: d.Decision, time_s: float
) -> RunState:
    """A checkpoint is left to retention again."""
    pins = {name: why for name, why in state.pins.items() if name != action.checkpoint}
    return _marked(replace(state, pins=pins), "unpin", action.checkpoint, decision, time_s)


def _marked(
    state: RunState, action: str, checkpoint: str, decision: d.Decision, time_s: float
) -> RunState:
    asked = asked_for(state, action, checkpoint)
    topic = about_checkpoint(checkpoint)
    return touched_as_asked(state, topic, asked, decision.reason, time_s)


def _with_checkpoint(state: RunState, name: str, **fields: Any) -> RunState:
    known = state.checkpoints.get(name)
    if known is None:
        return state
    return replace(state, checkpoints={**state.checkpoints, name: replace(known, **fields)})
