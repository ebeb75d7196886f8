"""The care of checkpoints while nothing is wrong: reading them back, and letting old ones go."""

from __future__ import annotations

from ...checkpoints.retention import (
    HOUR_S,
    Protected,
    Retained,
    RetentionPlan,
    RetentionRules,
    plan_retention,
)
from ...logbook.decisions import Decision, PruneCheckpoints, VerifyCheckpoint
from ...logbook.state import CheckpointState, RunState
from ..spec import RunSpec
from .candidates import doomed, last_good_checkpoint
from .context import make_decision

VERIFY_DEADLINE_S = 120.0
TROUBLE_HORIZON_STEPS = 512
"""A slow creep may be named this long after it began, so something older must have been kept."""


def verify_checkpoints(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Have the newest checkpoint that was never read back verified, then those in doubt.

    A load that found bad bytes may have seen one copy of several: one more reading decides.
    """
    going = doomed(state)
    for reason, is_wanted in (
        ("committed, never read back", _is_unread),
        ("a load could not use it; another copy may be sound", _is_in_doubt),
    ):
        for known in reversed(state.checkpoints.values()):
            is_of_use = not known.abandoned and known.checkpoint not in going
            if is_of_use and is_wanted(known) and not is_being_read(state, known, now_s):
                return [make_decision(state, VerifyCheckpoint(known.checkpoint), reason)]
    return []


def _is_unread(known: CheckpointState) -> bool:
    return known.verified is None


def _is_in_doubt(known: CheckpointState) -> bool:
    # Once: what is passed over again after it was found sound is for a person to look at.
    if known.verified is not False or known.doubted_s is None or known.num_passed_over != 1:
        return False
    return known.verify_asked_s is None or known.verify_asked_s < known.doubted_s


def is_being_read(state: RunState, known: CheckpointState, now_s: float) -> bool:
    """Whether a reading was asked for whose result may still come."""
    asked_s = known.verify_asked_s
    if asked_s is None or now_s - asked_s >= VERIFY_DEADLINE_S:
        return False
    pending = (decision.action for decision in state.pending.values())
    return known.verified is None or VerifyCheckpoint(known.checkpoint) in pending


def prune_checkpoints(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Delete what retention no longer keeps; never while an attempt is still choosing."""
    attempt = state.attempt
    if attempt is None or is_choosing(state):
        return []
    # Only what is about to go is worth the question whether a rollback would want it.
    if not _plan(state, spec, Protected(pins=state.pins, wanted=_far_back(state)), now_s).delete:
        return []
    plan = retention_plan(state, spec, now_s)
    if not plan.delete:
        return []
    why = "; ".join(f"{name}: {reason}" for name, reason in plan.delete)
    return [make_decision(state, PruneCheckpoints(plan.delete_ids), why, evidence=plan.keep)]


def is_choosing(state: RunState) -> bool:
    """Whether an attempt may still have to load any of the checkpoints there are."""
    attempt = state.attempt
    return attempt is not None and (attempt.first_step_s is None or attempt.signal_s is not None)


def retention_plan(state: RunState, spec: RunSpec, now_s: float) -> RetentionPlan:
    """Return which checkpoints would go now and which stay, each with its reason."""
    attempt = state.attempt
    protected = Protected(
        last_good=last_good_checkpoint(state, spec, state.step).checkpoint,
        pins=state.pins,
        in_use=attempt.plan.checkpoints if attempt is not None and is_choosing(state) else (),
        wanted={
            **_far_back(state),
            **_wanted_by_trouble(state, spec),
            **_in_doubt(state, now_s),
        },
    )
    return _plan(state, spec, protected, now_s)


def _plan(state: RunState, spec: RunSpec, protected: Protected, now_s: float) -> RetentionPlan:
    going = doomed(state)
    candidates = [
        Retained(
            id=c.checkpoint,
            step=c.step,
            attempt=c.attempt,
            age_s=now_s - c.time_s,
            verified=c.verified,
            abandoned=c.abandoned,
        )
        for c in state.checkpoints.values()
        if c.checkpoint not in going
    ]
    keep, hours = spec.retention, spec.retention.max_age_hours
    rules = RetentionRules(
        keep_newest=keep.keep_newest,
        keep_every_steps=keep.keep_every_steps,
        max_age_s=hours * HOUR_S if hours is not None else None,
    )
    return plan_retention(candidates, rules, protected, current_attempt=state.num_attempts)


def _far_back(state: RunState) -> dict[str, str]:
    # The first checkpoint of each stretch of the horizon: the third newest is always older than it.
    first: dict[int, str] = {}
    for known in sorted(state.checkpoints.values(), key=lambda c: (c.step, c.attempt)):
        if not known.abandoned and not known.quarantined and known.verified is not False:
            first.setdefault(known.step // TROUBLE_HORIZON_STEPS, known.checkpoint)
    kept = (first[stretch] for stretch in sorted(first)[-3:])
    return dict.fromkeys(kept, "a creep that is named late goes back this far")


def _wanted_by_trouble(state: RunState, spec: RunSpec) -> dict[str, str]:
    # Where a rollback would go if what is being watched got worse.
    wanted: dict[str, str] = {}
    for name in state.open_incidents:
        draft = state.incidents[name].draft
        if draft.is_numeric:
            choice = last_good_checkpoint(state, spec, draft.onset_step).checkpoint
            wanted |= {choice: f"{name} would go back to it"} if choice is not None else {}
    return wanted


def _in_doubt(state: RunState, now_s: float) -> dict[str, str]:
    return {
        name: "in doubt until it has been read once more"
        for name, known in state.checkpoints.items()
        if known.verified is False
        and not known.abandoned
        and (_is_in_doubt(known) or is_being_read(state, known, now_s))
    }
