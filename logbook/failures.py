"""Failures counted by cause: how soon they were seen, how soon mended, how often they come."""

from __future__ import annotations

import statistics
from collections import Counter

import msgspec

from .costs import incident_gpu_s
from .state import RunState
from .summary import RunSummary


class FaultRow(msgspec.Struct, frozen=True):
    """All incidents of one fault. Times in seconds, None where nothing is known.

    gpu_s: an equal share of what each restart cost, where it answered several incidents.
    """

    fault: str
    count: int
    mttd_s: float | None
    mttr_s: float | None
    mtbf_s: float | None
    steps_lost: int
    gpu_s: float


def failures_by_fault(state: RunState, summary: RunSummary) -> list[FaultRow]:
    """Return the failures of a run by fault, the most expensive first."""
    sharing = Counter(i.attempt_after for i in state.incidents.values())
    faults: dict[str, list[str]] = {}
    for name, incident in state.incidents.items():
        faults.setdefault(incident.draft.fault, []).append(name)
    figures = {row.id: row for row in summary.incidents}
    rows = []
    for fault, names in faults.items():
        detect: list[float] = []
        gpu_s = lost = 0.0
        for name in names:
            incident, figure = state.incidents[name], figures[name]
            after = incident.attempt_after
            share = sharing[after] if after is not None else 1
            detect += [figure.detect_s] if figure.detect_s is not None else []
            gpu_s += incident_gpu_s(state, incident) / share
            lost += incident.steps_lost / share
        mended = [figures[n].recover_s for n in names]
        recover = [span_s for span_s in mended if span_s is not None]
        rows.append(
            FaultRow(
                fault=fault,
                count=len(names),
                mttd_s=statistics.fmean(detect) if detect else None,
                mttr_s=statistics.fmean(recover) if recover else None,
                mtbf_s=summary.wall_s / len(names) if summary.wall_s else None,
                steps_lost=round(lost),
                gpu_s=gpu_s,
            )
        )
    return sorted(rows, key=lambda row: (-row.gpu_s, row.fault))
