"""Failures counted by cause: how soon they were seen, how soon mended, how often they come."""

from __future__ import annotations

import statistics
from collections import Counter

import msgspec

from .chronicle import Chronicle
from .costs import incident_gpu_s
from .ledger import Cause
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


def failures_by_fault(chronicle: Chronicle, summary: RunSummary, end_s: float) -> list[FaultRow]:
    """Return the failures of a run by fault, the most expensive first."""
    state = chronicle.state
    dark_s = _dark_s(chronicle, end_s)
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
            seen_s = figure.detect_s
            if seen_s is None and after is not None and not incident.draft.is_numeric:
                seen_s = dark_s.get(incident.attempt_before)
            detect += [seen_s] if seen_s is not None else []
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


def _dark_s(chronicle: Chronicle, end_s: float) -> dict[int, float]:
    """Return by attempt how long it was from its last completed step to its first sign."""
    found: dict[int, float] = {}
    for stretch in chronicle.ledger.stretches(end_s):
        if stretch.cause is Cause.DETECT:
            found[stretch.attempt] = found.get(stretch.attempt, 0.0) + stretch.span_s
    return found
