"""Curves recorded in real runs, as points, and what the bars ask about them.

They are no part of the project: whoever uses them looks whether DATA is there.
"""

from __future__ import annotations

import csv
import math
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import msgspec
from midwatch.health.numerics.point import Point
from midwatch.logbook.findings import Finding
from midwatch.tests.support.curves import rollbacks

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

Runs = dict[str, list[Point]]
Variant = Callable[[list[Point]], list[list[Point]]]
"""What one recorded run could have looked like in other logs."""


def rows(path: str) -> Iterator[dict[str, str]]:
    with (DATA / path).open(encoding="utf-8") as stream:
        yield from csv.DictReader(stream)


def value(text: str | None) -> float | None:
    return float(text) if text else None


@cache
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


@cache
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


@cache
def llama() -> Runs:
    runs: Runs = defaultdict(list)
    for row in rows("mlperf_llama31_405b/curves.csv"):
        runs[row["run_id"]].append(Point(step=int(row["idx"]), loss=value(row["train_loss"])))
    return runs


@cache
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


@cache
def opt() -> list[Point]:
    """Run 12.33 of OPT-175B, whose scaler collapses near steps 36.2k and 37.3k."""
    merged: dict[int, dict[str, float]] = defaultdict(dict)
    for row in rows("opt175b_digitised/opt175b_run12.12-12.42.csv"):
        if row["run"] == "run12.33":
            merged[round(float(row["step"]))][row["panel"]] = float(row["value_mid"])
    return [
        Point(
            step=step,
            loss=math.log(panel["ppl"]) if "ppl" in panel else None,
            grad_norm=panel.get("gnorm"),
            loss_scale=panel.get("loss_scale"),
            activation_norm=panel.get("actv_norm"),
        )
        for step, panel in sorted(merged.items())
    ]


def as_given(points: list[Point]) -> list[list[Point]]:
    """Return the run itself."""
    return [points]


def thinned(every: int, offsets: int) -> Variant:
    """Return the variant that logs every so many points only; skips in between are carried on."""

    def variant(points: list[Point]) -> list[list[Point]]:
        return [_thin(points, every, offset) for offset in range(min(every, offsets))]

    return variant


def _thin(points: list[Point], every: int, offset: int) -> list[Point]:
    kept = []
    skipped = 0
    for index, point in enumerate(points):
        skipped += point.skipped
        if index % every == offset:
            kept.append(msgspec.structs.replace(point, skipped=skipped))
            skipped = 0
    return kept


def of_losses(change: Callable[[float, random.Random], float]) -> Variant:
    """Return the variant in which change() was done to every loss, in order."""

    def variant(points: list[Point]) -> list[list[Point]]:
        rng = random.Random(7)
        return [
            [
                point
                if point.loss is None
                else msgspec.structs.replace(point, loss=change(point.loss, rng))
                for point in points
            ]
        ]

    return variant


def scaled(factor: float) -> Variant:
    """Return the variant in another unit of loss."""
    return of_losses(lambda loss, rng: loss * factor)


def noisy(frac: float) -> Variant:
    """Return the variant with so much more noise in each point."""
    return of_losses(lambda loss, rng: loss * (1.0 + rng.gauss(0.0, frac)))


def averaged(keep: float) -> Variant:
    """Return the variant that logs a running average, in which keep of the past stays."""

    def variant(points: list[Point]) -> list[list[Point]]:
        mean: float | None = None
        made = []
        for point in points:
            if point.loss is not None:
                mean = point.loss if mean is None else keep * mean + (1.0 - keep) * point.loss
                made.append(msgspec.structs.replace(point, loss=mean))
            else:
                made.append(point)
        return [made]

    return variant


def without_lr(points: list[Point]) -> list[list[Point]]:
    """Return the variant whose log has no learning rate."""
    return [[msgspec.structs.replace(point, lr=None) for point in points]]


def without_grad_norm(points: list[Point]) -> list[list[Point]]:
    """Return the variant whose log has no gradient norm."""
    return [[msgspec.structs.replace(point, grad_norm=None) for point in points]]


class Mark(msgspec.Struct, frozen=True):
    """One excursion by the recorded rule. onset: number of its first point; lasted: in points."""

    onset: int
    lasted: int
    recovered: bool


class Event:
    """One excursion of the recorded rule, with what the panel said about it, in points."""

    def __init__(self, mark: Mark, points: list[Point], findings: list[Finding]) -> None:
        index = {point.step: number for number, point in enumerate(points)}
        onset = mark.onset
        self.step = points[onset].step
        self.lasted, self.recovered = mark.lasted, mark.recovered
        self.left = len(points) - 1 - onset
        near = [
            finding
            for finding in findings
            if onset - 3 <= index[finding.onset_step] <= onset + max(3, self.lasted)
        ]
        self.seen = bool(near)
        called = [index[finding.step] - onset for finding in rollbacks(near)]
        self.delay = min(called) if called else math.inf


def recorded_marks() -> dict[str, list[Mark]]:
    """Return the excursions of each run of algoperf() that came with the recordings."""
    marks: dict[str, list[Mark]] = defaultdict(list)
    for row in rows("algoperf_wmt/rule_events.csv"):
        index = {point.step: number for number, point in enumerate(algoperf()[row["run_id"]])}
        marks[row["run_id"]].append(
            Mark(
                onset=index[int(row["onset_step"])],
                lasted=int(row["points_until_recovery"]),
                recovered=row["recovered"] == "1",
            )
        )
    return marks


def find_marks(points: list[Point]) -> list[Mark]:
    """Return the excursions of a curve by the rule of the recordings.

    Onset: over 1.15 x the median of the 30 points before, and over six median deviations.
    Recovered: the median of five points is below 1.05 x that median again.
    """
    losses = [math.inf if p.loss is None or not math.isfinite(p.loss) else p.loss for p in points]
    marks = []
    at = 30
    while at < len(losses):
        window = losses[at - 30 : at]
        middle = statistics.median(window)
        spread = statistics.median(abs(loss - middle) for loss in window if loss < math.inf)
        if not losses[at] > max(1.15 * middle, middle + 6.0 * 1.4826 * spread):
            at += 1
            continue
        after = next(
            (
                end
                for end in range(at, len(losses))
                if statistics.median(losses[end : end + 5]) < 1.05 * middle
            ),
            None,
        )
        end = len(losses) if after is None else after
        marks.append(Mark(at, end - at, after is not None))
        at = end + 5
    return marks
