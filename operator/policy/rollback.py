"""The answer to a numeric fault: back to last_good, down the LR ladder, further back each time."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from ...checkpoints.last_good import Choice
from ...logbook.decisions import AwaitNodes, Decision, IncidentDraft, PauseRun, StartAttempt
from ...logbook.findings import Finding
from ...logbook.plan import AttemptPlan
from ...logbook.state import Rollback, RunState
from ...logbook.wire import Hyper, LrChange
from ..spec import RunSpec
from .budget import spent_budget
from .candidates import MAX_CANDIDATES, last_good_checkpoint
from .context import Pairs, make_decision, next_command
from .placement import plan_placement

SAME_POSITION_STEPS = 2
MAX_SKIPPED_STEPS = 64


class Rung(msgspec.Struct, frozen=True):
    """Where on the ladder this rollback stands. level 0 is the first of its series.

    before_step: only checkpoints of earlier steps may be taken. failed: the checkpoint from which
    the last retry did not get past the trouble. skip: data steps to leave out, or None.
    """

    level: int
    before_step: int | None
    failed: str
    skip: tuple[int, int] | None


def plan_rollback(
    state: RunState, spec: RunSpec, now_s: float, opens: IncidentDraft | str
) -> Decision:
    """Return the rollback for the alarm of the current attempt, or a pause where none is sound.

    An identical retry is never made: every rung lowers the rate, and past the last one a human
    must look. A raise of the rate that was not yet in force at the checkpoint is taken back.
    """
    attempt = state.attempt
    assert attempt is not None
    assert attempt.alarm is not None
    finding = _with_earliest_onset(state, spec, attempt.alarm.finding)
    draft = opens if isinstance(opens, IncidentDraft) else None
    incident = opens if isinstance(opens, str) else None
    rung = _rung(state, spec, finding)
    spent = spent_budget(state, spec, now_s) or _exhausted(spec, rung)
    choice = last_good_checkpoint(state, spec, finding.onset_step, rung.before_step)
    if spent is None and choice.checkpoint is None:
        spent = _nothing_to_resume(state, spec)
    if spent is not None:
        return make_decision(
            state,
            PauseRun(spent[0]),
            f"{finding.message}; {spent[1]}; a human must look before it goes on",
            evidence=_evidence(finding, choice, rung),
            alternatives=choice.passed_over,
            opens=draft,
            incident=incident,
        )
    return _decision(state, spec, finding, rung, choice, draft, incident)


def _with_earliest_onset(state: RunState, spec: RunSpec, finding: Finding) -> Finding:
    """The finding, its onset moved back to the first sign of the same trouble.

    Detectors see one trouble at different times: a loss jumps, and the scaler collapses ten steps
    later. A checkpoint from between the two is sick.
    """
    reach = spec.numeric.heal_steps
    onset = finding.onset_step
    signs = [s.finding for s in state.findings if s.attempt == state.num_attempts]
    for sign in sorted(signs, key=lambda sign: -sign.onset_step):
        if not sign.shadow and onset - reach <= sign.onset_step < onset:
            onset = sign.onset_step
    return replace(finding, onset_step=onset)


def _decision(
    state: RunState,
    spec: RunSpec,
    finding: Finding,
    rung: Rung,
    choice: Choice,
    draft: IncidentDraft | None,
    incident: str | None,
) -> Decision:
    placed = plan_placement(state, spec)
    if placed is None:
        return make_decision(
            state,
            AwaitNodes(),
            f"{finding.message}; too few nodes are usable",
            opens=draft,
            incident=incident,
        )
    decision_id = f"{state.num_attempts}/{state.num_decisions + 1}"
    step = state.checkpoints[choice.checkpoint].step if choice.checkpoint else 0
    factor = spec.numeric.lr_ladder[rung.level]
    hyper, reverts = _lowered(state, spec, step, factor, rung, decision_id)
    plan = AttemptPlan(
        attempt=state.num_attempts + 1,
        mesh=placed[0],
        placements=placed[1],
        checkpoints=choice.ranked[:MAX_CANDIDATES],
        resume_step=step,
        hyper=hyper,
        first_command=next_command(state),
    )
    taken_back = f", {len(reverts)} raise of the rate taken back" if reverts else ""
    return make_decision(
        state,
        StartAttempt(
            plan,
            rollback_onset=finding.onset_step,
            lr_factor=factor,
            quarantines=(rung.failed,) if rung.failed else (),
        ),
        f"{finding.message}; back to {choice.checkpoint or 'the beginning'} ({choice.rule}), "
        f"remaining LR schedule x{factor:g}{taken_back}",
        evidence=_evidence(finding, choice, rung),
        alternatives=(
            *choice.passed_over,
            ("same checkpoint, same rate", "an identical retry is refused"),
            ("wait for it to heal", "the finding calls for a rollback"),
        ),
        opens=draft,
        incident=incident,
        reverts=reverts,
    )


def _rung(state: RunState, spec: RunSpec, finding: Finding) -> Rung:
    level, later = 0, finding.onset_step
    for past in reversed(state.rollbacks):
        if later - past.onset_step > spec.numeric.recurrence_steps:
            break
        level, later = level + 1, past.onset_step
    if not level:
        return Rung(0, None, "", None)
    last = state.rollbacks[-1]
    # A retry that did not get clearly past the old onset says that its checkpoint was sick too.
    did_not_pass = finding.onset_step <= last.onset_step + spec.numeric.heal_steps
    return Rung(
        level=level,
        before_step=last.resume_step if did_not_pass else None,
        failed=last.checkpoint if did_not_pass else "",
        skip=_data_to_skip(state, finding, last),
    )


def _data_to_skip(state: RunState, finding: Finding, last: Rollback) -> tuple[int, int] | None:
    """The data around the onset, when the same trouble came back at the same position."""
    if abs(finding.onset_step - last.onset_step) > SAME_POSITION_STEPS:
        return None
    hit = [s.data_step for s in state.samples if s.step >= finding.onset_step]
    if not hit:
        return None
    first = max(hit[0] - SAME_POSITION_STEPS, 0)
    return first, min(hit[-1] + 1, first + MAX_SKIPPED_STEPS)


def _exhausted(spec: RunSpec, rung: Rung) -> tuple[str, str] | None:
    rungs = len(spec.numeric.lr_ladder)
    if rung.level < rungs:
        return None
    return "ladder-exhausted", f"all {rungs} rungs of numeric.lr_ladder were tried"


def _nothing_to_resume(state: RunState, spec: RunSpec) -> tuple[str, str] | None:
    # A young run loses little by starting over at a lower rate; an old one is a person's to judge.
    if state.step <= spec.numeric.recurrence_steps:
        return None
    return "no-healthy-checkpoint", "no checkpoint from before the onset may be trusted"


def _lowered(
    state: RunState, spec: RunSpec, step: int, factor: float, rung: Rung, decision_id: str
) -> tuple[Hyper, tuple[str, ...]]:
    kept: list[LrChange] = []
    reverts: list[str] = []
    for change in state.hyper.lr_changes:
        if change.from_step <= step + 1:
            kept.append(change)
        elif change.factor > 1.0:
            reverts.append(change.cause)
        else:
            # A lower rate was somebody's will, or an earlier rung; going back does not undo it.
            kept.append(replace(change, from_step=step + 1))
    kept.append(LrChange(step + 1, factor, decision_id))
    clip = state.hyper.grad_clip
    if spec.numeric.clip_at_rung is not None and rung.level + 1 >= spec.numeric.clip_at_rung:
        clip = min(clip, spec.numeric.clip_to) if clip is not None else spec.numeric.clip_to
    skipped = state.hyper.skipped if rung.skip is None else (*state.hyper.skipped, rung.skip)
    hyper = replace(state.hyper, lr_changes=tuple(kept), grad_clip=clip, skipped=skipped)
    return hyper, tuple(reverts)


def _evidence(finding: Finding, choice: Choice, rung: Rung) -> Pairs:
    rows = [
        ("detector", finding.detector),
        ("onset step", str(finding.onset_step)),
        ("observed", f"{finding.value:.6g}"),
        ("reference", f"{finding.reference:.6g}"),
        ("recurrence", f"rung {rung.level + 1} of the LR ladder"),
        ("checkpoint", choice.checkpoint or "none"),
        ("chosen by rule", choice.rule),
    ]
    if rung.skip is not None:
        rows.append(("data steps left out", f"{rung.skip[0]} to {rung.skip[1] - 1}"))
    return tuple(rows)
