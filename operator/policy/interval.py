"""How often to save: the interval that loses least time to the saves and failures of this run.

With failures at rate 1/M and a save that holds the loop up for d, the exact optimum is
M (1 + W0(-exp(-d/M - 1))) (checkpoints/interval.py). d is the median of the saves made at the
interval in force; M is the time trained over the setbacks seen, the prior of the spec counting as
one more of each. Around the optimum the loss is flat: a choice 25 % off costs a fortieth more of
what saves and failures cost anyway, so a smaller change is not worth an order to every rank.
"""

from __future__ import annotations

import math
import statistics

import msgspec

from ...checkpoints.interval import optimal_interval_s
from ...logbook.decisions import Decision, SendCommand
from ...logbook.fold_interventions import OWN
from ...logbook.state import Intervention, RunState, SaveCost
from ...logbook.wire import Command
from ..spec import RunSpec
from ..spec_checkpoints import IntervalSpec
from .context import Pairs, is_training, make_decision, next_decision_id

KIND = "save-interval"
MIN_SAVES = 3
"""Saves at one interval before their cost is believed."""
HYSTERESIS = 1.25
HOUR_S = 3600.0


class IntervalChoice(msgspec.Struct, frozen=True):
    """An interval, why it, and the figures it follows from."""

    steps: int
    reason: str
    evidence: Pairs


def choose_interval(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Order another interval when the one in force is clearly not the best any more."""
    limits = spec.checkpoints.interval
    if not limits.is_chosen or not is_training(state):
        return []
    own = [
        known
        for known in state.interventions.values()
        if known.request.action == KIND and known.request.by == OWN
    ]
    # A trainer that has refused the order once would refuse it for ever.
    if any(known.stage == "sent" or (known.stage == "failed" and known.acks) for known in own):
        return []
    current = state.hyper.save_interval_steps
    choice = plan_interval(state, limits, _telling_saves(state, own))
    if choice is None or not _is_worth_it(choice.steps, current, limits):
        return []
    command = Command(state.next_command, KIND, float(choice.steps), next_decision_id(state))
    before = f"{current} steps" if current is not None else "the trainer's own"
    evidence = (*choice.evidence, ("interval before", before))
    return [make_decision(state, SendCommand(command), choice.reason, evidence=evidence)]


def plan_interval(
    state: RunState, limits: IntervalSpec, saves: tuple[SaveCost, ...]
) -> IntervalChoice | None:
    """Return the best interval within limits; None while too few saves were seen to know it.

    saves: what saves cost that were made at the interval in force, or lately.
    """
    assert limits.min_steps is not None
    assert limits.max_steps is not None
    bounds = ("bounds", f"{limits.min_steps} to {limits.max_steps} steps")
    step_s = state.step_median.value
    if len(saves) < MIN_SAVES or not step_s:
        current = state.hyper.save_interval_steps
        if current is not None and limits.min_steps <= current <= limits.max_steps:
            return None
        reason = "the cost of a save is not known yet; frequent saves find it out"
        return IntervalChoice(limits.min_steps, reason, (bounds, ("saves seen", str(len(saves)))))
    stall_s = statistics.median(save.blocked_s for save in saves)
    write_s = statistics.median(save.save_s for save in saves)
    mtbf_s = observed_mtbf_s(state, step_s, limits.prior_mtbf_hours)
    optimum_s = optimal_interval_s(stall_s, mtbf_s)
    # One save at a time: the next would wait for the last.
    possible = max(round(optimum_s / step_s), math.ceil(write_s / step_s), 1)
    steps = min(max(possible, limits.min_steps), limits.max_steps)
    hit = "none"
    if steps != possible:
        hit = "min_steps" if steps > possible else "max_steps"
    evidence = (
        ("loop held up by a save", f"{stall_s:.3g} s, median of {len(saves)}"),
        ("save, until the commit", f"{write_s:.3g} s"),
        ("setbacks seen", str(state.num_setbacks)),
        ("time trained", f"{state.steps_total * step_s:.0f} s"),
        ("mean time between failures", f"{mtbf_s:.0f} s, {_prior_text(limits)}"),
        ("median step", f"{step_s:.3g} s"),
        ("exact optimum", f"{optimum_s:.4g} s, {optimum_s / step_s:.1f} steps"),
        bounds,
        ("bound hit", hit),
    )
    reason = f"to save every {steps} steps loses least time to saves and failures"
    return IntervalChoice(steps, reason, evidence)


def observed_mtbf_s(state: RunState, step_s: float, prior_hours: float) -> float:
    """Return the mean time between failures, in seconds of training; the prior is one of them."""
    trained_s = state.steps_total * step_s
    return (trained_s + prior_hours * HOUR_S) / (state.num_setbacks + 1)


def _prior_text(limits: IntervalSpec) -> str:
    return f"with one failure in {limits.prior_mtbf_hours:g} h assumed before"


def _telling_saves(state: RunState, own: list[Intervention]) -> tuple[SaveCost, ...]:
    """The saves at the interval in force; while those are too few, the ones before them as well.

    An interval far too long for the failures of the run must not have to wait for saves that
    hardly ever come.
    """
    since = max((known.at_step or 0 for known in own), default=0)
    saves = tuple(save for save in state.recent_saves if save.step >= since)
    return saves if len(saves) >= MIN_SAVES else state.recent_saves


def _is_worth_it(steps: int, current: int | None, limits: IntervalSpec) -> bool:
    assert limits.min_steps is not None
    assert limits.max_steps is not None
    if current is None or not limits.min_steps <= current <= limits.max_steps:
        return steps != current
    if steps == current:
        return False
    return max(steps, current) >= HYSTERESIS * min(steps, current)
