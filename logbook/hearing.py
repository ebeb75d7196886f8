"""When a run was heard of last, and for how long what was heard then holds. Pure.

A controller that turns is heard of in two ways: by the events that it records, and by its pulse
(pulse.py), because a run that waits for nodes or loads its state has nothing to record for minutes.
alive_s is the time of that pulse in all of these, 0.0 where there is none.
"""

from __future__ import annotations

from .clock import LONG_S
from .state import RunState

LEAST_S = 30.0
STEPS = 3.0
"""A healthy run is heard of with every step: so many of them may pass before silence means much."""


def patience_s(state: RunState) -> float:
    """Return how long a run at work may say nothing."""
    return max(LEAST_S, STEPS * (state.step_median.value or 0.0))


def holds_until_s(state: RunState, now_s: float, alive_s: float = 0.0) -> float:
    """Return until when a run is taken to go on as it was heard of last: now_s unless it is silent.

    A run that is paused or over has nothing to say.
    """
    if state.end is not None or state.paused or not state.time_s:
        return now_s
    return min(now_s, max(state.time_s, alive_s) + patience_s(state))


def silent_s(state: RunState, now_s: float, alive_s: float = 0.0) -> float:
    """Return for how long nothing was heard of a run at work, 0.0 while that is nothing unusual."""
    if holds_until_s(state, now_s, alive_s) >= now_s:
        return 0.0
    return now_s - max(state.time_s, alive_s)


def silence_text(state: RunState, now_s: float, alive_s: float = 0.0) -> str:
    """Return a sentence for a run that is silent, "" for any other.

    In whole units only: a text that changed with every look would be painted with every look.
    """
    quiet_s = silent_s(state, now_s, alive_s)
    if not quiet_s:
        return ""
    about = f"{int(quiet_s // 10 * 10)} s" if quiet_s < 120 else f"{int(quiet_s // 60)} min"
    if quiet_s >= 7200:
        about = f"{int(quiet_s // 3600)} h"
    if quiet_s >= LONG_S:
        about = f"{int(quiet_s // 86400)} d"
    return f"silent for {about}: is the controller away?"
