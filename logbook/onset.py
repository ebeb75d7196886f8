"""When trouble began, as far as the record tells: what its detection is measured from. Pure."""

from __future__ import annotations

from .decisions import IncidentDraft
from .state import RunState


def onset_s(state: RunState, draft: IncidentDraft) -> float | None:
    """Return when an incident that is opened now began, None where nothing tells.

    What shows in the numbers began with its onset step; what ended an attempt, with the last step
    before its first sign, or with the load where there was no step yet. Nothing begins after its
    first sign, whatever the clock of a worker says.
    """
    began_s: float | None = None
    if draft.is_numeric:
        began = (s.time_s for s in reversed(state.samples) if s.step <= draft.onset_step)
        began_s = next(began, None)
    elif (attempt := state.attempt) is not None and attempt.resumed_s is not None:
        made = (s.time_s for s in reversed(state.samples) if s.time_s <= draft.seen_s)
        began_s = next(made, None) if attempt.num_steps else attempt.resumed_s
    return min(began_s, draft.seen_s) if began_s is not None else None
