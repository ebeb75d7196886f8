"""How steps change the state: progress, trends after a checkpoint, recovery."""

from __future__ import annotations

from msgspec.structs import replace

from . import events as ev
from .fold_checkpoints import followed_by, trained_on
from .fold_decisions import fold_incident
from .fold_preflight import tried_by_training
from .state import (
    RECENT_STEPS,
    RECENT_VALIDATIONS,
    TREND_STEPS,
    AttemptState,
    Incident,
    RunState,
)
from .wire import StepSample


def step_done(state: RunState, e: ev.StepDone, time_s: float) -> RunState:
    """A step was completed: the hot path of every fold."""
    running = state.attempt
    sample = e.sample
    if running is None or running.plan.attempt != e.attempt or sample.step <= state.step:
        return state
    if running.resumed_s is None:
        # Nobody has said from where it goes on, so the step has no place in the lineage.
        return state
    is_first = running.first_step_s is None
    running = replace(
        running,
        num_steps=running.num_steps + 1,
        first_step_s=time_s if is_first else running.first_step_s,
        heard_s=time_s,
    )
    if running.hangs:
        running = _without_refuted_hangs(running, sample.step)
    recent, before = _remembered(state, sample)
    state = replace(
        state,
        attempt=running,
        step=sample.step,
        last=sample,
        recent=recent,
        recent_before=before,
        # The first step of an attempt pays for lazy initialisation and is not a healthy step time.
        step_median=state.step_median if is_first else state.step_median.add(sample.step_s),
        steps_total=state.steps_total + 1,
        barren_attempts=0,
        validating=None,
    )
    if is_first:
        state = tried_by_training(state, running)
    if state.trending:
        state = _with_trends(state)
    if is_first:
        state = trained_on(state, running)
    return _with_recovery(state, time_s) if state.open_incidents else state


def steps_recalled(state: RunState, e: ev.StepsRecalled, time_s: float) -> RunState:
    """Steps are told of that nobody had heard of, though the run goes on from behind them."""
    running = state.running(e.attempt)
    if running is None or running.resumed_s is None:
        return state
    for sample in e.samples:
        if (state.last.step if state.last is not None else 0) < sample.step <= state.step:
            recent, before = _remembered(state, sample)
            state = replace(
                state,
                last=sample,
                recent=recent,
                recent_before=before,
                steps_total=state.steps_total + 1,
            )
            if state.trending:
                state = _with_trends(state)
    return state


def validation_under_way(state: RunState, e: ev.ValidationUnderWay, time_s: float) -> RunState:
    """The ranks are heard of between two steps, and so are not silent."""
    running = state.running(e.attempt)
    if running is None or running.resumed_s is None or e.step != state.step:
        return state
    return replace(state, attempt=replace(running, heard_s=time_s), validating=e)


def validation_done(state: RunState, e: ev.ValidationDone, time_s: float) -> RunState:
    """The weights of a step were measured on held-out text."""
    running = state.running(e.attempt)
    if running is None or running.resumed_s is None:
        return state
    if not state.validated_step < e.step <= state.step:
        return state
    return replace(
        state,
        attempt=replace(running, heard_s=time_s),
        validations=(*state.validations, e)[-RECENT_VALIDATIONS:],
        validating=None,
    )


Samples = tuple[StepSample, ...]


def _remembered(state: RunState, sample: StepSample) -> tuple[Samples, Samples]:
    recent = (*state.recent, sample)
    return (
        ((sample,), state.recent) if len(recent) > RECENT_STEPS else (recent, state.recent_before)
    )


def _without_refuted_hangs(running: AttemptState, step: int) -> AttemptState:
    hangs = tuple(hang for hang in running.hangs if not is_refuted(hang, step))
    others = running.exits or running.lost_nodes or running.start_failures or running.alarm
    is_well = not hangs and not others
    return replace(running, hangs=hangs, signal_s=None if is_well else running.signal_s)


def is_refuted(hang: ev.HangSuspected, step: int) -> bool:
    """Whether a completed step proves that the ranks of a suspected hang have moved since.

    All ranks take part in every step, so a step two ahead of a rank needs that it moved.
    """
    return step > max((row.step for row in hang.rows), default=0) + 1


def _with_trends(state: RunState) -> RunState:
    sample = state.last
    assert sample is not None
    checkpoints, trending = dict(state.checkpoints), []
    for name in state.trending:
        known = checkpoints[name]
        checkpoints[name] = followed_by(known, sample)
        if sample.step < known.step + TREND_STEPS:
            trending.append(name)
    return replace(state, checkpoints=checkpoints, trending=tuple(trending))


def _with_recovery(state: RunState, time_s: float) -> RunState:
    sample, running = state.last, state.attempt
    assert sample is not None
    assert running is not None

    source = state.checkpoints.get(running.resumed_from)

    def recovered(incident: Incident) -> Incident:
        if incident.is_watched:
            # The attempt went on: its next step is all there is to wait for, unless the trouble is
            # in the numbers, which a step alone does not clear.
            goes_on = incident.attempt_before == running.number and not incident.draft.is_numeric
            return replace(incident, recovered_s=time_s) if goes_on else incident
        if incident.attempt_after != running.number:
            return incident
        return replace(
            incident,
            recovered_s=time_s,
            checkpoint=running.resumed_from,
            checkpoint_tags=source.tags if source is not None else None,
            tier=running.tier,
            differs=running.differs,
            lr_after=sample.lr,
            loss_after=sample.loss,
            steps_lost=max(0, incident.step_before - running.resumed_step),
        )

    for name in state.open_incidents:
        if state.incidents[name].recovered_s is None:
            state = fold_incident(state, name, recovered)
    return state
