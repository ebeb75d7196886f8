"""The checkpoints of the state, as the rules in checkpoints/ see them."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from ...checkpoints.last_good import Candidate, Choice, Rules, choose_last_good, newest_usable
from ...logbook.decisions import PruneCheckpoints, StartAttempt
from ...logbook.fold_checkpoints import with_trend
from ...logbook.state import TREND_STEPS, Incident, RunState
from ...logbook.words import steps_text
from ..spec import RunSpec

MAX_CANDIDATES = 8
MAX_BARREN_FROM_MEMORY = 2


class Resume(msgspec.Struct, frozen=True):
    """Where to resume: candidates best first, the step of the first, why no newer one."""

    candidates: tuple[str, ...]
    resume_step: int
    passed_over: tuple[tuple[str, str], ...] = ()


def resume_point(state: RunState, spec: RunSpec) -> Resume:
    """Return the newest whole states, for faults that did not touch the numbers.

    A rollback that has not trained yet is repeated as it was planned: the newest state is not to
    be trusted, whatever stopped the attempt.
    """
    for name in reversed(state.open_incidents):
        known = state.incidents[name]
        if _must_go_back(known):
            return _planned(state, known) or _last_good(state, spec, known)
    limit_step = _asked_back_to(state)
    if limit_step is not None:
        return _as_resume(state, usable_until(state, limit_step))
    return _as_resume(state, newest_usable(_candidates(state)))


def memory_since(state: RunState, spec: RunSpec) -> int | None:
    """Return since which attempt states kept in memory are good to resume from; None: none is.

    After two attempts in a row that completed no step the state itself is suspect, and a copy on
    disk, which is older, is the better bet.
    """
    attempt = state.attempt
    barren = state.barren_attempts + (attempt is not None and attempt.num_steps == 0)
    if spec.checkpoints.memory.mode == "off" or barren >= MAX_BARREN_FROM_MEMORY:
        return None
    if any(_must_go_back(state.incidents[name]) for name in state.open_incidents):
        return None
    if _asked_back_to(state) is not None:
        return None
    return state.memory_since


def _must_go_back(known: Incident) -> bool:
    return known.draft.is_numeric and known.recovered_s is None and not known.is_watched


def last_good_checkpoint(
    state: RunState, spec: RunSpec, onset_step: int, before_step: int | None = None
) -> Choice:
    """Return the choice of OPT's two-part rule for trouble that began at onset_step.

    The rule picks among the newest few sound checkpoints before the onset. Older ones are a
    reserve: a better trend alone is not worth training so much again.
    """
    rules = Rules(
        margin_steps=spec.numeric.rollback_margin_steps,
        min_scale=spec.numeric.min_loss_scale,
    )
    # The onset is named late rather than early: the margin keeps its beginnings out as well.
    healthy_until = onset_step - rules.margin_steps
    candidates = [_until(state, c, healthy_until) for c in _candidates(state)]
    every = choose_last_good(candidates, onset_step, rules, before_step=before_step)
    newest_first = sorted(every.ranked, key=lambda name: state.checkpoints[name].step)[::-1]
    reserve = newest_first[spec.retention.keep_newest :]
    if not reserve:
        return every
    near = [c for c in candidates if c.id not in reserve]
    choice = choose_last_good(near, onset_step, rules, before_step=before_step)
    return replace(choice, ranked=(*choice.ranked, *reserve))


def newest_checkpoint(state: RunState) -> Choice:
    """Return the newest whole state, whatever it says of its health."""
    return newest_usable(_candidates(state))


def usable_until(state: RunState, limit_step: int) -> Choice:
    """Return the newest whole states of a step or earlier ones."""
    return newest_usable([c for c in _candidates(state) if c.step <= limit_step])


def _asked_back_to(state: RunState) -> int | None:
    """The newest step that a person has sent the run back to, until an attempt holds it."""
    for known in state.interventions.values():
        if known.request.action == "rollback" and known.stage == "sent":
            target = state.checkpoints.get(known.request.target)
            return target.step if target is not None else int(known.request.value)
    return None


def nothing_to_resume(state: RunState, spec: RunSpec) -> tuple[str, str] | None:
    """Return (code, reason) why a run without a usable checkpoint must not simply start over.

    A young run that has saved nothing yet loses little by that. What an old one would lose, or
    why a store does not give back what was saved, is for a person to judge.
    """
    unsound = [c for c in state.checkpoints.values() if c.verified is False and not c.abandoned]
    if not unsound and state.step <= spec.numeric.recurrence_steps:
        return None
    why = (
        f"no checkpoint may be trusted ({len(unsound)} cannot be read back whole), and to start "
        f"over would give up {steps_text(state.step)}"
    )
    return "no-usable-checkpoint", why


def doomed(state: RunState) -> frozenset[str]:
    """Return the checkpoints whose deletion was decided and may be under way."""
    return frozenset(
        name
        for decision in state.pending.values()
        if isinstance(decision.action, PruneCheckpoints)
        for name in decision.action.checkpoints
    )


def _planned(state: RunState, incident: Incident) -> Resume | None:
    """What the last attempt that answered an incident was to resume from, as far as it is sound."""
    for decision in reversed(incident.decisions):
        if isinstance(decision.action, StartAttempt):
            plan = decision.action.plan
            usable = newest_usable(_candidates(state)).ranked
            sound = tuple(name for name in plan.checkpoints if name in usable)
            if sound or not plan.checkpoints:
                return Resume(sound, state.checkpoints[sound[0]].step if sound else 0)
    return None


def _last_good(state: RunState, spec: RunSpec, incident: Incident) -> Resume:
    return _as_resume(state, last_good_checkpoint(state, spec, incident.draft.onset_step))


def _until(state: RunState, candidate: Candidate, last_step: int) -> Candidate:
    # A trend must not count what the trouble itself did to the norms.
    if candidate.step + TREND_STEPS <= last_step or candidate.abandoned:
        return candidate
    samples = tuple(sample for sample in state.samples if sample.step <= last_step)
    known = with_trend(state.checkpoints[candidate.id], samples)
    return replace(candidate, activation=known.activation_trend, grad=known.grad_trend)


def _candidates(state: RunState) -> list[Candidate]:
    going = doomed(state)
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
            before=c.before,
        )
        for c in state.checkpoints.values()
        if c.checkpoint not in going
    ]


def _as_resume(state: RunState, choice: Choice) -> Resume:
    first = choice.checkpoint
    step = state.checkpoints[first].step if first is not None else 0
    return Resume(choice.ranked[:MAX_CANDIDATES], step, choice.passed_over)
