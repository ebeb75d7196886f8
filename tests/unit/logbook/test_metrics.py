"""Metrics are what the fold says, in a format Prometheus reads; the dashboard asks for no other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from midwatch.logbook.events import ValidationDone
from midwatch.logbook.fold import evolve
from midwatch.logbook.metrics import exposition
from midwatch.logbook.state import RunState, Status
from midwatch.logbook.summary import summarize
from midwatch.operator.simulation.edges import MemoryJournal
from midwatch.tests.sim.faults import plan_of, play
from midwatch.tests.sim.night import Night
from midwatch.tests.support.builders import fold
from prometheus_client.parser import text_string_to_metric_families

DASHBOARD = Path(__file__).parents[3] / "manifests" / "grafana" / "midwatch.json"

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples_of(state: RunState, now_s: float) -> Samples:
    families = text_string_to_metric_families(exposition(state, now_s))
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def night() -> Night:
    night = Night()
    night.run_to_step(43)
    night.world.kill_worker(1)
    night.run_to_step(60)
    return night


def test_figures_are_those_of_the_state(night: Night) -> None:
    state, now_s = night.state, night.timeline.now_s()
    found = samples_of(state, now_s)
    run = (("run", "night"),)
    assert state.last is not None
    assert found["midwatch_step", run] == state.step
    assert found["midwatch_loss", run] == pytest.approx(state.last.loss)
    assert found["midwatch_attempt", run] == 2
    assert found["midwatch_restarts_total", run] == 1
    assert found["midwatch_steps_lost_total", run] == 3
    assert found["midwatch_ettr_ratio", run] == summarize(state, now_s).ettr_frac
    assert found["midwatch_incidents_total", (("fault", "worker-killed"), *run)] == 1
    standing = max(c.step for c in state.checkpoints.values())
    assert found["midwatch_checkpoint_step", run] == standing
    statuses = {
        dict(labels)["is"]: v for (name, labels), v in found.items() if name == "midwatch_status"
    }
    assert set(statuses) == {status.value for status in Status}
    assert [name for name, value in statuses.items() if value] == ["training"]


def test_every_series_is_named_for_us_and_for_its_run(night: Night) -> None:
    for name, labels in samples_of(night.state, 0.0):
        assert name.startswith("midwatch_")
        assert dict(labels)["run"] == "night"
        assert set(dict(labels)) <= {"run", "is", "fault", "are"}


def test_a_run_that_is_not_there_has_no_series() -> None:
    assert samples_of(RunState(), 0.0) == {}


@pytest.mark.parametrize("seed", [3, 7, 11])
def test_what_is_called_a_counter_never_falls(seed: int) -> None:
    night = play(plan_of(seed))
    assert isinstance(night.journal, MemoryJournal)
    state, known = RunState(), dict[object, float]()
    for index, record in enumerate(night.journal.records()):
        state = evolve(state, record.event, seq=record.seq, time_s=record.time_s)
        if index % 25:
            continue
        for key, value in samples_of(state, record.time_s).items():
            if key[0].endswith("_total"):
                assert value >= known.get(key, 0.0), key
                known[key] = value
    assert known


def test_the_dashboard_asks_only_for_what_there_is(night: Night) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    asked = set(re.findall(r"midwatch_[a-z_]+", json.dumps(dashboard)))
    measured = ValidationDone(2, night.state.step, 3.0, 8, 256, 0.0, 1.0)
    state = fold([measured], night.state)
    known = {name for name, _ in samples_of(state, night.timeline.now_s())}
    # Only GPUs that measure their energy have this one.
    assert asked - {"midwatch_energy_joules_total"} <= known
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
