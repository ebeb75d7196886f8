"""What the policy's files share: ids that follow from the state alone, and two questions."""

from __future__ import annotations

from ...logbook.decisions import Action, Decision, IncidentDraft
from ...logbook.events import InterventionRequested
from ...logbook.state import Intervention, RunState

Pairs = tuple[tuple[str, str], ...]
About = IncidentDraft | str | None
"""The incident that a decision belongs to: a draft opens it, a name means one that is there."""


def make_decision(
    state: RunState,
    action: Action,
    reason: str,
    *,
    evidence: Pairs = (),
    alternatives: Pairs = (),
    about: About = None,
    reverts: tuple[str, ...] = (),
) -> Decision:
    """Return a decision with the next id of this state."""
    opens = about if isinstance(about, IncidentDraft) else None
    return Decision(
        id=next_decision_id(state),
        action=action,
        reason=reason,
        evidence=evidence,
        alternatives=alternatives,
        incident=about.id if isinstance(about, IncidentDraft) else about,
        opens=opens,
        reverts=reverts,
    )


def next_decision_id(state: RunState) -> str:
    """Return the id, "attempt/seq", of the next decision to be made."""
    return f"{state.num_attempts}/{state.num_decisions + 1}"


def next_incident_id(state: RunState) -> str:
    """Return the id of the next incident to be opened, inc-0001 onward."""
    return f"inc-{len(state.incidents) + 1:04d}"


def said_by(request: InterventionRequested) -> str:
    """Return who asked for something and why, as the reason of what is decided about it."""
    return f"{request.by} asked: {request.reason or 'no reason given'}"


def is_training(state: RunState) -> bool:
    """Whether the current attempt completes steps and nothing is known to be wrong with it."""
    attempt = state.attempt
    return (
        attempt is not None
        and attempt.first_step_s is not None
        and attempt.signal_s is None
        and not attempt.finished
    )


def is_for_a_while(known: Intervention) -> bool:
    """Whether a change is in force that comes to an end by itself."""
    return known.stage == "applied" and known.until_step is not None
