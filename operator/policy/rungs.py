"""The rungs of the LR ladder that a run stands on, and what a person's own rate makes of them.

A rollback steps down a rung; a long healthy stretch climbs one back. Where a person sets the rate
afterwards, for good, that rate is what the run is to have: nothing is left to climb back to, and
the ladder only counts what comes later.
"""

from __future__ import annotations

from ...logbook.events import InterventionRequested
from ...logbook.fold_interventions import OWN
from ...logbook.state import Intervention, RunState
from .context import Pairs, is_for_a_while


def own_climbs(state: RunState) -> list[Intervention]:
    """Return the climbs under way or made."""
    return [
        known
        for known in state.interventions.values()
        if known.request.by == OWN
        and known.request.action == "lr-factor"
        and known.stage in ("sent", "applied")
    ]


def rungs_down(state: RunState) -> list[float]:
    """Return the factors that are still to be climbed back, the last one first to go.

    Every climb undoes the last rung before it; one that a rollback took back undoes none.
    """
    since_s = _set_by_person_s(state)
    moves = [(past.time_s, past.lr_factor) for past in state.rollbacks if past.lr_factor < 1.0]
    moves += [(known.requested_s, 1.0) for known in own_climbs(state)]
    down: list[float] = []
    for time_s, factor in sorted(moves):
        if time_s < since_s:
            continue
        if factor < 1.0:
            down.append(factor)
        elif down:
            down.pop()
    return down


def is_held(state: RunState) -> bool:
    """Whether a person's rate is in force for a while, or on its way: no climb meanwhile."""
    return any(
        known.request.action in ("lr", "lr-factor")
        and known.request.by != OWN
        and (known.stage == "sent" or is_for_a_while(known))
        for known in state.interventions.values()
    )


def given_up(state: RunState, request: InterventionRequested) -> Pairs:
    """Return what a person's rate gives up of the ladder, as evidence; () where nothing."""
    is_rate = request.action in ("lr", "lr-factor") and request.for_steps is None
    down = rungs_down(state) if is_rate else []
    if not down:
        return ()
    factors = ", ".join(f"x{factor:g}" for factor in down)
    return (("rungs no longer climbed back", factors),)


def _set_by_person_s(state: RunState) -> float:
    """When a person last set the rate for good, 0.0 where nobody has."""
    times_s = [
        known.applied_s or known.requested_s
        for known in state.interventions.values()
        if known.request.action in ("lr", "lr-factor")
        and known.request.by != OWN
        and known.request.for_steps is None
        and known.stage == "applied"
    ]
    return max(times_s, default=0.0)
