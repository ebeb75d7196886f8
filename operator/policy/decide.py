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
from .interval import choose_interval
from .nodes import close_unused, evict_sick, quarantine_lemons
from .preflight import end_preflight, examine_idle
from .recovery import answer_failure, start
from .requests import answer_requests, complete_done
from .storage import prune_checkpoints, verify_checkpoints
from .stragglers import replace_straggler
from .suspects import note_load
from .upkeep import close_incidents, finish, note_findings

POLICY_VERSION = 10
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
    note_load,
    verify_checkpoints,
    prune_checkpoints,
    choose_interval,
    climb_back,
)
# What could not be loaded may be sound in another copy: who looks at a paused run should know.
_WHILE_PAUSED: tuple[_Item, ...] = (*_ALWAYS, verify_checkpoints)


def decide(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Return what to do next about this run, usually nothing.

    Units:   now_s in seconds since the epoch, on the journal's clock.
    Returns: decisions in the order in which they must be journaled and carried out.
    """
    if not state.run:
        return []
    items = _WHILE_ACTIVE
    if state.status.is_terminal:
        items = _ALWAYS
    elif state.paused:
        items = _WHILE_PAUSED
    for item in items:
        decisions = item(state, spec, now_s)
        if decisions:
            return decisions
    return []
