"""decide: state, spec and the time in, decisions out. Pure; reads nothing else.

The checklist is tried in order and the first item that has something to say ends the call. The
caller journals and folds what was decided, acts, and calls again until nothing is left to decide,
so every item sees the consequences of the one before.
"""

from __future__ import annotations

from collections.abc import Callable

from ...logbook.decisions import Decision
from ...logbook.state import RunState
from ..spec import RunSpec
from .climb import climb_back
from .nodes import close_unused, evict_sick, quarantine_lemons
from .preflight import end_preflight, examine_idle
from .recovery import answer_failure, start
from .requests import answer_requests, complete_done
from .storage import prune_checkpoints, verify_checkpoints
from .stragglers import replace_straggler
from .upkeep import close_incidents, finish, note_findings

POLICY_VERSION = 3
"""Raised with every change of behaviour and recorded when a run is submitted."""

_Item = Callable[[RunState, RunSpec, float], list[Decision]]

_ALWAYS: tuple[_Item, ...] = (complete_done, answer_requests, close_incidents, end_preflight)
_WHILE_ACTIVE: tuple[_Item, ...] = (
    finish,
    evict_sick,
    quarantine_lemons,
    answer_failure,
    start,
    replace_straggler,
    close_unused,
    *_ALWAYS,
    examine_idle,
    note_findings,
    verify_checkpoints,
    prune_checkpoints,
    climb_back,
)


def decide(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Return what to do next about this run, usually nothing.

    Units:   now_s in seconds since the epoch, on the journal's clock.
    Returns: decisions in the order in which they must be journaled and carried out.
    """
    if not state.run:
        return []
    resting = state.status.is_terminal or bool(state.paused)
    for item in _ALWAYS if resting else _WHILE_ACTIVE:
        decisions = item(state, spec, now_s)
        if decisions:
            return decisions
    return []
