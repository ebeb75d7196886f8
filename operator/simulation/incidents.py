"""Recorded incidents as scenarios: what Midwatch decides beside what people did.

Each is played in the simulated world by its kind: a stretch that the scheduled rate does not bear,
a loss scale that collapses while the loss looks well, a spike that heals, a machine that goes. What
people did is read from the record; what it cost them is in it only as steps rolled back, so their
time is taken from a figure that the caller gives. Where a curve of the run is given, too, its own
detectors are replayed over it, and the lag is the curve's.
"""

from __future__ import annotations

import csv
import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from ...health.numerics.point import Point
from ...health.replay.replay import replay as replay_points
from ...logbook.decisions import StartAttempt
from ...logbook.errors import ConfigError
from ...logbook.state import Incident, RunState
from ..hindsight import Hindsight, default_spec
from . import failure_models as fm
from .scenario import LARGE, Scenario, Size, sized_scenario
from .simulate import Simulation
from .training import Fragility

HOUR_S = 3600.0
ONSET_STEP = 700
LAST_STEP = 1600
LOST_STEPS = 8000
GPUS = 992
NEAR_STEPS = 3000
_KINDS = ("hardware", "cluster_lost", "spike", "loss_scale_collapse")
_PANELS = {"ppl": "loss", "gnorm": "grad_norm", "actv_norm": "activation_norm"}


class Recorded(msgspec.Struct, frozen=True):
    """An incident as the record has it. step, rollback_steps: None where it does not say."""

    id: str
    run: str
    kind: str
    step: int | None
    action: str
    rollback_steps: int | None
    lr_factor: str
    outcome: str


class Row(msgspec.Struct, frozen=True):
    """One incident, both answers. lag_steps: from the onset to the decision.

    curve_lag_steps: from the step that the record gives to the first rollback called on the run's
        own curve; negative is sooner than people.
    gpu_hours, people_gpu_hours: lost to it in the simulation, and to people at their usual pace.
    """

    incident: Recorded
    decided: str
    lag_steps: int | None
    rolled_back_steps: int
    lr_factor: float
    recovered: bool
    gpu_hours: float
    people_gpu_hours: float
    curve_lag_steps: int | None = None

    @property
    def saved_gpu_hours(self) -> float:
        return self.people_gpu_hours - self.gpu_hours


def read_incidents(path: Path) -> list[Recorded]:
    """Return the incidents of a CSV with id, run, kind, step, human_action, rollback_steps, ...

    Raises: ConfigError[incidents-unreadable].
    """
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        found = [_recorded(row) for row in rows]
    except (OSError, UnicodeDecodeError, KeyError, csv.Error) as error:
        raise ConfigError(
            "incidents-unreadable",
            f"{path} holds no table of incidents: {error!r}.",
            remedy="Give a CSV with the columns id, run, kind, step, human_action, rollback_steps, "
            "lr_factor and outcome_class.",
        ) from error
    if not found:
        raise ConfigError("incidents-unreadable", f"{path} holds no incident.")
    return found


def _recorded(row: dict[str, str]) -> Recorded:
    return Recorded(
        id=row["id"],
        run=row["run"],
        kind=row["kind"],
        step=_first_number(row["step"]),
        action=row["human_action"],
        rollback_steps=_first_number(row["rollback_steps"]),
        lr_factor=row["lr_factor"],
        outcome=row["outcome_class"],
    )


def _first_number(text: str) -> int | None:
    found = re.search(r"(\d+)(k?)", text)
    return int(found[1]) * (1000 if found[2] else 1) if found else None


def play_incidents(
    incidents: Sequence[Recorded], curve: Sequence[Point] = (), people_hours: float = 12.1
) -> list[Row]:
    """Return each incident's answers. people_hours: what one stop usually cost people."""
    calls = _rollbacks_on(curve)
    return [_play(incident, calls, people_hours) for incident in incidents]


def _play(incident: Recorded, calls: Sequence[int], people_hours: float) -> Row:
    simulation = _Staged(incident)
    simulation.play()
    state = simulation.state
    answered = _answered(state)
    step_s, gpus = LARGE.step_s, GPUS
    again_steps = incident.rollback_steps or 0
    is_watched = incident.action.startswith("none")
    waited_hours = 0.0 if is_watched else people_hours
    people = (waited_hours + again_steps * step_s / HOUR_S) * gpus
    lost_s = simulation.lost_s()
    near = [at for at in calls if incident.step and abs(at - incident.step) <= NEAR_STEPS]
    is_opt = incident.run.startswith("OPT") and "hardware" not in incident.kind
    return Row(
        incident=incident,
        decided=_decided(answered, state),
        lag_steps=max(answered.step_before - ONSET_STEP, 0) if answered is not None else None,
        rolled_back_steps=answered.steps_lost if answered is not None else 0,
        lr_factor=_factor(answered),
        recovered=state.open_incidents == () and not state.paused,
        gpu_hours=lost_s / HOUR_S * gpus,
        people_gpu_hours=people,
        curve_lag_steps=min(near) - incident.step if near and is_opt and incident.step else None,
    )


