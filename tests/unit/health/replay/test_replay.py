"""Replay: one row per finding, with what the policy would have done; and a picture of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from midwatch.health.numerics.config import LevelShiftConfig, PanelConfig
from midwatch.health.replay.plot import save_plot
from midwatch.health.replay.replay import ReplayRow, replay, to_json
from midwatch.logbook.errors import ConfigError
from midwatch.logbook.findings import Finding, Severity
from midwatch.tests.support.curves import found, healthy, lr_kick, raised, shift

FIELDS = [
    "step",
    "kind",
    "severity",
    "detector",
    "onset_step",
    "value",
    "reference",
    "decision",
    "lr_factor",
]


def decide(finding: Finding) -> tuple[str, float]:
    return ("roll back", 0.9) if finding.severity is Severity.ROLLBACK else ("note", 1.0)


def test_a_row_per_finding_with_its_decision() -> None:
    run = raised(healthy(700, seed=1), 600, shift(0.5))
    rows = list(replay(run, decide=decide))
    findings = found(raised(healthy(700, seed=1), 600, shift(0.5)))
    assert [(r.step, r.kind, r.onset_step) for r in rows] == [
        (f.step, f.kind, f.onset_step) for f in findings
    ]
    assert [(r.decision, r.lr_factor) for r in rows if r.severity == "rollback"] == [
        ("roll back", 0.9)
    ]
    assert {r.decision for r in rows if r.severity != "rollback"} == {"note"}


def test_rows_in_json_have_exactly_the_promised_fields() -> None:
    rows = list(replay(lr_kick(200)))
    for row in rows:
        record = json.loads(to_json(row))
        assert list(record) == FIELDS
        assert record["severity"] in ("observe", "warn", "rollback")
        assert "\n" not in to_json(row)
    assert {(row.decision, row.lr_factor) for row in rows} == {("none", 1.0)}


def test_a_value_that_is_not_finite_is_a_word_in_json() -> None:
    row = ReplayRow(9, "non-finite", "observe", "non-finite", 9, math.nan, 0.0, "none", 1.0)
    assert json.loads(to_json(row))["value"] == "NaN"


def test_settings_are_those_of_the_run() -> None:
    config = PanelConfig(level_shift=LevelShiftConfig(mode="off"))
    rows = replay(raised(healthy(700, seed=1), 600, shift(0.5)), config)
    assert [row.severity for row in rows if row.detector == "level-shift"] == []


def test_a_picture_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run = lr_kick(200)
    path = tmp_path / "out.png"
    save_plot(run, list(replay(run)), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    save_plot([], [], tmp_path / "empty.png")
    with pytest.raises(ConfigError) as caught:
        save_plot(run, [], tmp_path / "missing" / "out.png")
    assert caught.value.code == "plot-failed"
    with pytest.raises(ConfigError):
        save_plot(run, [], tmp_path / "out.unknown")
