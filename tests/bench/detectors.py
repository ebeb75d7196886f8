"""Cost of the numeric panel per sample, every series present.

Run by hand: python tests/bench/detectors.py. The last line is one JSON object, {"us_per_sample":
...}: the median over rounds of the mean time of one Panel.update() in microseconds.
"""

from __future__ import annotations

import json
import statistics
import time

from midwatch.health.numerics.panel import Panel
from midwatch.health.numerics.point import Point
from midwatch.tests.support.curves import healthy, with_scaler

SAMPLES = 20_000
ROUNDS = 7


def run() -> list[Point]:
    """A healthy fp16 run with spikes now and again, as the panel sees it nearly all the time."""
    points = with_scaler(healthy(SAMPLES, seed=1, outlier_frac=0.002))
    for point in points:
        point.lr = 1e-4
    return points


def round_us(points: list[Point]) -> float:
    """Mean microseconds of one update over the whole run."""
    panel = Panel()
    update = panel.update
    began_s = time.process_time()
    for point in points:
        update(point)
    return (time.process_time() - began_s) / len(points) * 1e6


def main() -> None:
    points = run()
    rounds = [round_us(points) for _ in range(ROUNDS)]
    print(f"{SAMPLES} samples, {ROUNDS} rounds: {', '.join(f'{us:.2f}' for us in rounds)} us")
    print(json.dumps({"us_per_sample": round(statistics.median(rounds), 3)}))


if __name__ == "__main__":
    main()
