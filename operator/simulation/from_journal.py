"""What a run's own journal says of how often it fails and how long it takes to come back."""

from __future__ import annotations

import statistics

from msgspec.structs import replace

from ...logbook.decisions import IncidentDraft
from ...logbook.errors import ConfigError
from ...logbook.state import RunState
from ...logbook.summary import summarize
from . import failure_models as fm
from .conditions import Times
from .failure_models import Cause, FailureModel

HOUR_S = 3600.0
_EFFECTS = {
    "worker-killed": fm.KILL,
    "worker-failed": fm.SOFTWARE,
    "peers-lost": fm.KILL,
    "node-lost": fm.HOST,
    "hang": fm.HANG,
    "start-failed": fm.HOST,
    "start-timeout": fm.HANG,
    "cross-rank-outlier": fm.CORRUPTION,
}
_HOST_LOST = "node-lost"
# What the ranks of a lost node or GPU say of it, and what their peers do, are signs of the same.
_SIGNS = ("hang", "start-failed", "start-timeout", "worker-failed", "worker-killed", "peers-lost")


def _failures(state: RunState) -> list[list[IncidentDraft]]:
    """Return, for every restart that answered a failure, the incidents that it answered."""
    found: dict[int, list[IncidentDraft]] = {}
    for incident in state.incidents.values():
        if incident.attempt_after is not None:
            found.setdefault(incident.attempt_after, []).append(incident.draft)
    return list(found.values())


def _vagueness(draft: IncidentDraft) -> int:
    """Return how little an incident says of the cause: a GPU's own word says most."""
    if draft.fault in _SIGNS:
        return 3 + _SIGNS.index(draft.fault)
    if draft.is_numeric and draft.node is None:
        return 2
    return int(draft.fault == _HOST_LOST)


def model_of(state: RunState, now_s: float) -> FailureModel:
    """Return a failure model with the rates that a run has shown.

    Raises: ConfigError[no-failures] when it has none to show.
    """
    summary = summarize(state, now_s)
    mesh = state.spec.get("mesh") or {}
    gpus = int(mesh.get("dp_shard") or 1) * int(mesh.get("tp") or 1)
    gpu_hours = summary.wall_s / HOUR_S * gpus
    counts: dict[tuple[str, str], int] = {}
    numeric, groups = 0, []
    for drafts in _failures(state):
        draft = min(drafts, key=_vagueness)
        hosts = {each.node for each in drafts if each.fault == _HOST_LOST}
        if draft.is_numeric and draft.node is None:
            numeric += 1
        elif len(hosts) > 1:
            groups.append(len(hosts))
        else:
            kind = (draft.fault, _EFFECTS.get(draft.fault, fm.GPU))
            counts[kind] = counts.get(kind, 0) + 1
    if not (counts or groups) or gpu_hours <= 0:
        raise ConfigError(
            "no-failures",
            f"the journal of {state.run} holds no failure that was answered by a restart, in "
            f"{gpu_hours:.0f} GPU-hours.",
            remedy="Take a published model: --model.",
        )
    causes = tuple(Cause(fault, effect, n / gpu_hours) for (fault, effect), n in counts.items())
    total = sum(counts.values()) + len(groups)
    return FailureModel(
        name="journal",
        source=f"{state.run}: {total} failures in {gpu_hours:.0f} GPU-hours",
        causes=causes,
        per_hour_groups=len(groups) * HOUR_S / summary.wall_s,
        groups_gpus=gpus,
        group_max=max(groups, default=2),
        divergences_per_1000_steps=1000.0 * numeric / max(state.steps_total, 1),
    )


def times_of(state: RunState, times: Times) -> Times:
    """Return times with what a run has measured in the place of what was assumed."""
    step_s = state.step_median.value
    saves = state.recent_saves
    attempt = state.attempt
    known: dict[str, float] = {}
    if step_s:
        known["step_s"] = step_s
    if saves:
        known["blocked_s"] = statistics.median(save.blocked_s for save in saves)
        known["save_s"] = statistics.median(save.save_s for save in saves)
    if attempt is not None and attempt.load_s > 0:
        known["load_s"] = attempt.load_s
    return replace(times, **known)
