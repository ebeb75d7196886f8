"""The answer to a numeric fault: back to last_good, down the LR ladder, further back each time."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from msgspec.structs import replace

from ...checkpoints.last_good import Choice
from ...logbook.decisions import AwaitNodes, Decision, PauseRun, StartAttempt
from ...logbook.hyper import Hyper, LrChange, Setting, holds_at
from ...logbook.parameters import PARAMETERS
from ...logbook.plan import AttemptPlan
from ...logbook.state import AttemptState, Intervention, Rollback, RunState
from ..spec import RunSpec
from .budget import spent_budget
from .candidates import (
    MAX_CANDIDATES,
    last_good_checkpoint,
    newest_checkpoint,
    nothing_to_resume,
)
from .context import About, Pairs, make_decision, next_decision_id
from .placement import plan_placement
from .preflight import gate_attempt

SAME_POSITION_STEPS = 2
MAX_SKIPPED_STEPS = 64


class Trouble(msgspec.Struct, frozen=True):
    """Numeric trouble to go back from: what is wrong, since which step, and what shows it.

    is_accepted: a person has seen it since and set the run going again, so that what is left to
        resume from is good enough.
    keeps_rate: a node is to blame and is left out, so the rate is not.
    """

    message: str
    onset_step: int
    evidence: Pairs = ()
    is_accepted: bool = False
    keeps_rate: bool = False


class Rung(msgspec.Struct, frozen=True):
    """Where on the ladder this rollback stands. level 0 is the first of its series.

    before_step: only checkpoints of earlier steps may be taken. failed: the checkpoint from which
    the last retry did not get past the trouble. skip: data steps to leave out, or None.
    """

    level: int = 0
    before_step: int | None = None
    failed: str = ""
    skip: tuple[int, int] | None = None


def alarm_trouble(attempt: AttemptState, also: Pairs) -> Trouble:
    """Return the trouble that the current attempt's alarm tells of."""
    assert attempt.alarm is not None
    finding = attempt.alarm.finding
    evidence = (
        ("detector", finding.detector),
        ("observed", f"{finding.value:.6g}"),
        ("reference", f"{finding.reference:.6g}"),
        *also,
    )
    keeps_rate = finding.action == "evict"
    return Trouble(finding.message, finding.onset_step, evidence, keeps_rate=keeps_rate)


def open_trouble(state: RunState) -> tuple[Trouble, str] | None:
    """Return the trouble that no rollback has answered yet, and its incident.

    The run had to wait for nodes, or for a person, before it could.
    """
    for name in reversed(state.open_incidents):
        known = state.incidents[name]
        draft = known.draft
        if draft.is_numeric and known.attempt_after is None and not known.is_watched:
            accepted = state.resumed_s >= known.opened_s
            node = state.nodes.get(draft.node or "")
            keeps_rate = node is not None and node.evict is not None and bool(node.quarantined)
            trouble = Trouble(
                draft.title, draft.onset_step, is_accepted=accepted, keeps_rate=keeps_rate
            )
            return trouble, name
    return None


def plan_rollback(
    state: RunState, spec: RunSpec, now_s: float, trouble: Trouble, about: About
) -> Decision:
    """Return the rollback from this trouble, or a pause where none is sound.

    An identical retry is never made: every rung lowers the rate, and past the last one a human
    must look. A raise of the rate that was not yet in force at the checkpoint is taken back. Where
    a node was to blame, its absence is the change, and the rate stays.
    """
    rung = _rung(state, spec, trouble.onset_step)
    choice = _choice(state, spec, trouble, rung)
    evidence = _evidence(trouble, choice, rung)
    spent = spent_budget(state, spec, now_s)
    if spent is None and not trouble.keeps_rate:
        spent = _exhausted(spec, rung)
    if spent is None and choice.checkpoint is None and not trouble.is_accepted:
        spent = nothing_to_resume(state, spec)
    if spent is not None:
        return make_decision(
            state,
            PauseRun(spent[0]),
            f"{trouble.message}; {spent[1]}; a human must look before it goes on",
            evidence=evidence,
            alternatives=choice.passed_over,
            about=about,
        )
    placed = plan_placement(state, spec, now_s)
    if placed is None:
        why = f"{trouble.message}; too few nodes are usable to go back and on"
        return make_decision(state, AwaitNodes(), why, evidence=evidence, about=about)
    gate = gate_attempt(state, spec, placed[1], trouble.message, evidence, about)
    if gate is not None:
        return gate
    step = state.checkpoints[choice.checkpoint].step if choice.checkpoint else 0
    factor = 1.0 if trouble.keeps_rate else spec.numeric.lr_ladder[rung.level]
    hyper, reverts = _lowered(state, spec, step, factor, rung)
    plan = AttemptPlan(
        attempt=state.num_attempts + 1,
        mesh=placed[0],
        placements=placed[1],
        checkpoints=choice.ranked[:MAX_CANDIDATES],
        resume_step=step,
        hyper=hyper,
        first_command=state.next_command,
        validated_step=state.validated_step,
    )
    taken_back = f", {len(reverts)} raise of the rate taken back" if reverts else ""
    return make_decision(
        state,
        StartAttempt(
            plan,
            rollback_onset=trouble.onset_step,
            lr_factor=factor,
            quarantines=(rung.failed,) if rung.failed else (),
        ),
        f"{trouble.message}; back to {choice.checkpoint or 'the beginning'} ({choice.rule}), "
        f"remaining LR schedule x{factor:g}{taken_back}",
        evidence=_evidence(trouble, choice, rung),
        alternatives=(
            *choice.passed_over,
            ("same checkpoint, same rate", "an identical retry is refused"),
            ("wait for it to heal", "the finding calls for a rollback"),
        ),
        about=about,
        reverts=reverts,
    )


