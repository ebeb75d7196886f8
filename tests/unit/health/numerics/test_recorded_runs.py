"""The bars, on curves recorded in real runs; skipped where the recordings are not at hand."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from midwatch.health.numerics.point import Point
from midwatch.logbook.findings import Finding, Severity
from midwatch.tests.support.curves import found, rollbacks, severe

DATA = Path(__file__).resolve().parents[5] / "shared" / "data"

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason="the recorded runs (../shared/data) are not on this machine"
)

Runs = dict[str, list[Point]]


def rows(path: str) -> Iterator[dict[str, str]]:
    with (DATA / path).open(encoding="utf-8") as stream:
        yield from csv.DictReader(stream)


def value(text: str | None) -> float | None:
    return float(text) if text else None


def bert() -> Runs:
    runs: Runs = defaultdict(list)
    total: dict[str, int] = defaultdict(int)
    for row in rows("mlperf_bert_fp16/curves.csv"):
        name, skipped = row["run_id"], int(row["skipped_steps_cum"])
        runs[name].append(
            Point(
                step=int(row["training_step"]),
                loss=value(row["step_loss"]),
                lr=value(row["learning_rate"]),
                skipped=skipped - total[name],
            )
        )
        total[name] = skipped
    return runs


def gnmt() -> Runs:
    """Scale changes carry no step: they get the one after the line before them."""
    runs: Runs = defaultdict(list)
    scale: dict[str, float] = {}
    for row in rows("mlperf_gnmt_fp16/events.csv"):
        run = runs[row["run_id"]]
        after = run[-1].step + 1 if run else 0
        if row["kind"] == "train":
            at = int(row["epoch"]) * int(row["iters_per_epoch"]) + int(row["iter"])
            run.append(
                Point(
                    step=max(after, at),
                    loss=value(row["loss_per_tok"]),
                    lr=value(row["lr"]),
                    loss_scale=scale.get(row["run_id"]),
                )
            )
        else:
            scale[row["run_id"]] = float(row["loss_scale"])
            run.append(
                Point(
                    step=after,
                    loss_scale=float(row["loss_scale"]),
                    skipped=int(row["kind"] == "skip"),
                )
            )
    return runs


def llama() -> Runs:
    runs: Runs = defaultdict(list)
    for row in rows("mlperf_llama31_405b/curves.csv"):
        runs[row["run_id"]].append(Point(step=int(row["idx"]), loss=value(row["train_loss"])))
    return runs


def nanogpt() -> Runs:
    runs: Runs = {}
    for run in rows("modded_nanogpt/runs.csv"):
        runs[run["run_id"]] = [
            Point(
                step=int(row["step"]),
                loss=value(row["train_loss"]),
                grad_norm=value(row.get("grad_norm")),
                lr=value(row.get("lr")),
            )
            for row in rows(f"modded_nanogpt/{run['run_id']}_train.csv")
        ]
    return runs


@cache
def algoperf() -> Runs:
    runs: Runs = defaultdict(list)
    for path in sorted((DATA / "algoperf_wmt").glob("wmt_*.csv")):
        for row in rows(f"algoperf_wmt/{path.name}"):
            runs[row["run_id"]].append(
                Point(
                    step=int(row["step"]),
                    loss=value(row["loss"]),
                    grad_norm=value(row["grad_norm"]),
                )
            )
    return runs


class Event:
    """One excursion of the recorded rule, with what the panel said about it, in points."""

    def __init__(self, row: dict[str, str], points: list[Point], findings: list[Finding]) -> None:
        index = {point.step: number for number, point in enumerate(points)}
        onset = index[int(row["onset_step"])]
        self.lasted = int(row["points_until_recovery"])
        self.recovered = row["recovered"] == "1"
        self.left = len(points) - 1 - onset
        near = [
            finding
            for finding in findings
            if onset - 3 <= index[finding.onset_step] <= onset + max(3, self.lasted)
        ]
        self.seen = bool(near)
        called = [index[finding.step] - onset for finding in rollbacks(near)]
        self.delay = min(called) if called else math.inf


@cache
def events() -> list[Event]:
    by_run: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows("algoperf_wmt/rule_events.csv"):
        by_run[row["run_id"]].append(row)
    made = []
    for run, its_rows in by_run.items():
        points = algoperf()[run]
        findings = found(points)
        made += [Event(row, points, findings) for row in its_rows]
    return made


@pytest.mark.parametrize("collection", [bert, gnmt, llama, nanogpt])
def test_healthy_runs_are_left_alone(collection: object) -> None:
    assert callable(collection)
    runs: Runs = collection()
    findings = {name: severe(found(points)) for name, points in runs.items()}
    assert [f for said in findings.values() for f in rollbacks(said)] == []
    points = sum(len(run) for run in runs.values())
    assert sum(len(said) for said in findings.values()) <= points / 10_000


def test_lasting_excursions_are_called_within_ten_points() -> None:
    lasting = [event for event in events() if event.lasted >= 10]
    assert len(lasting) > 20
    assert sum(event.delay <= 10 for event in lasting) >= 0.9 * len(lasting)


def test_every_excursion_that_does_not_heal_is_caught() -> None:
    unhealed = [event for event in events() if not event.recovered]
    assert unhealed
    for event in unhealed:
        assert event.seen
        # One that begins in the last points of its log has had no time to heal.
        assert event.delay < math.inf or event.left < 8


def test_spikes_of_a_single_point_are_not_rolled_back() -> None:
    single = [event for event in events() if event.lasted <= 1 and event.left >= 8]
    assert len(single) > 40
    assert [event.delay for event in single] == [math.inf] * len(single)


def test_the_scaler_of_opt_collapses_while_its_perplexity_is_flat() -> None:
    merged: dict[int, dict[str, float]] = defaultdict(dict)
    for row in rows("opt175b_digitised/opt175b_run12.12-12.42.csv"):
        if row["run"] == "run12.33":
            merged[round(float(row["step"]))][row["panel"]] = float(row["value_mid"])
    points = [
        Point(
            step=step,
            loss=math.log(panel["ppl"]) if "ppl" in panel else None,
            grad_norm=panel.get("gnorm"),
            loss_scale=panel.get("loss_scale"),
            activation_norm=panel.get("actv_norm"),
        )
        for step, panel in sorted(merged.items())
    ]
    findings = found(points)
    warned = [f.step for f in findings if f.detector == "scaler-collapse" and f in severe(findings)]
    assert any(35_400 <= step <= 36_300 for step in warned)
    assert any(37_200 <= step <= 37_350 for step in warned)
    about_loss = ("spike", "level-shift", "creep")
    assert [f for f in findings if f.detector in about_loss] == []
    assert all(f.severity is not Severity.ROLLBACK for f in findings if f.step < 36_000)
