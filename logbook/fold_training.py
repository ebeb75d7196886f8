"""How steps and checkpoints change the state: progress, trends after a checkpoint, recovery."""

from __future__ import annotations

from msgspec.structs import replace

from . import events as ev
from .decisions import PruneCheckpoints, VerifyCheckpoint
from .fold_decisions import fold_incident
from .fold_preflight import tried_by_training
from .state import RECENT_STEPS, TREND_STEPS, AttemptState, CheckpointState, Incident, RunState
from .trend import Trend
from .wire import StepSample

MAX_PRUNED = 256


def step_done(state: RunState, e: ev.StepDone, time_s: float) -> RunState:
    """A step was completed: the hot path of every fold."""
    running = state.attempt
    sample = e.sample
    if running is None or running.plan.attempt != e.attempt or sample.step <= state.step:
        return state
    if running.resumed_s is None:
        # Nobody has said from where it goes on, so the step has no place in the lineage.
        return state
    recent, before = (*state.recent, sample), state.recent_before
    if len(recent) > RECENT_STEPS:
        recent, before = (sample,), state.recent
    is_first = running.first_step_s is None
    running = replace(
        running,
        num_steps=running.num_steps + 1,
        first_step_s=time_s if is_first else running.first_step_s,
        heard_s=time_s,
    )
    if running.hangs:
        running = _without_refuted_hangs(running, sample.step)
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
    )
    if is_first:
        state = tried_by_training(state, running)
    if state.trending:
        state = _with_trends(state)
    return _with_recovery(state, time_s) if state.open_incidents else state


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
        checkpoints[name] = _followed_by(known, sample)
        if sample.step < known.step + TREND_STEPS:
            trending.append(name)
    return replace(state, checkpoints=checkpoints, trending=tuple(trending))


def _followed_by(known: CheckpointState, sample: StepSample) -> CheckpointState:
    return replace(
        known,
        activation_trend=known.activation_trend.add(sample.step, sample.activation_norm),
        grad_trend=known.grad_trend.add(sample.step, sample.grad_norm),
    )


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
            lr_after=sample.lr,
            loss_after=sample.loss,
            steps_lost=max(0, incident.step_before - running.resumed_step),
        )

    for name in state.open_incidents:
        if state.incidents[name].recovered_s is None:
            state = fold_incident(state, name, recovered)
    return state


# --- checkpoints ---------------------------------------------------------------------------------


def checkpoint_committed(state: RunState, e: ev.CheckpointCommitted, time_s: float) -> RunState:
    """A checkpoint exists; remember it with the health of its step."""
    if e.checkpoint in state.checkpoints or e.checkpoint in state.pruned:
        return state
    # A commit that an older attempt finished after the fence is sound bytes, but it may lie on a
    # lineage that has been left: then some later attempt resumed from before it.
    abandoned = any(later > e.attempt and came < e.step for later, came in state.lineage)
    known = CheckpointState(
        checkpoint=e.checkpoint,
        step=e.step,
        attempt=e.attempt,
        bytes=e.bytes,
        time_s=time_s,
        save_s=e.save_s,
        blocked_s=e.blocked_s,
        tags=e.tags,
        abandoned=abandoned,
    )
    if abandoned:
        return replace(state, checkpoints={**state.checkpoints, e.checkpoint: known})
    # Steps trained between the staging and the commit belong to the trend as well.
    known = with_trend(known, state.samples)
    grows = state.step < e.step + TREND_STEPS
    return replace(
        state,
        checkpoints={**state.checkpoints, e.checkpoint: known},
        trending=(*state.trending, e.checkpoint) if grows else state.trending,
    )


def with_trend(known: CheckpointState, samples: tuple[StepSample, ...]) -> CheckpointState:
    """Return the checkpoint with its trends taken anew from the steps that followed it."""
    known = replace(known, activation_trend=Trend(), grad_trend=Trend())
    for sample in samples:
        if known.step < sample.step <= known.step + TREND_STEPS:
            known = _followed_by(known, sample)
    return known


def checkpoint_failed(state: RunState, e: ev.CheckpointFailed, time_s: float) -> RunState:
    """A save failed; training goes on."""
    return replace(state, failed_saves=state.failed_saves + 1)


def checkpoint_verified(state: RunState, e: ev.CheckpointVerified, time_s: float) -> RunState:
    """A checkpoint was read back: it is sound, or it is not."""
    # Long work is done when its result is in, not when it was handed over.
    action = VerifyCheckpoint(e.checkpoint)
    state = replace(
        state, pending={name: d for name, d in state.pending.items() if d.action != action}
    )
    known = state.checkpoints.get(e.checkpoint)
    if known is None or known.verified is False:
        # What was found unsound once stays so: a reading begun before may still come in.
        return state
    known = replace(known, verified=not e.error, error=e.error)
    return replace(state, checkpoints={**state.checkpoints, e.checkpoint: known})


def checkpoints_pruned(state: RunState, e: ev.CheckpointsPruned, time_s: float) -> RunState:
    """Retention deleted checkpoints."""
    gone = frozenset(e.checkpoints)
    pending = {
        name: d
        for name, d in state.pending.items()
        if not isinstance(d.action, PruneCheckpoints) or not gone.issuperset(d.action.checkpoints)
    }
    return replace(
        state,
        checkpoints={n: c for n, c in state.checkpoints.items() if n not in gone},
        trending=tuple(n for n in state.trending if n not in gone),
        pending=pending,
        pruned=(*(n for n in state.pruned if n not in gone), *e.checkpoints)[-MAX_PRUNED:],
    )
