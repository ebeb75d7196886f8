"""The budgets that end every storm of failures in a paused run instead of a loop."""

from __future__ import annotations

from ...logbook.state import RunState
from ..spec import RunSpec

HOUR_S = 3600.0
MAX_SAME_FAILURE = 3


def spent_budget(state: RunState, spec: RunSpec, now_s: float) -> tuple[str, str] | None:
    """Return (code, reason) of the first spent budget, None while another restart is allowed."""
    limits = spec.restart
    recent = [t for t in state.restarts_s if now_s - t < HOUR_S]
    if len(recent) >= limits.max_restarts_per_hour:
        allowed = f"{limits.max_restarts_per_hour} (restart.max_restarts_per_hour)"
        return (
            "restart-budget",
            f"{len(recent)} restarts within an hour spend the budget of {allowed}",
        )
    running = state.attempt
    barren = state.barren_attempts
    if running is not None and running.num_steps == 0:
        barren += 1
    if barren >= limits.max_barren_attempts:
        allowed = f"{limits.max_barren_attempts} (restart.max_barren_attempts)"
        return (
            "no-progress",
            f"{barren} attempts without a completed step spend the budget of {allowed}",
        )
    return _same_failure(state)


def _same_failure(state: RunState) -> tuple[str, str] | None:
    # The same failure at one and the same step is not bad luck, and no restart cures it.
    answered = [i for i in state.incidents.values() if not i.is_watched]
    last = answered[-MAX_SAME_FAILURE:]
    kinds = {(incident.draft.fault, incident.draft.step) for incident in last}
    if len(last) < MAX_SAME_FAILURE or len(kinds) > 1 or last[-1].draft.is_numeric:
        return None
    if any(incident.opened_s < state.resumed_s for incident in last):
        return None
    fault, step = last[-1].draft.fault, last[-1].draft.step
    if state.step != step:
        return None
    return (
        "repeated-failure",
        f"{fault} came {MAX_SAME_FAILURE} times in a row at step {step}, and once more",
    )
