"""`midwatch metrics` needs nothing but the run's folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from midwatch.operator.cli.main import main
from midwatch.tests.sim.night import DiskJournal, Night
from prometheus_client.parser import text_string_to_metric_families


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    journal = DiskJournal(folder / "journal")
    Night(journal=journal).run_to_end()
    journal.close()
    return folder


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["midwatch", "metrics", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_it_prints_what_prometheus_reads(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, str(run)) == 0
    families = {f.name: f for f in text_string_to_metric_families(capfd.readouterr().out)}
    assert families["midwatch_step"].samples[0].value == 120
    assert call(monkeypatch, str(run), "-o", "json") == 0
    samples = json.loads(capfd.readouterr().out)
    assert {"name": "midwatch_step", "labels": {"run": "night"}, "value": 120} in samples


def test_it_writes_event_files_and_refuses_a_folder_in_use(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    board = tmp_path / "board"
    assert call(monkeypatch, str(run), "--tensorboard", str(board)) == 0
    assert "120 steps" in capfd.readouterr().out
    assert call(monkeypatch, str(run), "--tensorboard", str(board), "-o", "json") == 0
    assert json.loads(capfd.readouterr().out)["steps"] == 120
    assert [path.name.split(".")[2] for path in board.iterdir()] == ["tfevents"]
    assert call(monkeypatch, str(run), "--tensorboard", str(run)) == 2
    assert "export-not-empty" in capfd.readouterr().err


def test_a_run_that_is_not_there_is_exit_status_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, str(tmp_path / "nowhere")) == 3
    assert "no-such-run" in capfd.readouterr().err
