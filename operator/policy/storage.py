"""The care of checkpoints while nothing is wrong: reading them back, and letting old ones go."""

from __future__ import annotations

from ...checkpoints.retention import (
    Protected,
    Retained,
    RetentionPlan,
    RetentionRules,
    plan_retention,
)
from ...logbook.decisions import Decision, PruneCheckpoints, VerifyCheckpoint
from ...logbook.state import RunState
from ..spec import RunSpec
from .candidates import doomed, last_good_checkpoint
from .context import make_decision

VERIFY_DEADLINE_S = 120.0
TROUBLE_HORIZON_STEPS = 512
"""A slow creep may be named this long after it began, so something older must have been kept."""


def verify_checkpoints(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Have the newest checkpoint that was never read back verified."""
    going = doomed(state)
    for known in reversed(state.checkpoints.values()):
        asked_s = known.verify_asked_s
        waiting = asked_s is not None and now_s - asked_s < VERIFY_DEADLINE_S
        is_of_use = not known.abandoned and known.checkpoint not in going
        if known.verified is None and is_of_use and not waiting:
            verify = VerifyCheckpoint(known.checkpoint)
            return [make_decision(state, verify, "committed, never read back")]
    return []


def prune_checkpoints(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Delete what retention no longer keeps; never while an attempt is still choosing."""
    attempt = state.attempt
    if attempt is None or attempt.first_step_s is None or attempt.signal_s is not None:
        return []
    far_back = _far_back(state)
    if not _plan(state, spec, Protected(pins=far_back)).delete:
        return []
    # Only what is about to go is worth the question whether a rollback would want it.
    protected = Protected(
        last_good=last_good_checkpoint(state, spec, state.step).checkpoint,
        pins=(*far_back, *_wanted_by_trouble(state, spec)),
    )
    plan = _plan(state, spec, protected)
    if not plan.delete:
        return []
    why = "; ".join(f"{name}: {reason}" for name, reason in plan.delete)
    return [make_decision(state, PruneCheckpoints(plan.delete_ids), why, evidence=plan.keep)]


def _plan(state: RunState, spec: RunSpec, protected: Protected) -> RetentionPlan:
    going = doomed(state)
    candidates = [
        Retained(
            id=c.checkpoint,
            step=c.step,
            attempt=c.attempt,
            verified=c.verified,
            abandoned=c.abandoned,
        )
        for c in state.checkpoints.values()
        if c.checkpoint not in going
    ]
    rules = RetentionRules(
        keep_newest=spec.retention.keep_newest, keep_every_steps=spec.retention.keep_every_steps
    )
    return plan_retention(candidates, rules, protected, current_attempt=state.num_attempts)


def _far_back(state: RunState) -> list[str]:
    # The first checkpoint of each stretch of the horizon: the third newest is always older than it.
    first: dict[int, str] = {}
    for known in sorted(state.checkpoints.values(), key=lambda c: (c.step, c.attempt)):
        if not known.abandoned and not known.quarantined and known.verified is not False:
            first.setdefault(known.step // TROUBLE_HORIZON_STEPS, known.checkpoint)
    return [first[stretch] for stretch in sorted(first)[-3:]]


def _wanted_by_trouble(state: RunState, spec: RunSpec) -> list[str]:
    # Where a rollback would go if what is being watched got worse.
    drafts = [state.incidents[name].draft for name in state.open_incidents]
    choices = [last_good_checkpoint(state, spec, d.onset_step) for d in drafts if d.is_numeric]
    return [choice.checkpoint for choice in choices if choice.checkpoint is not None]
