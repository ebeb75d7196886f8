"""Which detectors there are, and what a request to switch one may ask."""

from __future__ import annotations

from ...health.nodes.evidence import DETECTOR as CLUSTER
from ...health.nodes.node_judge import KERNEL
from ...health.nodes.nvml_judge import DETECTOR as NVML
from ...health.nodes.preflight_judge import DETECTOR as PREFLIGHT
from ...health.nodes.straggler import DETECTOR as STRAGGLER
from ...health.numerics.panel import Panel
from ...logbook.state import RunState
from ..spec import RunSpec

MODES = ("act", "shadow", "off")
FAILURE_TEXT = "failure-text"
NODE_DETECTORS = (STRAGGLER, NVML, KERNEL, PREFLIGHT, FAILURE_TEXT, CLUSTER)
"""Detectors outside the panel: their findings are marked or dropped where they are journaled."""
NUMERIC_DETECTORS = tuple(Panel().detectors)


def switch_of(target: str) -> tuple[str, str]:
    """Return (detector, mode) from "creep=shadow"."""
    detector, _, mode = target.partition("=")
    return detector, mode


def refuse_switch(target: str) -> str:
    """Return why a switch cannot be made, "" when it can."""
    detector, mode = switch_of(target)
    known = (*NUMERIC_DETECTORS, *NODE_DETECTORS)
    if detector not in known:
        return f"there is no detector {detector!r}; known: {', '.join(known)}"
    if mode not in MODES:
        return f"mode {mode!r} is none of {', '.join(MODES)}"
    return ""


def modes_now(state: RunState, spec: RunSpec) -> dict[str, str]:
    """Return the mode of every detector: what the spec says, changed by what people asked."""
    modes: dict[str, str] = dict(Panel(spec.detectors).detectors)
    modes |= {name: spec.node_detectors.mode_of(name) for name in NODE_DETECTORS}
    return {**modes, **state.detectors}


def node_mode(state: RunState, spec: RunSpec, detector: str) -> str:
    """Return the mode of one node detector: as people switched it, else as the spec says."""
    return state.detectors.get(detector) or spec.node_detectors.mode_of(detector)
