"""Shadow scores read off a journal, and midwatch detectors over a run's folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec
import pytest
from midwatch.logbook import events as ev
from midwatch.logbook.decisions import Decision, SetDetector
from midwatch.logbook.findings import Finding, Severity
from midwatch.logbook.journal import Journal
from midwatch.logbook.record import Record
from midwatch.operator.cli.main import main
from midwatch.operator.detector_score import score_shadows
from midwatch.operator.spec_file import spec_data
from midwatch.tests.support.builders import START_S, make_sample, make_spec


def finding(step: int, detector: str, *, shadow: bool, severity: str = "rollback") -> Finding:
    return Finding(detector, "k", Severity(severity), step, step, 1.0, 0.0, "m", shadow=shadow)


def records(*events: ev.Event) -> list[Record[ev.Event]]:
    return [Record(seq, START_S + seq, 1, 1, event) for seq, event in enumerate(events, start=1)]


def story(calls: dict[int, list[Finding]], steps: int) -> list[Record[ev.Event]]:
    events: list[ev.Event] = []
    for step in range(1, steps + 1):
        events.append(ev.StepDone(1, make_sample(step)))
        events += [ev.FindingSeen(f"f-{step}", 1, found) for found in calls.get(step, [])]
    return records(*events)


def test_a_call_that_an_acting_detector_shares_is_confirmed_and_a_lonely_one_refuted() -> None:
    calls = {
        10: [finding(10, "creep", shadow=True)],
        30: [finding(30, "scaler-collapse", shadow=False)],
        200: [finding(200, "creep", shadow=True)],
        210: [finding(210, "spike", shadow=True, severity="observe")],
    }
    tallies = score_shadows(story(calls, 400), horizon_points=50)
    assert msgspec.to_builtins(tallies["creep"]) == {"raised": 2, "confirmed": 1, "refuted": 1}
    assert tallies["creep"].precision == 0.5
    assert tallies["spike"].precision is None


def test_a_call_within_its_horizon_is_still_open() -> None:
    tallies = score_shadows(story({10: [finding(10, "creep", shadow=True)]}, 40), 50)
    assert (tallies["creep"].raised, tallies["creep"].precision) == (1, None)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    spec = make_spec(detectors={"plateau": {"mode": "off"}})
    submitted = ev.RunSubmitted(
        run=spec.name, spec=spec_data(spec), digest="", policy_version=2, midwatch_version="", by=""
    )
    decision = Decision("0/1", SetDetector("creep", "shadow"), "ann asked: too eager")
    calls = [record.event for record in story({10: [finding(10, "creep", shadow=True)]}, 700)]
    (tmp_path / "requests").mkdir()
    with Journal(tmp_path / "journal", ev.Event) as journal:
        events = [submitted, ev.DecisionMade(decision), ev.ActionDone("0/1"), *calls]
        journal.append([(START_S, 1, event) for event in events])
    return tmp_path


def cli(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["midwatch", "detectors", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_modes_and_precision_are_listed(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli(monkeypatch, str(run_dir), "-o", "json") == 0
    rows = {row["detector"]: row for row in json.loads(capfd.readouterr().out)}
    assert (rows["creep"]["mode"], rows["creep"]["is_changed"]) == ("shadow", True)
    assert (rows["creep"]["refuted"], rows["creep"]["precision"]) == (1, 0.0)
    assert (rows["plateau"]["mode"], rows["plateau"]["is_changed"]) == ("off", False)
    assert rows["straggler"]["mode"] == "act"
    assert cli(monkeypatch, str(run_dir)) == 0
    assert "shadow*" in capfd.readouterr().out


def test_a_switch_lays_a_request_on_the_desk(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [str(run_dir), "--set", "spike=off", "--reason", "too loud", "--timeout-s", "0"]
    assert cli(monkeypatch, *words) == 0
    (path,) = (run_dir / "requests").glob("*.json")
    request = json.loads(path.read_text())
    assert (request["action"], request["target"]) == ("detector", "spike=off")
    assert cli(monkeypatch, str(run_dir), "--set", "spike=off", "--reason", "x", "--dry-run") == 0
    assert "would switch spike to off" in capfd.readouterr().out


def test_what_cannot_be_switched_is_a_usage_error(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli(monkeypatch, str(run_dir), "--set", "crep=off", "--reason", "x") == 2
    assert "known: " in capfd.readouterr().err
    assert cli(monkeypatch, str(run_dir), "--set", "creep=off") == 2
    assert cli(monkeypatch, str(run_dir / "nowhere")) == 3
