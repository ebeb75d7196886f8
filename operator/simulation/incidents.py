"""Recorded incidents as scenarios: what Midwatch decides beside what people did.

Each is played in the simulated world as its row describes it (staging.py). What people did is read
from the record; what it cost them is in it only as steps rolled back, so their time is taken from
what is known of the run: its GPUs, its step and its usual gap. Where a curve of the run is given,
too, the detectors are replayed over it, and what they call there first is told beside.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ...logbook.decisions import StartAttempt
from ...logbook.errors import ConfigError
from ...logbook.state import Incident, RunState
from .opt_run import OPT_GAP_HOURS, OPT_GPUS, OPT_STEP_S
from .recorded_curves import Call, Curve, calls_on, first_near
from .staging import HOUR_S, ONSET_STEP, Recorded, Stage, Staged, stage_of

NOT_CALLED = "not called"


class KnownRun(msgspec.Struct, frozen=True):
    """What is known of a recorded run. gap_hours: the usual time between two stretches of it."""

    gpus: int
    step_s: float
    gap_hours: float


RUNS = {"OPT-175B": KnownRun(OPT_GPUS, OPT_STEP_S, OPT_GAP_HOURS)}
"""By family. A table of incidents may say it of others in columns gpus, step_s and gap_hours."""


class Row(msgspec.Struct, frozen=True):
    """One incident, both answers. lag_steps: from the onset to the decision.

    curve_call: what was called first on the run's own curve near the step that the record gives,
        None where no such curve was given; curve_lag_steps: how much later than that step.
    gpu_hours, people_gpu_hours: lost to it in the simulation, and to people at their usual pace;
        None where the record knows too little of the run, or the simulated one does not recover.
    """

    incident: Recorded
    stage: Stage
    decided: str
    lag_steps: int | None
    rolled_back_steps: int
    lr_factor: float
    recovered: bool
    gpu_hours: float | None
    people_gpu_hours: float | None
    curve_call: str | None = None
    curve_lag_steps: int | None = None

    @property
    def is_assumed(self) -> bool:
        """Whether it recovers only because a lower rate is taken to cure it."""
        return self.stage.cure is not None and self.stage.cure.source == "assumed"

    @property
    def saved_gpu_hours(self) -> float | None:
        """What people lost less what is lost now; nothing where a machine answered then, too."""
        if self.gpu_hours is None or self.people_gpu_hours is None:
            return None
        return 0.0 if _was_automatic(self.incident) else self.people_gpu_hours - self.gpu_hours


def read_incidents(path: Path) -> list[Recorded]:
    """Return the incidents of a CSV with id, run, kind, step, human_action, rollback_steps, ...

    Raises: ConfigError[incidents-unreadable].
    """
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        found = [_recorded(row) for row in rows]
    except (OSError, UnicodeDecodeError, KeyError, ValueError, csv.Error) as error:
        raise ConfigError(
            "incidents-unreadable",
            f"{path} holds no table of incidents: {error!r}.",
            remedy="Give a CSV with the columns id, run, kind, step, human_action, rollback_steps, "
            "lr_factor and outcome_class; symptom, outcome, date, gpus, step_s and gap_hours "
            "where they are known.",
        ) from error
    if not found:
        raise ConfigError("incidents-unreadable", f"{path} holds no incident.")
    return found


def _recorded(row: dict[str, str]) -> Recorded:
    gpus = _positive(row, "gpus")
    return Recorded(
        id=row["id"],
        run=row["run"],
        kind=row["kind"],
        step=_first_number(row["step"]),
        action=row["human_action"],
        rollback_steps=_first_number(row["rollback_steps"]),
        lr_factor=row["lr_factor"],
        outcome=row["outcome_class"],
        symptom=row.get("symptom") or "",
        story=row.get("outcome") or "",
        dates=row.get("date") or "",
        gpus=int(gpus) if gpus is not None else None,
        step_s=_positive(row, "step_s"),
        gap_hours=_positive(row, "gap_hours"),
    )


def _positive(row: dict[str, str], column: str) -> float | None:
    text = row.get(column) or ""
    if not text.strip():
        return None
    value = float(text)
    if not 0.0 < value < math.inf:
        raise ValueError(f"{column} is {value}")
    return value


def _first_number(text: str) -> int | None:
    found = re.search(r"(\d+)(k?)", text)
    return int(found[1]) * (1000 if found[2] else 1) if found else None


def play_incidents(
    incidents: Sequence[Recorded], curve: Curve | None = None, gap_hours: float | None = None
) -> list[Row]:
    """Return each incident's answers.

    gap_hours: what a stop usually cost people, in the place of what is known of the run.
    """
    calls = calls_on(curve) if curve is not None else []
    return [_play(incident, incidents, curve, calls, gap_hours) for incident in incidents]


def _play(
    incident: Recorded,
    record: Sequence[Recorded],
    curve: Curve | None,
    calls: list[Call],
    gap_hours: float | None,
) -> Row:
    run = known_run(incident, gap_hours)
    stage = stage_of(incident, record)
    played = Staged(stage, run.step_s if run is not None else None)
    played.play_out()
    state, is_well = played.state, played.is_well
    answered = _answered(state)
    called, lag_steps = _on_curve(incident, curve, calls)
    return Row(
        incident=incident,
        stage=stage,
        decided=_decided(answered, state),
        lag_steps=max(answered.step_before - ONSET_STEP, 0) if answered is not None else None,
        rolled_back_steps=answered.steps_lost if answered is not None else 0,
        lr_factor=_factor(state),
        recovered=is_well,
        gpu_hours=played.lost_s / HOUR_S * run.gpus if run is not None and is_well else None,
        people_gpu_hours=_people_hours(incident, run) if run is not None else None,
        curve_call=called,
        curve_lag_steps=lag_steps,
    )


def known_run(incident: Recorded, gap_hours: float | None = None) -> KnownRun | None:
    """Return what is known of an incident's run, None where something of it is not."""
    known = RUNS.get(incident.family)
    gpus = incident.gpus or (known.gpus if known is not None else None)
    step_s = incident.step_s or (known.step_s if known is not None else None)
    gap = incident.gap_hours
    if gap is None and known is not None:
        gap = gap_hours if gap_hours is not None else known.gap_hours
    if gpus is None or step_s is None or gap is None:
        return None
    return KnownRun(gpus, step_s, gap)


def _people_hours(incident: Recorded, run: KnownRun) -> float:
    """Return the GPU-hours of one stop, however many there were, and of steps trained again."""
    is_watched = incident.action.startswith("none") or _was_automatic(incident)
    again_s = (incident.rollback_steps or 0) * run.step_s
    return ((0.0 if is_watched else run.gap_hours) + again_s / HOUR_S) * run.gpus


def _was_automatic(incident: Recorded) -> bool:
    return incident.action.lower().startswith("automatic")


def _on_curve(
    incident: Recorded, curve: Curve | None, calls: list[Call]
) -> tuple[str | None, int | None]:
    step = incident.step
    if curve is None or step is None or not curve.shows(incident.run, step):
        return None, None
    call = first_near(calls, step)
    if call is None:
        return NOT_CALLED, None
    return f"{call.severity}: {call.kind}", call.step - step


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


def _factor(state: RunState) -> float:
    """Return by how much the rate was lowered in the end."""
    decisions = [d for incident in state.incidents.values() for d in incident.decisions]
    actions = {d.id: d.action for d in decisions if isinstance(d.action, StartAttempt)}
    return math.prod(a.lr_factor for a in actions.values() if isinstance(a, StartAttempt))
