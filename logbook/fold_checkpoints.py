"""How checkpoints change the state: what is known of each, and what befell the run around it.

A checkpoint is judged anew as training goes on: findings before and after it, restarts that trained
on from it or did not, loads that passed it over. None of this costs a step anything: marks are made
when a finding, a commit or a restart comes, and read together with the step of the moment.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from . import events as ev
from .decisions import PruneCheckpoints, VerifyCheckpoint
from .findings import Finding, Severity
from .state import (
    RECENT_SAVES,
    TREND_STEPS,
    AttemptState,
    CheckpointState,
    FindingMark,
    NodeState,
    RunState,
    SaveCost,
    SaveTrouble,
)
from .trend import Trend
from .wire import PEER_CODES, Phase, StepSample

MAX_PRUNED = 256
MAX_EARLY = 64
IN_MEMORY = "memory"
"""The tier of a state that was never read from a store."""
_MISFIT = "state-mismatch"
# What a load says of bytes that are not those that were saved. Anything else (a store that does not
# answer) says nothing about the checkpoint.
_BAD_BYTES = ("shard-", "object-", "manifest-", "index-", "value-", "checkpoint-")
# SIGHUP, SIGINT, SIGKILL, SIGTERM: somebody or the kernel ended it, whatever its state was.
_FROM_OUTSIDE = frozenset({1, 2, 9, 15})


def checkpoint_committed(state: RunState, e: ev.CheckpointCommitted, time_s: float) -> RunState:
    """A checkpoint exists; remember it with the health of its step."""
    if e.checkpoint in state.checkpoints or e.checkpoint in state.pruned:
        return state
    known = CheckpointState(
        checkpoint=e.checkpoint,
        step=e.step,
        attempt=e.attempt,
        bytes=e.bytes,
        time_s=time_s,
        save_s=e.save_s,
        blocked_s=e.blocked_s,
        tags=e.tags,
        # A commit that an older attempt finished after the fence is sound bytes, but it may lie on
        # a lineage that has been left.
        abandoned=_is_left(state, e.attempt, e.step),
        uploaded_s=state.uploaded_early.get(e.checkpoint),
    )
    if known.uploaded_s is not None:
        early = {name: at_s for name, at_s in state.uploaded_early.items() if name != e.checkpoint}
        state = replace(state, uploaded_early=early)
    if e.save_s > 0.0:
        # Found on disk without its report, a checkpoint says nothing about what it cost.
        saves = (*state.recent_saves, SaveCost(e.step, e.blocked_s, e.save_s))
        state = replace(state, recent_saves=saves[-RECENT_SAVES:])
    if known.abandoned:
        return replace(state, checkpoints={**state.checkpoints, e.checkpoint: known})
    state = _saving_again(state, e, time_s)
    # Steps trained between the staging and the commit belong to the trend as well, and what was
    # found in them came after it.
    known = with_trend(replace(known, before=_finding_before(state, e.step)), state.samples)
    for seen in state.findings:
        if _tells_of_trouble(seen.finding) and not _is_left(state, seen.attempt, seen.finding.step):
            known = _marked_after(known, seen.finding)
    grows = state.step < e.step + TREND_STEPS
    return replace(
        state,
        checkpoints={**state.checkpoints, e.checkpoint: known},
        trending=(*state.trending, e.checkpoint) if grows else state.trending,
    )


def _saving_again(state: RunState, e: ev.CheckpointCommitted, time_s: float) -> RunState:
    """A commit ends what trouble there was with saving, unless it is of an earlier save."""
    trouble = state.save_trouble
    if trouble is None or trouble.over_s is not None:
        return state
    if (e.attempt, e.step) <= (trouble.attempt, trouble.step):
        return state
    return replace(state, save_trouble=replace(trouble, over_s=time_s))


def _is_left(state: RunState, attempt: int, step: int) -> bool:
    """Whether some later attempt went on from before what this one did at step."""
    return any(later > attempt and came < step for later, came in state.lineage)


# --- trends and findings -------------------------------------------------------------------------


def followed_by(known: CheckpointState, sample: StepSample) -> CheckpointState:
    """Return the checkpoint with its trends one step longer."""
    return replace(
        known,
        activation_trend=known.activation_trend.add(sample.step, sample.activation_norm),
        grad_trend=known.grad_trend.add(sample.step, sample.grad_norm),
    )


def with_trend(known: CheckpointState, samples: tuple[StepSample, ...]) -> CheckpointState:
    """Return the checkpoint with its trends taken anew from the steps that followed it."""
    known = replace(known, activation_trend=Trend(), grad_trend=Trend())
    for sample in samples:
        if known.step < sample.step <= known.step + TREND_STEPS:
            known = followed_by(known, sample)
    return known


def with_finding(state: RunState, e: ev.FindingSeen) -> RunState:
    """Return the state in which the checkpoints before a finding know of it."""
    finding = e.finding
    if not _tells_of_trouble(finding) or state.running(e.attempt) is None:
        return state
    marked = {
        name: _marked_after(known, finding)
        for name, known in state.checkpoints.items()
        if known.after is None and not known.abandoned and known.step < finding.step
    }
    return replace(state, checkpoints={**state.checkpoints, **marked}) if marked else state


def _tells_of_trouble(finding: Finding) -> bool:
    # That something is over again, or seems odd, speaks against no checkpoint. Nor does a node's
    # own trouble, unless a rank's numbers are what showed it.
    is_mild = finding.severity is Severity.OBSERVE and finding.kind != "spike"
    is_of_node = finding.node is not None and finding.severity is not Severity.ROLLBACK
    return not (finding.shadow or is_mild or is_of_node)


def _finding_before(state: RunState, step: int) -> FindingMark | None:
    for seen in reversed(state.findings):
        finding = seen.finding
        if finding.step <= step and _tells_of_trouble(finding):
            if _is_left(state, seen.attempt, finding.step):
                continue
            return FindingMark(finding.kind, finding.severity, step - finding.step)
    return None


def _marked_after(known: CheckpointState, finding: Finding) -> CheckpointState:
    if known.after is not None or finding.step <= known.step:
        return known
    mark = FindingMark(finding.kind, finding.severity, finding.step - known.step)
    return replace(known, after=mark)


# --- restarts ------------------------------------------------------------------------------------


def after_resume(
    state: RunState, e: ev.AttemptResumed, samples: tuple[StepSample, ...], time_s: float
) -> dict[str, CheckpointState]:
    """Return the checkpoints after an attempt has gone on from e.step.

    Nothing after the resume point belongs to the lineage any more. A candidate whose bytes were bad
    is unsound, whatever was believed before; one that does not fit is of no use to this run.
    """
    passed_over = dict(e.passed_over)
    checkpoints: dict[str, CheckpointState] = {}
    for name, known in state.checkpoints.items():
        if name in passed_over:
            known = _passed_over(known, passed_over[name], time_s)
        if known.step > e.step:
            known = replace(known, abandoned=True)
        elif known.step + TREND_STEPS > e.step:
            # What followed it counts for its trend only as far as it belongs to the lineage.
            known = with_trend(known, samples)
        checkpoints[name] = known
    return checkpoints


def _passed_over(known: CheckpointState, why: str, time_s: float) -> CheckpointState:
    known = replace(known, num_passed_over=known.num_passed_over + 1)
    code = code_of(why)
    if code == _MISFIT:
        return replace(known, quarantined=known.quarantined or why)
    if code.startswith(_BAD_BYTES):
        return replace(known, verified=False, error=why, doubted_s=time_s)
    return known


def without_misfits(state: RunState) -> RunState:
    """Return the state in which checkpoints that did not fit may be tried again: another spec came.

    A person's quarantine, or one for restarts that failed, stays.
    """
    freed = {
        name: replace(known, quarantined="")
        for name, known in state.checkpoints.items()
        if known.quarantined and code_of(known.quarantined) == _MISFIT
    }
    return replace(state, checkpoints={**state.checkpoints, **freed}) if freed else state


def code_of(why: str) -> str:
    """Return the code in "rank 2: [shard-size] ...", or the first word where no code stands."""
    _, bracket, rest = why.partition("[")
    return rest.partition("]")[0] if bracket else why.partition(":")[0]


def doubted(state: RunState, names: tuple[str, ...], why: str, time_s: float) -> RunState:
    """Return the state in which none of these checkpoints is trusted."""
    found = {
        name: replace(
            known,
            verified=False,
            error=why,
            doubted_s=time_s,
            num_passed_over=known.num_passed_over + 1,
        )
        for name in names
        if (known := state.checkpoints.get(name)) is not None
    }
    return replace(state, checkpoints={**state.checkpoints, **found})


def trained_on(state: RunState, running: AttemptState) -> RunState:
    """An attempt has made its first step from a checkpoint: a restart from it works."""
    checkpoint = running.resumed_from
    known = state.checkpoints.get(checkpoint)
    if known is None or running.tier == IN_MEMORY:
        return state
    known = replace(known, num_resumed=known.num_resumed + 1, num_failed=0)
    return replace(state, checkpoints={**state.checkpoints, checkpoint: known})


def with_failed_restart(state: RunState) -> RunState:
    """Return the state in which the checkpoint of an attempt that ends now without a step knows."""
    name = state.attempt and failed_restart(state.attempt, state.nodes)
    known = state.checkpoints.get(name) if name else None
    if known is None:
        return state
    known = replace(known, num_failed=known.num_failed + 1)
    return replace(state, checkpoints={**state.checkpoints, known.checkpoint: known})


def failed_restart(attempt: AttemptState, nodes: Mapping[str, NodeState]) -> str:
    """Return the checkpoint that a barren attempt speaks against, "" when it speaks against none.

    A lost or sick node, workers that never started, processes that were killed from outside and
    broken connections say nothing about a checkpoint.
    """
    is_barren = attempt.num_steps == 0 and not attempt.finished
    if not is_barren or attempt.lost_nodes or attempt.start_failures:
        return ""
    if any(nodes[name].evict is not None for name in attempt.plan.nodes if name in nodes):
        return ""
    own = [exit_ for exit_ in attempt.exits if exit_.code not in PEER_CODES]
    if attempt.exits and all(exit_.signal in _FROM_OUTSIDE for exit_ in own):
        return ""
    if attempt.tier == IN_MEMORY:
        # What was in memory says nothing of a checkpoint on disk, though it bears the same name.
        return ""
    if attempt.resumed_s is not None:
        return attempt.resumed_from
    broke_loading = any(exit_.phase == Phase.LOADING.name and not exit_.code for exit_ in own)
    return attempt.plan.checkpoints[0] if broke_loading and attempt.plan.checkpoints else ""


# --- the store -----------------------------------------------------------------------------------


def checkpoint_failed(state: RunState, e: ev.CheckpointFailed, time_s: float) -> RunState:
    """A save failed; training goes on."""
    state = replace(state, failed_saves=state.failed_saves + 1)
    known, is_current = state.save_trouble, state.running(e.attempt) is not None
    if not is_current or (known is not None and (e.attempt, e.step) <= (known.attempt, known.step)):
        # Several ranks may tell of one save, and so may one that told before it was cut off.
        return state
    if known is None or known.over_s is not None:
        return replace(state, save_trouble=SaveTrouble(e.attempt, e.step, e.error, time_s))
    more = replace(known, attempt=e.attempt, step=e.step, error=e.error, num=known.num + 1)
    return replace(state, save_trouble=more)


def checkpoint_verified(state: RunState, e: ev.CheckpointVerified, time_s: float) -> RunState:
    """A checkpoint was read back: it is sound, or it is not."""
    # Long work is done when its result is in, not when it was handed over.
    action = VerifyCheckpoint(e.checkpoint)
    state = replace(
        state, pending={name: d for name, d in state.pending.items() if d.action != action}
    )
    known = state.checkpoints.get(e.checkpoint)
    if known is None:
        return state
    if known.verified is False:
        asked_s, doubted_s = known.verify_asked_s, known.doubted_s
        if asked_s is None or doubted_s is None or asked_s <= doubted_s:
            # A reading begun before it was found unsound may still come in.
            return state
    known = replace(
        known,
        verified=not e.error,
        error=e.error,
        doubted_s=(known.doubted_s or time_s) if e.error else None,
    )
    return replace(state, checkpoints={**state.checkpoints, e.checkpoint: known})


def checkpoint_uploaded(state: RunState, e: ev.CheckpointUploaded, time_s: float) -> RunState:
    """A checkpoint is in the durable store, so every node that has a part of it got through.

    Each node tells of it; only the first says something new.
    """
    known = state.checkpoints.get(e.checkpoint)
    is_over = e.checkpoint in state.pruned or e.checkpoint in state.uploaded_early
    if is_over or (known is not None and known.uploaded_s is not None):
        return state
    state = replace(state, upload_trouble={})
    if known is None:
        early = {**state.uploaded_early, e.checkpoint: time_s}
        return replace(state, uploaded_early=dict(list(early.items())[-MAX_EARLY:]))
    known = replace(known, uploaded_s=time_s)
    return replace(state, checkpoints={**state.checkpoints, e.checkpoint: known})


def upload_failed(state: RunState, e: ev.UploadFailed, time_s: float) -> RunState:
    """The uploads of a node do not get on; training does."""
    return replace(state, upload_trouble={**state.upload_trouble, e.node: e})


def checkpoints_pruned(state: RunState, e: ev.CheckpointsPruned, time_s: float) -> RunState:
    """Retention deleted checkpoints. What one decision lets go may go bit by bit."""
    gone = frozenset(e.checkpoints)
    left = {n: c for n, c in state.checkpoints.items() if n not in gone}
    pending = {
        name: d
        for name, d in state.pending.items()
        if not isinstance(d.action, PruneCheckpoints)
        or not left.keys().isdisjoint(d.action.checkpoints)
    }
    return replace(
        state,
        checkpoints=left,
        trending=tuple(n for n in state.trending if n not in gone),
        pins={n: why for n, why in state.pins.items() if n not in gone},
        pending=pending,
        pruned=(*(n for n in state.pruned if n not in gone), *e.checkpoints)[-MAX_PRUNED:],
    )
