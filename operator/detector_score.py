"""How often each detector in shadow mode has been right, read off a run's journal."""

from __future__ import annotations

from collections.abc import Iterable

from ..health.numerics.shadow import ShadowScore, Tally
from ..logbook import events as ev
from ..logbook.decisions import StartAttempt
from ..logbook.record import Record


def score_shadows(records: Iterable[Record[ev.Event]], horizon_points: int) -> dict[str, Tally]:
    """Return the tally of every detector that has called for something in shadow mode.

    Such a call is confirmed when a detector that acts, or a rollback, agrees within the horizon,
    and refuted when so many steps pass without either.
    """
    score, count = ShadowScore(horizon_points), 0
    names: dict[str, None] = {}
    for record in records:
        event = record.event
        if isinstance(event, ev.StepDone):
            count += 1
        elif isinstance(event, ev.FindingSeen):
            score.expire(count)
            score.note(count, [event.finding])
            if event.finding.shadow:
                names[event.finding.detector] = None
        elif isinstance(event, ev.DecisionMade) and _is_rollback(event):
            score.confirm()
    score.expire(count)
    return {name: score.tally(name) for name in names}


def _is_rollback(event: ev.DecisionMade) -> bool:
    action = event.decision.action
    return isinstance(action, StartAttempt) and action.rollback_onset is not None
