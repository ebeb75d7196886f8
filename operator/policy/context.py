"""Small makers shared by the policy's files: ids that follow from the state alone."""

from __future__ import annotations

from ...logbook.decisions import Action, Decision, IncidentDraft
from ...logbook.state import RunState

Pairs = tuple[tuple[str, str], ...]


def make_decision(
    state: RunState,
    action: Action,
    reason: str,
    *,
    evidence: Pairs = (),
    alternatives: Pairs = (),
    incident: str | None = None,
    opens: IncidentDraft | None = None,
    reverts: tuple[str, ...] = (),
) -> Decision:
    """Return a decision with the next id, "attempt/seq", of this state."""
    return Decision(
        id=f"{state.num_attempts}/{state.num_decisions + 1}",
        action=action,
        reason=reason,
        evidence=evidence,
        alternatives=alternatives,
        incident=opens.id if opens is not None else incident,
        opens=opens,
        reverts=reverts,
    )


def next_incident_id(state: RunState) -> str:
    """Return the id of the next incident to be opened, inc-0001 onward."""
    return f"inc-{len(state.incidents) + 1:04d}"


def next_command(state: RunState) -> int:
    """Return the first command that a new attempt's workers may have to take.

    Everything before it is folded into hyper and travels in the start command.
    """
    waiting = [
        i.seq
        for i in state.interventions.values()
        if i.stage == "sent" and i.seq is not None and not i.acks
    ]
    return min(waiting, default=state.next_command)
