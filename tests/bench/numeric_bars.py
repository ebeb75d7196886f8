"""The bars of the numeric detectors on recorded curves, and on what other logs would show of them.

Run by hand where ../shared/data is: python -m tests.bench.numeric_bars. Of healthy runs: how many
would have been rolled back, and warnings per 10,000 points. Of excursions: how many of those that
last ten points are called within ten, how many of those that never heal are called at all, and how
many spikes of a single point are rolled back. The last line is one JSON object, the worst of each
over all variants.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor

import msgspec
from midwatch.health.numerics.point import Point
from midwatch.tests.support.curves import found, rollbacks, severe
from midwatch.tests.support.recorded_curves import (
    DATA,
    Event,
    Runs,
    Variant,
    algoperf,
    as_given,
    averaged,
    bert,
    find_marks,
    gnmt,
    llama,
    nanogpt,
    noisy,
    opt,
    recorded_marks,
    scaled,
    thinned,
    without_grad_norm,
    without_lr,
)

HEALTHY: Mapping[str, Callable[[], Runs]] = {
    "bert": bert,
    "gnmt": gnmt,
    "llama": llama,
    "nanogpt": nanogpt,
}
LEAST_POINTS = 40


def chain(*steps: Variant) -> Variant:
    """Return one variant made of several, one after the other."""

    def variant(points: list[Point]) -> list[list[Point]]:
        made = [points]
        for step in steps:
            made = [changed for one in made for changed in step(one)]
        return made

    return variant


VARIANTS: Mapping[str, Variant] = {
    "as given": as_given,
    **{f"every {n}": thinned(n, 5) for n in (2, 3, 4, 5, 10, 20, 50)},
    "no lr": without_lr,
    "no lr, every 5": chain(without_lr, thinned(5, 5)),
    "no lr, every 20": chain(without_lr, thinned(20, 5)),
    "loss x 0.1": scaled(0.1),
    "loss x 0.3": scaled(0.3),
    "loss x 3": scaled(3.0),
    "loss x 10": scaled(10.0),
    "noise 1 %": noisy(0.01),
    "noise 3 %": noisy(0.03),
    "noise 1 %, every 3": chain(noisy(0.01), thinned(3, 3)),
    "no grad norm": without_grad_norm,
    "average 0.9": averaged(0.9),
    "average 0.98": averaged(0.98),
}
AVERAGES = ("average 0.9", "average 0.98")


class Calm(msgspec.Struct):
    """Healthy runs of one collection in one variant."""

    runs: int = 0
    rolled_back: int = 0
    points: int = 0
    warnings: int = 0
    said: list[str] = []


class Caught(msgspec.Struct):
    """Excursions in one variant; quiet: runs without one, rolled back all the same."""

    lasting: int = 0
    in_time: int = 0
    unhealed: int = 0
    called: int = 0
    single: int = 0
    single_called: int = 0
    quiet: int = 0
    missed: list[str] = []


def calm(collection: str, variant: str) -> Calm:
    """Run the panel over healthy runs."""
    result = Calm()
    for name, points in HEALTHY[collection]().items():
        for changed in VARIANTS[variant](points):
            if len(changed) < LEAST_POINTS:
                continue
            findings = severe(found(changed))
            called = rollbacks(findings)
            result.runs += 1
            result.points += len(changed)
            result.rolled_back += bool(called)
            result.warnings += len(findings) - len(called)
            result.said += [f"{name} {f.step} {f.severity} {f.message}" for f in findings]
    return result


def caught(variant: str) -> Caught:
    """Run the panel over runs with excursions."""
    result = Caught()
    given = recorded_marks()
    for name, points in algoperf().items():
        for changed in VARIANTS[variant](points):
            if len(changed) < LEAST_POINTS:
                continue
            marks = given.get(name, []) if variant == "as given" else find_marks(changed)
            findings = found(changed)
            events = [Event(mark, changed, findings) for mark in marks]
            result.quiet += not marks and bool(rollbacks(findings))
            for event in events:
                _count(result, name, event)
    return result


def _count(result: Caught, name: str, event: Event) -> None:
    if event.lasted >= 10:
        result.lasting += 1
        result.in_time += event.delay <= 10
        if event.delay > 10:
            result.missed.append(f"{name} {event.step} lasts {event.lasted}, {event.delay}")
    # One that begins in the last points of its log has had no time to heal.
    if not event.recovered and (event.left >= 8 or event.delay < math.inf):
        result.unhealed += 1
        result.called += event.delay < math.inf
        if event.delay == math.inf:
            result.missed.append(f"{name} {event.step} unhealed")
    if event.lasted <= 1 and event.left >= 8:
        result.single += 1
        result.single_called += event.delay < math.inf
        if event.delay < math.inf:
            result.missed.append(f"{name} {event.step} single point, called after {event.delay}")


def opt_line() -> str:
    """Return the steps at which something severe is said of OPT-175B."""
    return ", ".join(f"{f.step} {f.detector} {f.severity}" for f in severe(found(opt())))


def _list(lines: Iterable[str]) -> None:
    for line in lines:
        print(f"    {line}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--verbose", action="store_true", help="print what was said and missed")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    if not DATA.is_dir():
        print("The recorded runs (../shared/data) are not on this machine.")
        print(json.dumps({"skipped": True}))
        return
    with ProcessPoolExecutor(args.jobs) as pool:
        catches = {v: pool.submit(caught, v) for v in VARIANTS if not v.startswith("no lr")}
        calms = {(c, v): pool.submit(calm, c, v) for v in VARIANTS for c in HEALTHY}
        print(f"{'healthy':20} {'runs':>5} {'rolled back':>11} {'points':>8} {'per 10k':>8}")
        worst = {"rolled_back": 0, "warnings_per_10k": 0.0, "in_time_frac": 1.0}
        worst |= {"called_frac": 1.0, "single_called": 0}
        for variant in VARIANTS:
            parts = {c: calms[c, variant].result() for c in HEALTHY}
            runs, points = (sum(getattr(p, f) for p in parts.values()) for f in ("runs", "points"))
            called = sum(part.rolled_back for part in parts.values())
            rate = sum(part.warnings for part in parts.values()) / points * 1e4
            by_name = " ".join(f"{c} {p.rolled_back}/{p.warnings}" for c, p in parts.items())
            print(f"{variant:20} {runs:5} {called:11} {points:8} {rate:8.2f}   {by_name}")
            if args.verbose:
                _list(line for part in parts.values() for line in part.said)
            if variant not in AVERAGES:
                worst["rolled_back"] = max(worst["rolled_back"], called)
                worst["warnings_per_10k"] = max(worst["warnings_per_10k"], round(rate, 2))
        print(f"\n{'excursions':20} {'in time':>10} {'unhealed':>10} {'single':>8} {'quiet':>6}")
        for variant, future in catches.items():
            c = future.result()
            print(
                f"{variant:20} {c.in_time:5}/{c.lasting:<4} {c.called:5}/{c.unhealed:<4} "
                f"{c.single_called:4}/{c.single:<4} {c.quiet:4}",
                flush=True,
            )
            if args.verbose:
                _list(c.missed)
            if variant not in AVERAGES:
                in_time = c.in_time / c.lasting if c.lasting else 1.0
                worst["in_time_frac"] = round(min(worst["in_time_frac"], in_time), 3)
                share = c.called / c.unhealed if c.unhealed else 1.0
                worst["called_frac"] = round(min(worst["called_frac"], share), 3)
                worst["single_called"] = max(worst["single_called"], c.single_called)
    print(f"\nOPT-175B: {opt_line()}\n")
    print(json.dumps(worst))


if __name__ == "__main__":
    main()
