"""OPT-175B's two months as one scenario: what is recorded of its failures, and how many there were.

Times of launches are those of the run's own logbook, where it shows them; every launch followed a
failure. Sources: arXiv 2205.01068 section 2.5, and metaseq, projects/OPT/chronicles (27, 56 percent
and final update, images/logbook_screenshot.jpeg).
"""

from __future__ import annotations

from datetime import datetime

from msgspec.structs import replace

from . import failure_models as fm
from .conditions import Times
from .failure_models import FailureModel
from .people import Crew
from .scenario import DAY_S, LARGE, Scenario, Size, sized_scenario
from .traces import CLUSTER, Trace, TraceEntry
from .training import Fragility

BEGAN = datetime(2021, 11, 11)
OPT_GPUS = 992
OPT_DAYS = 56.0
OPT_STEP_S = 33 * DAY_S / 143_000
OPT_INTERVAL_STEPS = 250
OPT_LIVED_FRAC = 33.0 * 1024 / (OPT_DAYS * OPT_GPUS)
"""4.3e23 FLOPs are 33 ideal days on 1,024 A100; the run took 56 days on 992."""
OPT_GAP_HOURS = 12.1
"""Median of its 13 gaps between stretches of training, read off the published loss curve."""
OPT_RESTARTS = 90
# Launches 12.11 to 12.38; each came after a failure.
_LAUNCHES = (
    "11-19 09:30", "11-20 21:30", "11-21 15:00", "11-21 16:15", "11-22 07:45", "11-23 10:50",
    "11-24 13:00", "11-24 14:10", "11-24 15:30", "11-24 22:40", "11-24 23:18", "11-25 11:20",
    "11-25 11:35", "11-27 13:59", "11-27 21:10", "11-27 23:39", "11-28 01:50", "11-28 03:20",
    "11-28 09:41", "11-28 10:09", "11-28 12:28", "11-28 17:52", "11-28 18:34",
)  # fmt: skip
_FIVE_HOSTS = "12-06 12:00"
_CLUSTER_LOST = "12-21 09:00"
CLUSTER_DAYS = 2.0
# Where the rate was more than the run bore, and by what factor people had to lower it.
_TROUBLES = ((37_400, 0.5), (42_650, 0.9), (46_000, 0.84))


def opt_trace() -> Trace:
    """Return OPT's failures: those with a time at it, the rest of the 90 restarts to be drawn."""
    entries = [TraceEntry(_at_s(text)) for text in _LAUNCHES]
    entries.append(TraceEntry(_at_s(_FIVE_HOSTS), fm.HOST, hosts=5))
    entries.append(TraceEntry(_at_s(_CLUSTER_LOST), CLUSTER, for_s=CLUSTER_DAYS * DAY_S))
    num_drawn = OPT_RESTARTS - len(_LAUNCHES) - len(_TROUBLES) - 2
    source = (
        f"OPT-175B: recorded are the times of {len(_LAUNCHES)} restarts, five hosts at once, the "
        f"loss of the cluster and {len(_TROUBLES)} divergences; drawn are the times of {num_drawn} "
        "more, and of all single failures what failed and where"
    )
    fragile = tuple(Fragility(first, first + 400, factor + 0.01) for first, factor in _TROUBLES)
    return Trace("opt-trace", source, tuple(entries), num_drawn, OPT_DAYS * DAY_S, fragile)


def opt_scenario(
    times: Times = LARGE, spares: int = 8, crew: Crew | None = None, days: float = OPT_DAYS
) -> Scenario:
    """Return OPT-175B's run: 992 GPUs, 56 days, the 143,000 steps that it took in the end."""
    trace = opt_trace()
    size = Size(gpus=OPT_GPUS, days=days, spares=spares, interval_steps=OPT_INTERVAL_STEPS)
    model = FailureModel(trace.name, trace.source, ())
    scenario = sized_scenario(size, model, replace(times, step_s=OPT_STEP_S), crew)
    return replace(scenario, trace=trace)


def _at_s(text: str) -> float:
    when = datetime.strptime(f"{BEGAN.year}-{text}", "%Y-%m-%d %H:%M")
    return (when - BEGAN).total_seconds()
