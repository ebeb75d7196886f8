"""Which checkpoint to go back to: OPT's two-part rule, and the plain one for hardware faults.

After a numeric fault the newest checkpoint is usually too late: its weights are already sick. OPT
restarted only from checkpoints with a loss scale of at least 1.0 after which the activation norm of
the last layer trended down. That is rule "two-part". A young run may have no such checkpoint, since
its activation norm rises healthily at first; then the choice degrades in this stated order, and
the rule that was used goes into the incident's evidence:

    two-part       verified, healthy when taken, activation norm trended down afterwards
    trend-unknown  verified, healthy when taken, too few steps followed to tell
    scale-only     verified, healthy when taken, but the activation norm rose afterwards
    after-finding  verified, healthy when taken, but right after trouble that had seemed to heal
    unproven       not read back yet, or taken without health tags
    scale-low      the loss scale was already below the limit (or, without a loss scale, the grad
                   norm was growing)

"Healthy when taken" is a loss scale >= min_scale; without a loss scale (bf16, fp32) the grad norm
stands in: it must not have grown in the steps that followed. Within a rule the newest wins.
Source: arXiv 2205.01068 section 2.5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec

from ..logbook.state import FindingMark
from ..logbook.trend import Trend
from ..logbook.wire import CheckpointTags

RULES = ("two-part", "trend-unknown", "scale-only", "after-finding", "unproven", "scale-low")
NEWEST_USABLE = "newest-usable"


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One committed checkpoint as the choice sees it.

    verified:    True when every byte was read back, False when that failed, None when not tried.
    quarantined: why an earlier retry ruled it out, "" when none did.
    abandoned:   it belongs to a lineage that a rollback left behind.
    activation, grad: which way the norms went in the steps that followed.
    before: the last trouble before it.
    """

    id: str
    step: int
    attempt: int = 0
    verified: bool | None = None
    quarantined: str = ""
    abandoned: bool = False
    tags: CheckpointTags | None = None
    activation: Trend = Trend()
    grad: Trend = Trend()
    before: FindingMark | None = None


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of the two-part rule.

    margin_steps: a checkpoint must be at least this many steps older than the onset; one that came
        less than as many after other trouble is trusted less.
    min_scale:    loss scale that counts as healthy.
    trend_points: steps that must have followed before a trend is believed.
    tolerance:    relative slope per step up to which a norm still counts as not rising.
    """

    margin_steps: int = 10
    min_scale: float = 1.0
    trend_points: int = 10
    tolerance: float = 0.0


class Choice(msgspec.Struct, frozen=True):
    """The checkpoint to resume from (None: none is usable), by which rule, and why no newer one.

    ranked:      every usable candidate, best first; ranked[0] is checkpoint. A load that fails
                 goes on with the next.
    passed_over: (id, reason) of each candidate newer than the choice, newest first; all of them
                 when there is no choice.
    """

    checkpoint: str | None
    rule: str
    ranked: tuple[str, ...] = ()
    passed_over: tuple[tuple[str, str], ...] = ()


def choose_last_good(
    candidates: Sequence[Candidate],
    onset_step: int,
    rules: Rules = Rules(),  # noqa: B008 - an immutable value
    *,
    before_step: int | None = None,
) -> Choice:
    """Return the checkpoint to roll back to after a numeric fault that began at onset_step.

    before_step: only checkpoints of earlier steps; a recurrence passes the step it last resumed
        from, so that each goes further back.
    """
    return _choose(
        candidates,
        excluded=lambda c: _excluded(c) or _too_late(c, onset_step, before_step, rules),
        judged=lambda c: _judge(c, rules),
    )


def newest_usable(candidates: Sequence[Candidate], *, before_step: int | None = None) -> Choice:
    """Return the newest checkpoint that is not known to be bad, for faults of the hardware.

    There is no onset, and the loss scale does not matter: the curve must go on exactly as it was.
    One not read back yet is allowed, since a load verifies before it trusts.
    """
    return _choose(
        candidates,
        excluded=lambda c: _excluded(c) or _not_before(c, before_step),
        judged=lambda c: (NEWEST_USABLE, "older than the choice"),
    )


def _choose(
    candidates: Sequence[Candidate],
    excluded: Callable[[Candidate], str],
    judged: Callable[[Candidate], tuple[str, str]],
) -> Choice:
    newest_first = sorted(candidates, key=lambda c: (c.step, c.attempt), reverse=True)
    reasons: dict[str, str] = {}
    by_rule: dict[str, list[Candidate]] = {}
    for candidate in newest_first:
        reason = excluded(candidate)
        if not reason:
            rule, reason = judged(candidate)
            by_rule.setdefault(rule, []).append(candidate)
        reasons[candidate.id] = reason
    for rule in (NEWEST_USABLE, *RULES):
        if rule in by_rule:
            chosen = by_rule[rule][0]
            break
    else:
        return Choice(None, "none", passed_over=tuple(reasons.items()))
    ranked = [c.id for name in (NEWEST_USABLE, *RULES) for c in by_rule.get(name, [])]
    newer = newest_first[: newest_first.index(chosen)]
    return Choice(chosen.id, rule, tuple(ranked), tuple((c.id, reasons[c.id]) for c in newer))


def _excluded(candidate: Candidate) -> str:
    if candidate.verified is False:
        return "failed verification"
    if candidate.quarantined:
        return f"quarantined: {candidate.quarantined}"
    if candidate.abandoned:
        return "of a lineage that a rollback left behind"
    return ""


def _not_before(candidate: Candidate, before_step: int | None) -> str:
    if before_step is not None and candidate.step >= before_step:
        return f"step {candidate.step} is not before step {before_step}, tried already"
    return ""


def _too_late(candidate: Candidate, onset_step: int, before_step: int | None, rules: Rules) -> str:
    distance = onset_step - candidate.step
    if distance < 0:
        return f"taken at step {candidate.step}, after the onset at step {onset_step}"
    if distance < rules.margin_steps:
        return (
            f"only {distance} steps before the onset at step {onset_step}, "
            f"margin {rules.margin_steps}"
        )
    tags = candidate.tags
    if tags is not None and not _is_finite(tags):
        return "a norm or the loss was not finite when it was taken"
    return _not_before(candidate, before_step)


def _is_finite(tags: CheckpointTags) -> bool:
    # A skipped step of a healthy scaler leaves a grad norm that is not finite, so it is not asked.
    return math.isfinite(tags.loss) and math.isfinite(tags.activation_norm)


def _judge(candidate: Candidate, rules: Rules) -> tuple[str, str]:
    """Return (rule under which the candidate is usable, why it is no better)."""
    tags = candidate.tags
    if tags is None:
        return "unproven", "has no health tags"
    if tags.loss_scale is not None and tags.loss_scale < rules.min_scale:
        return "scale-low", f"loss scale {tags.loss_scale:g} below {rules.min_scale:g}"
    if tags.loss_scale is None and _direction(candidate.grad, rules) == "up":
        return "scale-low", f"grad norm {_described(candidate.grad)}"
    if candidate.verified is None:
        return "unproven", "not verified yet"
    before = candidate.before
    if before is not None and before.steps < rules.margin_steps:
        return "after-finding", f"taken only {before.steps} steps after a {before.kind}"
    direction = _direction(candidate.activation, rules)
    reason = f"activation norm {_described(candidate.activation)}"
    if direction == "unknown":
        return "trend-unknown", f"{reason}, {rules.trend_points} needed for a trend"
    return ("two-part", "older than the choice") if direction == "down" else ("scale-only", reason)


def _direction(trend: Trend, rules: Rules) -> str:
    slope = trend.relative_slope
    if slope == math.inf:
        return "up"
    if slope is None or trend.num_points < rules.trend_points:
        return "unknown"
    return "down" if slope <= rules.tolerance else "up"


def _described(trend: Trend) -> str:
    slope = trend.relative_slope
    if slope is None:
        return f"known for {trend.num_points} steps"
    if math.isinf(slope):
        return f"not finite within {trend.num_points} steps"
    return f"changed by {100.0 * slope:+.3g} % per step over {trend.num_points} steps"
