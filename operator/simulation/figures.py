"""The figures of a simulated run, and of several with their confidence intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import msgspec

from ...logbook.ledger import Ledger
from ...logbook.state import Incident, RunState
from ...logbook.summary import summarize
from .nature import Strike
from .people import People
from .world import World

HOUR_S = 3600.0
SOON_S = HOUR_S
"""An incident that opens later than this is not taken for the sight of a failure."""
# Two-sided 95 % quantiles of Student's t by degrees of freedom; beyond them the normal one.
_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_T_95_TAIL = ((15, 2.131), (20, 2.086), (30, 2.042), (60, 2.0))
_Z_95 = 1.96


class Figures(msgspec.Struct, frozen=True):
    """What one simulated run amounts to.

    ettr_frac: productive over wall time, as `midwatch status` has it. gpu_hours: by cause.
    failures: that took a rank with them. unseen: those of them that no incident is the sight of.
    mttd_s: from a failure to its first sign; mttr_s: from there to the first new step.
    pages: how often somebody had to look. *_bytes: checkpoint traffic. ticks, records, decisions:
    the work of the controller.
    """

    seed: int
    status: str
    step: int
    wall_s: float
    ettr_frac: float
    gpu_hours: dict[str, float]
    failures: int
    unseen: int
    restarts: int
    rollbacks: int
    pages: int
    mttd_s: float | None
    mttr_s: float | None
    steps_lost: int
    saved_bytes: float
    loaded_bytes: float
    memory_bytes: float
    ticks: int
    records: int
    decisions: int
    replaced: int


class Mean(msgspec.Struct, frozen=True):
    """A mean over seeds and half the width of its 95 % confidence interval (inf for one seed)."""

    value: float
    half: float
    num: int

    @property
    def low(self) -> float:
        return self.value - self.half

    @property
    def high(self) -> float:
        return self.value + self.half


def figures_of(
    seed: int, state: RunState, ledger: Ledger, world: World, strikes: Sequence[Strike]
) -> Figures:
    """Return the figures of a run as it stands; People and ticks are filled in by the caller."""
    now_s = world.timeline.now_s()
    summary = summarize(state, now_s)
    # A simulated controller turns to the very end, whether or not it has anything to record.
    totals = ledger.totals(now_s, now_s)
    size = world.setting.sizes.checkpoint_bytes
    detected = detection_times_s(strikes, list(state.incidents.values()))
    failures = sum(strike.hurts for strike in strikes)
    return Figures(
        seed=seed,
        status=summary.status,
        step=state.step,
        wall_s=summary.wall_s,
        ettr_frac=summary.ettr_frac or 0.0,
        gpu_hours={cause.value: gpu_s / HOUR_S for cause, gpu_s in totals.items()},
        failures=failures,
        unseen=failures - len(detected),
        restarts=max(state.num_attempts - 1, 0),
        rollbacks=len(state.rollbacks),
        pages=0,
        mttd_s=statistics.fmean(detected) if detected else None,
        mttr_s=summary.mttr_s,
        steps_lost=summary.steps_lost,
        saved_bytes=float(len(world.disk.ever) * size),
        loaded_bytes=float(world.disk.loads_total * size),
        memory_bytes=float(world.memory.copies_total * size),
        ticks=0,
        records=state.seq,
        decisions=state.num_decisions,
        replaced=0,
    )


def paid_frac(figures: Figures) -> float:
    """Return the productive share of all GPU-hours paid for, idle spares included."""
    paid = sum(figures.gpu_hours.values())
    return figures.gpu_hours["productive"] / paid if paid > 0 else 0.0


def with_people(figures: Figures, people: People, ticks: int) -> Figures:
    """Return the figures with what people had to do, and how often the controller turned."""
    return msgspec.structs.replace(
        figures, pages=people.pages_total, replaced=people.replaced_total, ticks=ticks
    )


def detection_times_s(strikes: Sequence[Strike], incidents: Sequence[Incident]) -> list[float]:
    """Return, for every failure that hurt and was answered, how long it went unseen.

    A failure is matched with the first incident after it, on its node where the incident names
    one; an incident that several failures opened counts for the first.
    """
    found: list[float] = []
    taken: set[str] = set()
    for strike in strikes:
        if not strike.hurts:
            continue
        for incident in incidents:
            draft = incident.draft
            after_s = draft.seen_s - strike.time_s
            is_there = draft.node in (None, "", strike.node) or not strike.node
            if draft.id in taken or not 0.0 <= after_s < SOON_S or not is_there:
                continue
            taken.add(draft.id)
            found.append(after_s)
            break
    return found


def mean_of(values: Sequence[float]) -> Mean:
    """Return the mean of some values and its 95 % confidence interval (Student's t)."""
    value = statistics.fmean(values)
    if len(values) < 2:
        return Mean(value, math.inf, len(values))
    error = statistics.stdev(values) / math.sqrt(len(values))
    return Mean(value, _t_95(len(values) - 1) * error, len(values))


def _t_95(degrees: int) -> float:
    if degrees <= len(_T_95):
        return _T_95[degrees - 1]
    return next((t for upto, t in _T_95_TAIL if degrees <= upto), _Z_95)
