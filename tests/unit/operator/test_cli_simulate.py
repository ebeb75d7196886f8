"""`midwatch simulate` from the command line: figures, run folders, sweeps, clear refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec
import pytest
from midwatch.operator.cli.main import main
from midwatch.operator.simulation.failure_models import exponential_model

SMALL = ("--gpus", "16", "--days", "0.1", "--spares", "1")


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["midwatch", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_it_tells_figures_and_writes_a_run_that_others_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ("simulate", *SMALL, "--mtbf-hours", "0.5", "--runs", "2", "-o", "json")
    assert call(monkeypatch, *words, "--out", str(run)) == 0
    told = json.loads(capfd.readouterr().out)
    assert [each["seed"] for each in told["runs"]] == [0, 1]
    assert all(0.5 < each["ettr_frac"] < 1.0 for each in told["runs"])
    assert call(monkeypatch, "status", str(run), "-o", "json") == 0
    summary = json.loads(capfd.readouterr().out)["summary"]
    assert summary["status"] == "stopped"
    assert summary["attempts"] == told["runs"][0]["restarts"] + 1
    assert call(monkeypatch, *words, "--out", str(run)) == 2
    assert "folder-in-use" in capfd.readouterr().err
    # And what that run has shown is what another is simulated with.
    again = ("simulate", *SMALL, "--from-journal", str(run))
    assert call(monkeypatch, *again) == 0
    assert "failures in" in capfd.readouterr().out


def test_a_sweep_prints_a_table_and_draws_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "sweep.svg"
    words = ("--model", "none", "--sweep", "interval=10,200", "--plot", str(plot))
    assert call(monkeypatch, "simulate", *SMALL, *words, "--runs", "2") == 0
    out = capfd.readouterr().out
    assert "best: interval 200" in out
    assert plot.read_text().startswith("<svg")


def test_one_seed_or_equal_points_have_no_best(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("simulate", *SMALL, "--model", "none", "--sweep")
    assert call(monkeypatch, *words, "interval=10,200") == 0
    assert "highest: interval 200" in (out := capfd.readouterr().out)
    assert "best" not in out
    assert call(monkeypatch, *words, "respond-minutes=1,2", "--runs", "2", "-o", "json") == 0
    assert json.loads(capfd.readouterr().out)["ties"] == [[1.0], [2.0]]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--model", "titanic"), "unknown-failure-model"),
        (("--sweep", "wings=1..2"), "bad-sweep"),
        (("--sweep", "spares=0,1", "--sweep", "spares=2"), "bad-sweep"),
        (("--sweep", "spares=0..64", "--sweep", "interval=1..64"), "bad-sweep"),
        (("--sweep", "spares=0,1", "--plot", "nowhere/x.svg"), "plot-unwritable"),
        (("--sweep", "spares=0,1", "--out", "there"), "out-of-sweep"),
        (("--plot", "x.svg"), "nothing-to-plot"),
        (("--respond-minutes", "inf"), "not-finite"),
        (("--gpus", "12"), "gpus-not-whole-nodes"),
        (("--model", "opt-trace", "--gpus", "64"), "option-ignored"),
        (("--model", "opt-trace", "--mtbf-hours", "3"), "option-ignored"),
        (("--trace", "x.csv", "--model", "rsc1"), "option-ignored"),
        (("--trace", "nowhere.csv"), "trace-unreadable"),
        (("--model", "nowhere.json"), "bad-failure-model"),
        (("--from-journal", "nowhere"), "no-such-run"),
    ],
)
def test_what_makes_no_sense_is_refused(
    words: tuple[str, ...],
    code: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, "simulate", *words) in (2, 3)
    assert code in capfd.readouterr().err


def test_opts_two_months_take_seeds_days_spares_and_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("simulate", "--model", "opt-trace", "--days", "0.2", "--spares", "2", "--runs", "2")
    assert call(monkeypatch, *words, "--out", str(tmp_path / "run")) == 0
    out = capfd.readouterr().out
    assert "992 GPUs and 2 spares, 0.2 days, 2 seeds" in out
    assert "recorded are the times of 23 restarts" in out
    assert "drawn are the times of 62 more" in out
    assert "±" in out
    assert (tmp_path / "run" / "journal").is_dir()


def test_a_trace_and_a_model_of_ones_own_are_played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "mine.csv"
    trace.write_text("hours,effect,node\n0.5,kill,node-1\n1.5,kill,node-0\n")
    words = ("--spares", "0", "--trace", str(trace), "-o", "json")
    assert call(monkeypatch, "simulate", *SMALL, *words) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["model"]["source"] == "2 failures of mine.csv"
    assert told["runs"][0]["restarts"] == 2
    model = tmp_path / "mine.json"
    model.write_bytes(msgspec.json.encode(exponential_model(0.5, 16)))
    found = []
    for words in (("--model", str(model)), ("--mtbf-hours", "0.5")):
        assert call(monkeypatch, "simulate", *SMALL, *words, "-o", "json") == 0
        found.append(json.loads(capfd.readouterr().out))
    assert found[0] == found[1]