class _Staged(Simulation):
    """One incident on a few nodes, at a step by which detectors know what is usual."""

    def __init__(self, incident: Recorded) -> None:
        self._kind = next((kind for kind in _KINDS if kind in incident.kind), "divergence")
        super().__init__(_scenario(LOST_STEPS if self._kind == "cluster_lost" else LAST_STEP), 0)
        physics = replace(self.world.setting.physics, **_physics(self._kind))
        self.world.setting = replace(self.world.setting, physics=physics)
        if self._kind in ("hardware", "cluster_lost"):
            self.world.timeline.later(ONSET_STEP * LARGE.step_s, self._strike)

    def _strike(self) -> None:
        if self._kind == "cluster_lost":
            self.nature.take_cluster(12 * HOUR_S)
        else:
            gang = self.world.live_gang
            self.nature.strike("recorded", fm.GPU, gang.plan.nodes[0] if gang is not None else "")

    def lost_s(self) -> float:
        """Seconds in which nothing was trained that stands, since the onset."""
        elapsed_s = self.timeline.elapsed_s
        return max(elapsed_s - self.state.step * LARGE.step_s, 0.0)


def _scenario(num_steps: int) -> Scenario:
    # Four nodes stand for all: what is decided does not depend on how many there are.
    size = Size(gpus=32, days=num_steps * LARGE.step_s / 86_400.0, spares=2, interval_steps=250)
    return sized_scenario(size, "none")


def _physics(kind: str) -> dict[str, object]:
    fragile = (Fragility(ONSET_STEP, ONSET_STEP + 300, 0.95),)
    if kind == "spike":
        return {"bumps": ((ONSET_STEP, 0.9),)}
    if kind == "loss_scale_collapse":
        return {"fragile": fragile, "loss_gain": 0.0}
    if kind == "divergence":
        return {"fragile": fragile}
    return {}


def _answered(state: RunState) -> Incident | None:
    """Return the first incident that was acted on, or else the first that was noted."""
    every = list(state.incidents.values())
    acted = [i for i in every if i.attempt_after is not None]
    return next(iter(acted or every), None)


def _decided(incident: Incident | None, state: RunState) -> str:
    if incident is None:
        return "nothing"
    if incident.attempt_after is None:
        return f"noted: {incident.draft.fault}"
    # Incidents that one restart answered together are one answer.
    num = len({i.attempt_after for i in state.incidents.values()} - {None})
    word = "rollback" if incident.draft.is_numeric else "restart"
    return f"{word}: {incident.draft.fault}" + (f" (x{num})" if num > 1 else "")


def _factor(incident: Incident | None) -> float:
    if incident is None:
        return 1.0
    actions = [decision.action for decision in incident.decisions]
    return math.prod(a.lr_factor for a in actions if isinstance(a, StartAttempt))


# --- the run's own curve -------------------------------------------------------------------------


def read_panels(path: Path) -> list[Point]:
    """Return the points of a digitised chart: CSV rows of panel, run, step, value_mid.

    Raises: ConfigError[curve-unreadable].
    """
    by_step: dict[int, dict[str, float]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                values = by_step.setdefault(round(float(row["step"])), {})
                name = _PANELS.get(row["panel"], row["panel"])
                value = float(row["value_mid"])
                values[name] = math.log(value) if row["panel"] == "ppl" else value
    except (OSError, UnicodeDecodeError, KeyError, ValueError, csv.Error) as error:
        raise ConfigError(
            "curve-unreadable",
            f"{path} holds no digitised panels: {error!r}.",
            remedy="Give a CSV with the columns panel, run, step and value_mid.",
        ) from error
    return [
        Point(
            step=step,
            loss=values.get("loss"),
            grad_norm=values.get("grad_norm"),
            activation_norm=values.get("activation_norm"),
            loss_scale=values.get("loss_scale"),
        )
        for step, values in sorted(by_step.items())
    ]


def _rollbacks_on(points: Sequence[Point]) -> list[int]:
    """Return the steps at which the detectors call for a rollback on a recorded curve."""
    spec = default_spec()
    hindsight = Hindsight(spec)
    rows = replay_points(hindsight.follow(points), spec.detectors, hindsight.decide)
    return [row.step for row in rows if row.severity == "rollback"]


def usual_gap_hours(path: Path) -> float:
    """Return the median gap between stretches of training, of a CSV with gap_hours_to_next.

    Raises: ConfigError[gaps-unreadable].
    """
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            gaps = [row["gap_hours_to_next"] for row in csv.DictReader(lines)]
        return statistics.median(float(gap) for gap in gaps if gap)
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise ConfigError("gaps-unreadable", f"{path} holds no gaps: {error!r}.") from error