def _choice(state: RunState, spec: RunSpec, trouble: Trouble, rung: Rung) -> Choice:
    choice = last_good_checkpoint(state, spec, trouble.onset_step, rung.before_step)
    if choice.checkpoint is None and trouble.is_accepted:
        choice = last_good_checkpoint(state, spec, trouble.onset_step)
    too_old_to_start_over = nothing_to_resume(state, spec) is not None
    if choice.checkpoint is None and trouble.is_accepted and too_old_to_start_over:
        choice = newest_checkpoint(state)
    return choice


def _rung(state: RunState, spec: RunSpec, onset_step: int) -> Rung:
    series: list[Rollback] = []
    for past in reversed(state.rollbacks):
        later = series[-1].onset_step if series else onset_step
        if later - past.onset_step > spec.numeric.recurrence_steps:
            break
        series.append(past)
    if not series:
        return Rung()
    last = series[0]
    # A retry that did not get clearly past the old onset says that its checkpoint was sick too.
    did_not_pass = onset_step <= last.onset_step + spec.numeric.heal_steps
    return Rung(
        # The ladder is a budget like others: a person who sets the run going again renews it.
        level=sum(1 for p in series if p.time_s >= state.resumed_s and p.lr_factor < 1.0),
        before_step=last.resume_step if did_not_pass else None,
        failed=last.checkpoint if did_not_pass else "",
        skip=_data_to_skip(state, onset_step, last),
    )


def _data_to_skip(state: RunState, onset_step: int, last: Rollback) -> tuple[int, int] | None:
    """The data around both onsets, when the same trouble came back at the same data."""
    hit = [s.data_step for s in state.samples if s.step >= onset_step]
    if not hit or last.onset_data is None or abs(hit[0] - last.onset_data) > SAME_POSITION_STEPS:
        return None
    first = max(min(hit[0], last.onset_data) - SAME_POSITION_STEPS, 0)
    return first, min(hit[-1] + 1, first + MAX_SKIPPED_STEPS)


def _exhausted(spec: RunSpec, rung: Rung) -> tuple[str, str] | None:
    rungs = len(spec.numeric.lr_ladder)
    if rung.level < rungs:
        return None
    return "ladder-exhausted", f"all {rungs} rungs of numeric.lr_ladder were tried"


def _lowered(
    state: RunState, spec: RunSpec, step: int, factor: float, rung: Rung
) -> tuple[Hyper, tuple[str, ...]]:
    if factor == 1.0:
        return state.hyper, ()
    before, now_step = state.hyper, state.step + 1
    kept: list[LrChange] = []
    reverts: list[str] = []
    for change in before.lr_changes:
        if change.from_step > step and change.factor > 1.0:
            reverts.append(change.cause)
        else:
            # A lower rate was somebody's will, or an earlier rung; going back does not undo it.
            kept.append(_brought_forward(change, step, now_step))
    settings: list[Setting] = []
    for setting in before.settings:
        if setting.from_step > step and PARAMETERS[setting.parameter].is_momentary:
            # A reset of the scaler was meant for the state that is left behind.
            reverts.append(setting.cause)
        else:
            settings.append(_brought_forward(setting, step, now_step))
    # One that no rank had confirmed yet would raise the rate right after the trouble.
    reverts += [n for n, known in state.interventions.items() if _is_raise_under_way(state, known)]
    cause = next_decision_id(state)
    kept.append(LrChange(step + 1, factor, cause))
    if spec.numeric.clip_at_rung is not None and rung.level + 1 >= spec.numeric.clip_at_rung:
        clip, wanted = before.value_at("grad-clip", now_step), spec.numeric.clip_to
        if clip is None or clip > wanted:
            settings.append(Setting("grad-clip", wanted, step + 1, cause))
    skipped = before.skipped if rung.skip is None else (*before.skipped, rung.skip)
    hyper = replace(before, lr_changes=tuple(kept), settings=tuple(settings), skipped=skipped)
    return hyper, tuple(reverts)


_Change = TypeVar("_Change", LrChange, Setting)


def _brought_forward(change: _Change, step: int, now_step: int) -> _Change:
    """A change in force holds from where the run goes back to; one that is over stays where it
    was, and comes and goes there again."""
    if change.from_step <= step or not holds_at(change, now_step):
        return change
    return replace(change, from_step=step + 1)


def _is_raise_under_way(state: RunState, known: Intervention) -> bool:
    request = known.request
    if known.stage != "sent" or known.acks or request.at_step is not None:
        return False
    if request.action == "lr":
        return state.last is not None and request.value > state.last.lr
    return request.action == "lr-factor" and request.value > 1.0


def _evidence(trouble: Trouble, choice: Choice, rung: Rung) -> Pairs:
    rows = [
        *trouble.evidence,
        ("onset step", str(trouble.onset_step)),
        ("recurrence", f"rung {rung.level + 1} of the LR ladder"),
        ("checkpoint", choice.checkpoint or "none"),
        ("chosen by rule", choice.rule),
    ]
    if rung.skip is not None:
        rows.append(("data steps left out", f"{rung.skip[0]} to {rung.skip[1] - 1}"))
    return tuple(rows)
