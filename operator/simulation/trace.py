"""Recorded failures, struck again: OPT-175B's two months as one scenario.

Times of launches are those of the run's own logbook, where it shows them; every launch followed a
failure. Sources: arXiv 2205.01068 section 2.5, and metaseq, projects/OPT/chronicles (27, 56 percent
and final update, images/logbook_screenshot.jpeg).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime

import msgspec
from msgspec.structs import replace

from ..runtime.names import node_names
from . import failure_models as fm
from .conditions import Times
from .failure_models import FailureModel
from .nature import Strike
from .scenario import DAY_S, LARGE, Scenario, Size, sized_scenario
from .simulate import Outcome, Simulation
from .training import Fragility

BEGAN = datetime(2021, 11, 11)
OPT_DAYS = 56.0
OPT_STEP_S = 33 * DAY_S / 143_000
OPT_LIVED_FRAC = 33.0 * 1024 / (56.0 * 992)
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
# What failed on most days was a GPU or its host.
_EFFECTS = (fm.GPU, fm.GPU, fm.GPU, fm.HOST, fm.SOFTWARE, fm.NETWORK)


class TraceEntry(msgspec.Struct, frozen=True):
    """A failure at a virtual second; effect as in strikes.EFFECTS, or "cluster"."""

    at_s: float
    effect: str
    node: str


def opt_trace(names: Sequence[str], seed: int) -> list[TraceEntry]:
    """Return OPT's failures: those with a time at it, the rest of the 90 restarts spread evenly."""
    rng = random.Random(f"{seed}/trace")
    times_s = [_at_s(text) for text in _LAUNCHES]
    rest = OPT_RESTARTS - len(times_s) - len(_TROUBLES) - 2
    times_s += [rng.uniform(0.0, OPT_DAYS * DAY_S) for _ in range(rest)]
    entries = [TraceEntry(t, rng.choice(_EFFECTS), rng.choice(names)) for t in times_s]
    entries += [TraceEntry(_at_s(_FIVE_HOSTS), fm.HOST, name) for name in rng.sample(names, 5)]
    entries.append(TraceEntry(_at_s(_CLUSTER_LOST), "cluster", ""))
    return sorted(entries, key=lambda entry: entry.at_s)


def opt_scenario(times: Times = LARGE, spares: int = 8) -> Scenario:
    """Return OPT-175B's run: 992 GPUs, 56 days, the 143,000 steps that it took in the end."""
    size = Size(gpus=992, days=OPT_DAYS, spares=spares, interval_steps=250)
    model = FailureModel("opt-trace", "OPT-175B's own restart times and counts", ())
    return sized_scenario(size, model, replace(times, step_s=OPT_STEP_S))


class TraceSimulation(Simulation):
    """A run under recorded failures instead of drawn ones."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        super().__init__(scenario, seed)
        world = self.world
        fragile = tuple(Fragility(first, first + 400, factor + 0.01) for first, factor in _TROUBLES)
        world.setting = replace(
            world.setting, physics=replace(world.setting.physics, fragile=fragile)
        )
        names = node_names(scenario.spec.num_nodes, scenario.spec.nodes.spares)
        for entry in opt_trace(names, seed):
            world.timeline.later(entry.at_s, self._striking(entry))

    def _striking(self, entry: TraceEntry) -> _Striker:
        return _Striker(self, entry)


class _Striker:
    def __init__(self, simulation: TraceSimulation, entry: TraceEntry) -> None:
        self._simulation = simulation
        self._entry = entry

    def __call__(self) -> None:
        nature, entry = self._simulation.nature, self._entry
        if entry.effect == "cluster":
            nature.take_cluster(CLUSTER_DAYS * DAY_S)
        else:
            nature.strike(entry.effect, entry.effect, entry.node)


class Comparison(msgspec.Struct, frozen=True):
    """The run as it was lived, and as it would have gone. gpu_hours_saved: over its 56 days."""

    lived_ettr_frac: float
    outcome: Outcome
    strikes: tuple[Strike, ...]
    gpu_hours_saved: float


def compare_opt(seed: int = 0) -> Comparison:
    """Return OPT's two months as lived, against the same failures under Midwatch."""
    scenario = opt_scenario()
    simulation = TraceSimulation(scenario, seed)
    outcome = simulation.play()
    gained = outcome.figures.ettr_frac - OPT_LIVED_FRAC
    hours = gained * OPT_DAYS * 24 * scenario.spec.world_size
    return Comparison(OPT_LIVED_FRAC, outcome, tuple(simulation.nature.strikes), hours)


def _at_s(text: str) -> float:
    when = datetime.strptime(f"{BEGAN.year}-{text}", "%Y-%m-%d %H:%M")
    return (when - BEGAN).total_seconds()
