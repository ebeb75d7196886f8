"""What a run amounts to so far: ETTR, times to detect and to recover, what was lost."""

from __future__ import annotations

import statistics

import msgspec

from .energy import AttemptEnergy, EnergySummary, summarize_energy
from .events import FaultInjected
from .state import Incident, RunState

FAULT_OF_INJECTION = {
    "kill-worker": ("worker-killed", "peers-lost"),
    "kill-controller": ("controller-lost",),
    "kill-agent": ("node-lost",),
    "stop-worker": ("hang",),
    "raise-lr": (),
}


class IncidentRow(msgspec.Struct, frozen=True):
    """One incident in figures.

    detect_s: to the first sign of it, from the strike where it was planned, else from its onset
        where it made an attempt end or shows in the numbers.
    recover_s: from the first sign to the first new step. Both None while unknown.
    """

    id: str
    fault: str
    title: str
    step: int
    detect_s: float | None
    recover_s: float | None
    steps_lost: int
    outcome: str


class RunSummary(msgspec.Struct, frozen=True):
    """The figures of a run. Times in seconds.

    ettr_frac: productive time over wall time, where productive time is the steps that survive in
        the lineage times their median healthy step time, and the wall runs from submission.
    energy: measured by GPUs, and what their declared power amounts to.
    validation_*: the newest measurement on held-out text of the lineage, None before there is one;
        loss in nats/token, perplexity its exponential.
    """

    run: str
    status: str
    step: int
    loss: float | None
    attempts: int
    wall_s: float
    productive_s: float
    ettr_frac: float | None
    steps_trained: int
    steps_lost: int
    mttd_s: float | None
    mttr_s: float | None
    mtbf_s: float | None
    incidents: tuple[IncidentRow, ...]
    energy: EnergySummary = EnergySummary()
    validation_step: int | None = None
    validation_loss: float | None = None
    validation_perplexity: float | None = None


def summarize(state: RunState, now_s: float) -> RunSummary:
    """Return the figures of a run as of now_s (its end, once it has ended)."""
    end_s = state.ended_s if state.ended_s is not None else now_s
    wall_s = max(end_s - state.submitted_s, 0.0) if state.submitted_s else 0.0
    median_s = state.step_median.value
    # A median of a run whose pace has changed can ask for more time than there was.
    productive_s = min(state.step * median_s, wall_s) if median_s is not None else 0.0
    injected = _match_injections(state)
    rows = tuple(_row(incident, injected) for incident in state.incidents.values())
    failures = [i for i in state.incidents.values() if i.attempt_after is not None]
    detect = [row.detect_s for row in rows if row.detect_s is not None]
    recover = [row.recover_s for row in rows if row.recover_s is not None]
    validation = state.validation
    return RunSummary(
        run=state.run,
        status=state.status,
        step=state.step,
        loss=state.last.loss if state.last is not None else None,
        attempts=state.num_attempts,
        wall_s=wall_s,
        productive_s=productive_s,
        ettr_frac=productive_s / wall_s if wall_s > 0 else None,
        steps_trained=state.steps_total,
        steps_lost=state.steps_lost,
        mttd_s=statistics.fmean(detect) if detect else None,
        mttr_s=statistics.fmean(recover) if recover else None,
        mtbf_s=wall_s / len(failures) if failures else None,
        incidents=rows,
        energy=_energy(state, end_s),
        validation_step=validation.step if validation is not None else None,
        validation_loss=validation.loss if validation is not None else None,
        validation_perplexity=validation.perplexity if validation is not None else None,
    )


def _energy(state: RunState, end_s: float) -> EnergySummary:
    energy, running = state.energy, state.attempt
    if running is not None:
        span_s = max(end_s - running.started_s, 0.0)
        so_far = AttemptEnergy(rank_s=running.plan.mesh.world_size * span_s)
        energy = energy.add(running.number, so_far)
    nodes = state.spec.get("nodes") or {}
    return summarize_energy(energy, float(nodes.get("gpu_watts") or 0.0))


def _row(incident: Incident, injected: dict[str, FaultInjected]) -> IncidentRow:
    draft = incident.draft
    fault = injected.get(draft.id)
    recovered_s = incident.recovered_s
    began_s = fault.injected_s if fault is not None else None
    if began_s is None and (draft.is_numeric or incident.attempt_after is not None):
        began_s = incident.onset_s
    return IncidentRow(
        id=draft.id,
        fault=draft.fault,
        title=draft.title,
        step=draft.step,
        detect_s=max(draft.seen_s - began_s, 0.0) if began_s is not None else None,
        recover_s=recovered_s - draft.seen_s if recovered_s is not None else None,
        steps_lost=incident.steps_lost,
        outcome=incident.outcome or ("open" if incident.is_open else ""),
    )


def _match_injections(state: RunState) -> dict[str, FaultInjected]:
    """Each planned fault with the first incident of its kind that was seen after it."""
    matched: dict[str, FaultInjected] = {}
    for fault in sorted(state.faults, key=lambda f: f.injected_s):
        kinds = FAULT_OF_INJECTION.get(fault.fault, ("",))
        for incident in state.incidents.values():
            draft = incident.draft
            fits = draft.fault in kinds or (not kinds and draft.is_numeric)
            if fits and draft.id not in matched and draft.seen_s >= fault.injected_s - 0.5:
                matched[draft.id] = fault
                break
    return matched
