"""The way back up: a lowered learning rate returns to its schedule, one rung at a time."""

from __future__ import annotations

from ...logbook.decisions import Decision, SendCommand
from ...logbook.fold_decisions import OWN
from ...logbook.state import Intervention, RunState
from ...logbook.wire import Command
from ..spec import RunSpec
from .context import make_decision, next_decision_id
from .requests import is_training


def climb_back(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Raise the rate one rung toward its schedule after a long healthy stretch.

    A rate kept too low for too long costs quality too (OPT-66B's takeaway).
    """
    if not state.rollbacks or state.open_incidents or not is_training(state):
        return []
    climbs = [
        known
        for known in state.interventions.values()
        if known.request.by == OWN
        and known.request.action == "lr-factor"
        and known.stage in ("sent", "applied")
    ]
    down = _rungs_down(state, climbs)
    if not down or any(known.stage == "sent" for known in climbs):
        return []
    since = max([state.rollbacks[-1].onset_step, *(known.at_step or 0 for known in climbs)])
    healthy = state.step - since
    if healthy < spec.numeric.recover_after_steps:
        return []
    command = Command(state.next_command, "lr-factor", 1.0 / down[-1], next_decision_id(state))
    reason = f"{healthy} healthy steps since step {since}: one rung back up"
    return [make_decision(state, SendCommand(command), reason)]


def _rungs_down(state: RunState, climbs: list[Intervention]) -> list[float]:
    # Every climb undoes the last rung before it; one that a rollback took back undoes none.
    moves = [(past.time_s, past.lr_factor) for past in state.rollbacks if past.lr_factor < 1.0]
    moves += [(known.requested_s, 1.0) for known in climbs]
    down: list[float] = []
    for _, factor in sorted(moves):
        if factor < 1.0:
            down.append(factor)
        elif down:
            down.pop()
    return down
