"""The way back up: a lowered learning rate returns to its schedule, one rung at a time."""

from __future__ import annotations

from ...logbook.decisions import Decision, SendCommand
from ...logbook.state import RunState
from ...logbook.wire import Command
from ..spec import RunSpec
from .context import is_training, make_decision, next_decision_id
from .rungs import is_held, own_climbs, rungs_down


def climb_back(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Raise the rate one rung toward its schedule after a long healthy stretch.

    A rate kept too low for too long costs quality too (OPT-66B's takeaway).
    """
    if not state.rollbacks or state.open_incidents or not is_training(state):
        return []
    climbs, down = own_climbs(state), rungs_down(state)
    if not down or is_held(state) or any(known.stage == "sent" for known in climbs):
        return []
    since = max([state.rollbacks[-1].onset_step, *(known.at_step or 0 for known in climbs)])
    healthy = state.step - since
    if healthy < spec.numeric.recover_after_steps:
        return []
    command = Command(state.next_command, "lr-factor", 1.0 / down[-1], next_decision_id(state))
    reason = f"{healthy} healthy steps since step {since}: one rung back up"
    return [make_decision(state, SendCommand(command), reason)]
