"""How a recorded incident is staged: what its row says of onset, reach and cure, as a play.

Nothing is staged that the row does not say, but for what a play cannot do without; `Stage.assumed`
names that. The step of the record is not played: every onset lies where detectors know by then what
is usual.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import date

import msgspec
from msgspec.structs import replace

from . import failure_models as fm
from .conditions import Times
from .nature import FRAGILE_FACTOR
from .scenario import DAY_S, LARGE, Scenario, Size, sized_scenario
from .simulate import Simulation
from .training import NO_RETURN, Fragility, Physics

HOUR_S = 3600.0
ONSET_STEP = 700
CALM_STEPS = 200
AFTER_STEPS = 900
OUTAGE_HOURS = 12.0
GPUS_PER_NODE = 8
FEWEST_NODES = 4
SPARES = 2
USUAL_JUMP_NATS = 1.0
USUAL_HEALING_STEPS = 50
SLOW_HEALING_STEPS = 2000
ONE_PERCENT = 0.01
FAINT_GAIN = 0.05
_ARROWS = re.compile(r"\bloss (?:drifts up from )?~?([\d.]+)((?: (?:->|to) ~?[\d.]+)+)")
_OVER = re.compile(r"^[^;,]*? over ~?(\d+) it")
_DATES = re.compile(r"(\d{4})-(\d\d)-(\d\d)\.\.(?:(\d{4})-)?(?:(\d\d)-)?(\d\d)$")
NUMERIC, HARDWARE, CLUSTER = "numeric", "hardware", "cluster"


class Recorded(msgspec.Struct, frozen=True):
    """An incident as the record has it. step, rollback_steps: None where it does not say.

    gpus, step_s, gap_hours: of its run, None where the record does not say.
    """

    id: str
    run: str
    kind: str
    step: int | None
    action: str
    rollback_steps: int | None
    lr_factor: str
    outcome: str
    symptom: str = ""
    story: str = ""
    dates: str = ""
    gpus: int | None = None
    step_s: float | None = None
    gap_hours: float | None = None

    @property
    def family(self) -> str:
        """The model that was trained: runs of one family share what they can bear."""
        return self.run.partition(" ")[0]

    @property
    def lowered(self) -> bool:
        """Whether people lowered the rate."""
        factors = _numbers(self.lr_factor)
        return min(factors) < 1.0 if factors else bool(self.lr_factor.strip())


class Cure(msgspec.Struct, frozen=True):
    """What ends a divergence. bearable: the multiple of the schedule that heals, 0.0 for none.

    source: "recorded", or "assumed" where no row says what a lower rate would have done.
    """

    bearable: float
    source: str


class Stage(msgspec.Struct, frozen=True):
    """An incident as it is played.

    rise_nats, rise_steps: the onset of the loss; 0 steps: as fast as an unbearable rate drives it.
    heals_steps: a spike heals over so many steps, 0 where it is none. loss_gain: what the loss
    shows of it. num_times: so many failures or spikes. hosts: that go at once.
    span_s: in which the failures come. bad_on_return: machines that fail their checks afterwards.
    """

    what: str
    text: str
    rise_nats: float = 0.0
    rise_steps: int = 0
    heals_steps: int = 0
    loss_gain: float = 1.0
    num_times: int = 1
    hosts: int = 1
    spares: int = SPARES
    span_s: float = 0.0
    bad_on_return: int = 0
    cure: Cure | None = None
    assumed: tuple[str, ...] = ()


# --- reading a row -------------------------------------------------------------------------------


def stage_of(incident: Recorded, record: Sequence[Recorded]) -> Stage:
    """Return how an incident is played; record: all rows, for what they say of one another."""
    if "cluster_lost" in incident.kind:
        bad = _count(r"(\d+) machines failed", incident.symptom, 0)
        text = f"all machines gone for {OUTAGE_HOURS:g} h" + (", a bad one back" if bad else "")
        return Stage(CLUSTER, text, bad_on_return=min(bad, 1), assumed=("how long",))
    if "hardware" in incident.kind:
        return _hardware(incident)
    if "spike" in incident.kind:
        return _spike(incident)
    return _divergence(incident, cure_of(incident, record))


def cure_of(incident: Recorded, record: Sequence[Recorded]) -> Cure:
    """Return what the record knows of a lower rate: for this row, its step, or its family."""
    same = [incident, *(r for r in record if r.step and _is_same_place(r, incident))]
    for row in (r for r in same if r.lowered):
        if row.outcome == "recovered":
            factors = _numbers(row.lr_factor)
            return Cure(min(factors) + 0.01 if factors else FRAGILE_FACTOR, "recorded")
        if row.outcome == "failed":
            return Cure(0.0, "recorded")
    lowered = {r.outcome for r in record if r.family == incident.family and r.lowered}
    if "failed" in lowered and "recovered" not in lowered:
        return Cure(0.0, "recorded")
    return Cure(FRAGILE_FACTOR, "assumed")


def _is_same_place(one: Recorded, other: Recorded) -> bool:
    return one.family == other.family and one.step == other.step


def _hardware(incident: Recorded) -> Stage:
    told = incident.symptom
    num_times = _count(r"(\d+)\+? (?:restarts|hardware failures)", told, 1)
    hosts = _count(r"(\d+) hosts down", told, 1)
    spares = _count(r"buffer(?: pool)? of (\d+)", told, SPARES)
    span_s = _span_s(incident.dates) if num_times > 1 else 0.0
    words = [f"{num_times} failures" if num_times > 1 else "1 failure"]
    words += [f"{hosts} hosts at once"] * (hosts > 1)
    words.append(f"{spares} spares")
    assumed: tuple[str, ...] = () if "buffer" in told else ("spares",)
    if num_times > 1 and not span_s:
        span_s, assumed = num_times * OUTAGE_HOURS * HOUR_S, (*assumed, "how often")
    return Stage(
        HARDWARE, ", ".join(words), num_times=num_times, hosts=hosts, spares=spares,
        span_s=span_s, assumed=assumed,
    )  # fmt: skip


def _spike(incident: Recorded) -> Stage:
    nats, _ = _onset(incident.symptom)
    num_times = _count(r"(\d+) (?:earlier )?loss spikes", incident.symptom, 1)
    healing = _count(r"in ~?(\d+) it", incident.story, 0)
    # No row says whether a spike comes again where its steps are trained again: here it does.
    assumed: tuple[str, ...] = ("recurs",) if nats else ("recurs", "height")
    if not healing:
        healing = SLOW_HEALING_STEPS if "slow" in incident.story else USUAL_HEALING_STEPS
        assumed = (*assumed, "healing")
    nats = nats or USUAL_JUMP_NATS
    times = f"{num_times} x " if num_times > 1 else ""
    return Stage(
        NUMERIC, f"{times}+{nats:.2g} nats, heals in {healing}", rise_nats=nats,
        heals_steps=healing, num_times=num_times, assumed=assumed,
    )  # fmt: skip


def _divergence(incident: Recorded, cure: Cure) -> Stage:
    nats, steps = _onset(incident.symptom)
    gain = 1.0
    assumed: tuple[str, ...] = ()
    if "loss_scale_collapse" in incident.kind and "divergence" not in incident.kind:
        gain, text = 0.0, "scale collapses, loss flat"
    elif "grad_norm" in incident.kind:
        gain, text = FAINT_GAIN, "norms drift, loss faint"
    else:
        text = f"+{nats:.2g} nats" if nats else "diverges"
    if nats and steps:
        text += f" over {steps}"
    else:
        assumed = ("onset",)
    if cure.source == "assumed":
        assumed = (*assumed, "cure")
    return Stage(
        NUMERIC, text, rise_nats=nats, rise_steps=steps, loss_gain=gain, cure=cure, assumed=assumed
    )


def _onset(symptom: str) -> tuple[float, int]:
    """Return by how many nats the loss rose, and over how many steps; 0 where nothing is said."""
    found = _ARROWS.search(symptom)
    if found is None:
        return 0.0, 0
    first, values = float(found[1]), _numbers(found[2].replace("->", ",").replace("to", ","))
    over = _OVER.search(symptom[found.start() :])
    return max(max(values) - first, 0.0), int(over[1]) if over else 0


def _numbers(text: str) -> list[float]:
    words = [word.strip(" ~") for word in text.split(",")]
    return [float(word) for word in words if re.fullmatch(r"\d+(?:\.\d+)?", word)]


def _count(pattern: str, text: str, otherwise: int) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else otherwise


def _span_s(dates: str) -> float:
    found = _DATES.search(dates)
    if found is None:
        return 0.0
    year, month, day = (int(found[i]) for i in (1, 2, 3))
    last = date(int(found[4] or year), int(found[5] or month), int(found[6]))
    return max((last - date(year, month, day)).days, 0) * DAY_S


# --- playing it ----------------------------------------------------------------------------------


class Staged(Simulation):
    """One incident on a few nodes, at a step by which detectors know what is usual."""

    def __init__(self, stage: Stage, step_s: float | None = None) -> None:
        times = replace(LARGE, step_s=step_s or LARGE.step_s)
        super().__init__(scenario_of(stage, times), 0)
        self.stage = stage
        physics = physics_of(stage)
        self.world.setting = replace(self.world.setting, physics=physics)
        self._pace_s = 0.0
        self._onset = (0.0, 0)

    def play_out(self) -> None:
        """Let the incident take its course."""
        self.run_until(lambda state: state.step >= CALM_STEPS, self.scenario.horizon_s)
        first = self._where()
        self.run_until(lambda state: state.step >= ONSET_STEP, self.scenario.horizon_s)
        self._onset = self._where()
        self._pace_s = (self._onset[0] - first[0]) / max(self._onset[1] - first[1], 1)
        if self.stage.what != NUMERIC:
            self._strike()
        left_s = self.scenario.horizon_s - self.timeline.elapsed_s
        self.run_until(lambda state: state.end is not None, left_s)

    @property
    def lost_s(self) -> float:
        """Seconds since the onset in which nothing was trained that stands.

        Against the run's own pace before it, so that what saves and copies take is not in it.
        """
        (now_s, step), (onset_s, onset_step) = self._where(), self._onset
        return max(now_s - onset_s - (step - onset_step) * self._pace_s, 0.0)

    @property
    def is_well(self) -> bool:
        """Whether it trains at the end, with nothing open and nothing left of the sickness."""
        state, gang = self.state, self.world.live_gang
        if gang is None or state.open_incidents or state.paused:
            return False
        return gang.is_training and gang.weights.sickness < FAINT_GAIN

    def _where(self) -> tuple[float, int]:
        return self.timeline.elapsed_s, self.state.step

    def _strike(self) -> None:
        stage, nature = self.stage, self.nature
        if stage.what == CLUSTER:
            names = self._nodes()[: stage.bad_on_return]
            self.world.trouble.sick.update(dict.fromkeys(names, "memory"))
            nature.take_cluster(OUTAGE_HOURS * HOUR_S)
        elif stage.hosts > 1:
            for node in self._nodes()[: stage.hosts]:
                nature.strike("recorded", fm.HOST, node)
        else:
            for index in range(stage.num_times):
                self.timeline.later(index * stage.span_s / stage.num_times, self._strike_one)

    def _strike_one(self) -> None:
        nodes = self._nodes()
        if nodes:
            self.nature.strike("recorded", fm.GPU, nodes[0])

    def _nodes(self) -> tuple[str, ...]:
        gang = self.world.live_gang
        return gang.plan.nodes if gang is not None else ()


def scenario_of(stage: Stage, times: Times) -> Scenario:
    """Return the run in which an incident is played: few nodes, but more than go at once."""
    # What is decided does not depend on how many nodes there are, but on how many are left.
    nodes = max(FEWEST_NODES, stage.hosts + 1)
    healed = max(stage.heals_steps * (stage.num_times > 1) * stage.num_times, 2 * stage.rise_steps)
    onset_s = (ONSET_STEP + AFTER_STEPS + healed) * times.step_s
    waits = stage.what == CLUSTER or stage.hosts > 1
    hardware_s = stage.span_s + 2 * OUTAGE_HOURS * HOUR_S * waits
    size = Size(
        gpus=nodes * GPUS_PER_NODE,
        days=(onset_s + hardware_s) / DAY_S,
        spares=stage.spares,
        interval_steps=250,
    )
    return sized_scenario(size, "none", times)


def physics_of(stage: Stage) -> Physics:
    """Return what the weights suffer in an incident."""
    if stage.what != NUMERIC:
        return Physics()
    if stage.heals_steps:
        apart = 2 * stage.heals_steps
        at = [ONSET_STEP + index * apart for index in range(stage.num_times)]
        return Physics(
            bumps=tuple((step, stage.rise_nats) for step in at),
            no_return=math.inf,
            heal=ONE_PERCENT ** (1.0 / stage.heals_steps),
        )
    bearable = stage.cure.bearable if stage.cure is not None else FRAGILE_FACTOR
    climb = stage.rise_nats / stage.rise_steps if stage.rise_steps else 0.0
    # What no rate cures does not end by itself either.
    last_step = ONSET_STEP + 300 + 2 * stage.rise_steps if bearable else 10**9
    return Physics(
        fragile=(Fragility(ONSET_STEP, last_step, bearable, climb),),
        loss_gain=stage.loss_gain,
        no_return=max(stage.rise_nats if stage.rise_steps else 0.0, NO_RETURN),
    )
