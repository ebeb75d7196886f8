"""The learning rate as a pure function of the step and of every change made to the run.

Steps count from 1: step s is the update after which s steps are completed.
"""

from __future__ import annotations

import math

from ..logbook.errors import ConfigError
from ..logbook.hyper import LrChange, holds_at
from .config import OptimizerConfig, ScheduleConfig


def lr_at(
    step: int,
    optimizer: OptimizerConfig,
    schedule: ScheduleConfig,
    lr_changes: tuple[LrChange, ...] = (),
) -> float:
    """Return the learning rate of a step: the schedule times every factor in force.

    A change scales the schedule that remains instead of setting a constant, so the rate goes on
    decaying under it, and changes made one after another multiply.
    Source: arXiv 2205.01068 section 2.2 for warm-up and decay, 2.5 for changes in mid-flight.
    """
    factor = math.prod(change.factor for change in lr_changes if holds_at(change, step))
    return optimizer.lr * _shape_at(step, schedule) * factor


def factor_for_lr(
    step: int,
    target_lr: float,
    optimizer: OptimizerConfig,
    schedule: ScheduleConfig,
    lr_changes: tuple[LrChange, ...] = (),
) -> float:
    """Return the factor that, added as a change from this step on, makes its rate the target.

    Raises: ConfigError[lr-out-of-range] when the target is negative or not finite, or when the
            schedule has already reached zero there, which no factor can raise.
    """
    if not (math.isfinite(target_lr) and target_lr >= 0.0):
        raise ConfigError(
            "lr-out-of-range",
            f"learning rate {target_lr} is not a finite number of at least 0.",
            remedy="Give a positive rate.",
        )
    current_lr = lr_at(step, optimizer, schedule, lr_changes)
    if current_lr == 0.0:
        raise ConfigError(
            "lr-out-of-range",
            f"the schedule is at 0 at step {step}, so no factor makes it {target_lr}.",
            remedy="Use a schedule with end_lr_frac above 0.",
        )
    return target_lr / current_lr


def _shape_at(step: int, schedule: ScheduleConfig) -> float:
    """Return the rate over its peak: linear warm-up, linear decay, then constant."""
    if step < schedule.warmup_steps:
        return step / schedule.warmup_steps
    span_steps = schedule.decay_steps - schedule.warmup_steps
    done_frac = min((step - schedule.warmup_steps) / span_steps, 1.0)
    return 1.0 - done_frac * (1.0 - schedule.end_lr_frac)
