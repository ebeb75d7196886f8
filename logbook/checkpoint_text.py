"""A checkpoint in a person's words: how healthy it was when taken, and what has come of it."""

from __future__ import annotations

import math

from .state import CheckpointState, FindingMark
from .trend import Trend
from .words import steps_text


def outcome_text(known: CheckpointState, step: int) -> str:
    """Return what the run has made of a checkpoint by step, the newest completed one.

    It changes as training goes on: healthy for ever more steps, until something is found.
    """
    parts: list[str] = []
    if known.quarantined:
        parts.append("quarantined")
    if known.abandoned:
        parts.append("rolled back past")
    if known.after is not None:
        parts.append(f"{known.after.kind} {steps_text(known.after.steps)} later")
    elif not known.abandoned:
        parts.append(f"healthy for {steps_text(max(step - known.step, 0))}")
    if known.num_resumed:
        parts.append(f"resumed from {times_text(known.num_resumed)}")
    if known.num_failed:
        parts.append(f"restart failed {times_text(known.num_failed)}")
    if known.num_passed_over:
        parts.append(f"passed over {times_text(known.num_passed_over)}")
    return ", ".join(parts)


def health_text(known: CheckpointState) -> str:
    """Return the health of the run at a checkpoint, and which way its norms went afterwards."""
    tags = known.tags
    if tags is None:
        return "not recorded"
    parts = [f"scale {tags.loss_scale:g}"] if tags.loss_scale is not None else []
    parts.append(f"activation {_direction(known.activation_trend)}")
    parts.append(f"grad {_direction(known.grad_trend)}")
    if known.before is not None:
        parts.append(mark_text(known.before, "before"))
    return ", ".join(parts)


def verified_text(verified: bool | None) -> str:
    """Return in a word whether the bytes of a checkpoint were read back."""
    return {None: "not yet", True: "yes", False: "UNSOUND"}[verified]


def trend_text(trend: Trend) -> str:
    """Return which way a norm went: -0.12 %/step."""
    slope = trend.relative_slope
    if slope is None:
        return "?"
    return f"{100.0 * slope:+.2g} %/step" if math.isfinite(slope) else "not finite"


def _direction(trend: Trend) -> str:
    slope = trend.relative_slope
    if slope is None:
        return "unknown"
    if not math.isfinite(slope):
        return "not finite"
    return "rising" if slope > 0.0 else "falling" if slope < 0.0 else "flat"


def mark_text(mark: FindingMark, side: str) -> str:
    """Return how far trouble was: creep 12 steps before."""
    return f"{mark.kind} {steps_text(mark.steps)} {side}"


def times_text(count: int) -> str:
    return "once" if count == 1 else "twice" if count == 2 else f"{count} times"
