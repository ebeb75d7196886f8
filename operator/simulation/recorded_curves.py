"""Digitised curves of recorded runs: what detectors call on them, and when a run stood still."""

from __future__ import annotations

import csv
import math
import re
import statistics
from pathlib import Path

import msgspec

from ...health.numerics.point import Point
from ...health.replay.replay import replay as replay_points
from ...logbook.errors import ConfigError
from ...logbook.findings import Severity
from ..hindsight import Hindsight, default_spec

NEAR_STEPS = 1000
"""Further from a step of the record, a call on the curve is not taken for its sight."""
_PANELS = {"ppl": "loss", "gnorm": "grad_norm", "actv_norm": "activation_norm"}
_CALLS = (Severity.WARN.value, Severity.ROLLBACK.value)


class Curve(msgspec.Struct, frozen=True):
    """A digitised curve. runs: the lineages that it shows, as "12" of run12.33."""

    runs: frozenset[str]
    points: tuple[Point, ...]

    def shows(self, run: str, step: int | None) -> bool:
        """Whether a step of a run, named as in a table of incidents, lies on this curve."""
        if step is None or not self.points or not self.runs & lineages(run):
            return False
        return self.points[0].step <= step <= self.points[-1].step


class Call(msgspec.Struct, frozen=True):
    """What a detector called on a curve, at which step."""

    step: int
    kind: str
    severity: str


def lineages(run: str) -> frozenset[str]:
    """Return the numbers before the dots of a run's name: {"12"} of "OPT-175B 12.43->12.44"."""
    return frozenset(re.findall(r"(\d+)\.(?:\d|x)", run))


def read_panels(path: Path) -> Curve:
    """Return a digitised chart: CSV rows of panel, run, step, value_mid.

    Raises: ConfigError[curve-unreadable].
    """
    by_step: dict[int, dict[str, float]] = {}
    runs: set[str] = set()
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                values = by_step.setdefault(round(float(row["step"])), {})
                name = _PANELS.get(row["panel"], row["panel"])
                value = float(row["value_mid"])
                values[name] = math.log(value) if row["panel"] == "ppl" else value
                runs.update(lineages(row["run"]))
    except (OSError, UnicodeDecodeError, KeyError, ValueError, csv.Error) as error:
        raise ConfigError(
            "curve-unreadable",
            f"{path} holds no digitised panels: {error!r}.",
            remedy="Give a CSV with the columns panel, run, step and value_mid.",
        ) from error
    points = tuple(
        Point(
            step=step,
            loss=values.get("loss"),
            grad_norm=values.get("grad_norm"),
            activation_norm=values.get("activation_norm"),
            loss_scale=values.get("loss_scale"),
        )
        for step, values in sorted(by_step.items())
    )
    return Curve(frozenset(runs), points)


def calls_on(curve: Curve) -> list[Call]:
    """Return what the detectors call on a curve, a warning or worse, in order."""
    spec = default_spec()
    hindsight = Hindsight(spec)
    rows = replay_points(hindsight.follow(curve.points), spec.detectors, hindsight.decide)
    return [Call(row.step, row.kind, row.severity) for row in rows if row.severity in _CALLS]


def first_near(calls: list[Call], step: int) -> Call | None:
    """Return the first call within NEAR_STEPS of a step, None where there is none."""
    return next((call for call in calls if abs(call.step - step) <= NEAR_STEPS), None)


def usual_gap_hours(path: Path) -> float:
    """Return the median gap between stretches of training, of a CSV with gap_hours_to_next.

    Raises: ConfigError[gaps-unreadable].
    """
    return statistics.median(read_gaps_hours(path))


def read_gaps_hours(path: Path) -> list[float]:
    """Return the gaps between stretches of training, of a CSV with gap_hours_to_next, in order.

    Raises: ConfigError[gaps-unreadable].
    """
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            texts = [row["gap_hours_to_next"] for row in csv.DictReader(lines)]
        gaps = [float(text) for text in texts if text]
        if not gaps or not all(0.0 <= gap < math.inf for gap in gaps):
            raise ValueError("no gap, or one that is no length of time")
    except (OSError, UnicodeDecodeError, KeyError, ValueError, csv.Error) as error:
        raise ConfigError(
            "gaps-unreadable",
            f"{path} holds no gaps: {error!r}.",
            remedy="Give a CSV with the column gap_hours_to_next.",
        ) from error
    return gaps
