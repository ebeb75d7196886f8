"""The checkpoints of the state, as the rules in checkpoints/ see them."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from ...checkpoints.last_good import Candidate, Choice, Rules, choose_last_good, newest_usable
from ...logbook.state import TREND_STEPS, RunState
from ...logbook.trend import Trend
from ..spec import RunSpec

MAX_CANDIDATES = 8


class Resume(msgspec.Struct, frozen=True):
    """Where to resume: candidates best first, the step of the first, why no newer one."""

    candidates: tuple[str, ...]
    resume_step: int
    passed_over: tuple[tuple[str, str], ...]


def resume_point(state: RunState, spec: RunSpec) -> Resume:
    """Return the newest whole states, for faults that did not touch the numbers.

    While numeric trouble has not been recovered from (the run paused over it, say), the newest
    state is not to be trusted whatever stopped the attempt: last_good is returned then.
    """
    for name in reversed(state.open_incidents):
        known = state.incidents[name]
        is_open = known.recovered_s is None and not known.is_watched
        if known.draft.is_numeric and is_open:
            return _as_resume(state, last_good_checkpoint(state, spec, known.draft.onset_step))
    return _as_resume(state, newest_usable(_candidates(state)))


def last_good_checkpoint(
    state: RunState, spec: RunSpec, onset_step: int, before_step: int | None = None
) -> Choice:
    """Return the choice of OPT's two-part rule for trouble that began at onset_step."""
    rules = Rules(
        margin_steps=spec.numeric.rollback_margin_steps,
        min_scale=spec.numeric.min_loss_scale,
    )
    candidates = _candidates(state)
    if onset_step < state.step:
        candidates = [_before_onset(state, c, onset_step) for c in candidates]
    return choose_last_good(candidates, onset_step, rules, before_step=before_step)


def _candidates(state: RunState) -> list[Candidate]:
    return [
        Candidate(
            id=c.checkpoint,
            step=c.step,
            attempt=c.attempt,
            verified=c.verified,
            quarantined=c.quarantined,
            abandoned=c.abandoned,
            tags=c.tags,
            activation=c.activation_trend,
            grad=c.grad_trend,
        )
        for c in state.checkpoints.values()
    ]


def _before_onset(state: RunState, candidate: Candidate, onset_step: int) -> Candidate:
    """The candidate with trends of the steps before the onset only.

    What followed the onset says that the run is sick, not that the checkpoint was: with it, every
    checkpoint of the last TREND_STEPS would look alike. Older ones keep the trend of their fold.
    """
    samples = state.samples
    if not samples or samples[0].step > candidate.step + 1:
        return candidate
    end = min(onset_step, candidate.step + TREND_STEPS + 1)
    activation, grad = Trend(), Trend()
    for sample in samples:
        if candidate.step < sample.step < end:
            activation = activation.add(sample.step, sample.activation_norm)
            grad = grad.add(sample.step, sample.grad_norm)
    return replace(candidate, activation=activation, grad=grad)


def _as_resume(state: RunState, choice: Choice) -> Resume:
    first = choice.checkpoint
    step = state.checkpoints[first].step if first is not None else 0
    return Resume(choice.ranked[:MAX_CANDIDATES], step, choice.passed_over)
