"""Seeded curves in the shapes that recorded training runs have, healthy and sick.

Sizes follow recorded figures: point noise of 0.5 to 4 % of the loss, one-step outliers of one
rank's batch, spikes that heal within tens of points, creeps of 2 to 4 % over a few hundred steps,
a scaler that comes down from its initial value and then skips a step now and again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable

from midwatch.health.numerics.panel import Panel
from midwatch.health.numerics.point import Point
from midwatch.logbook.findings import Finding, Severity

FLOOR = 2.0**-5


def healthy(
    count: int,
    *,
    seed: int = 0,
    noise_frac: float = 0.01,
    every: int = 1,
    outlier_frac: float = 0.0,
    last: float = 2.2,
) -> list[Point]:
    """A loss that falls fast, then slowly; grad norm and activation norm as in a stable run.

    every: steps between points. outlier_frac: share of points that are 10 to 40 % too high.
    """
    rng = random.Random(seed)
    points = []
    for index in range(count):
        base = last + (10.5 - last) * math.exp(-index / 40) + 0.3 * math.exp(-index / 1500)
        loss = base * (1 + rng.gauss(0, noise_frac))
        if rng.random() < outlier_frac:
            loss *= rng.uniform(1.1, 1.4)
        points.append(
            Point(
                step=(index + 1) * every,
                loss=loss,
                grad_norm=(0.3 + 3 * math.exp(-index / 50)) * math.exp(rng.gauss(0, 0.1)),
                activation_norm=3000 * (1 + 2e-5 * index + rng.gauss(0, 2e-4)),
            )
        )
    return points


def raised(points: list[Point], first: int, shape: Callable[[int], float]) -> list[Point]:
    """Multiply the loss from point number first on by 1 + shape(points since first)."""
    for index in range(first, len(points)):
        loss = points[index].loss
        assert loss is not None
        points[index].loss = loss * (1 + shape(index - first))
    return points


def spike(height: float, points: int) -> Callable[[int], float]:
    """A jump that decays and is gone after so many points."""

    def shape(since: int) -> float:
        return height * (1 - since / points) if since < points else 0.0

    return shape


def shift(height: float) -> Callable[[int], float]:
    """A jump that stays."""
    return lambda since: height


def creep(height: float, over: int) -> Callable[[int], float]:
    """A slow rise that stays."""
    return lambda since: height * min(1.0, since / over)


def with_scaler(
    points: list[Point],
    *,
    initial: float = 65536.0,
    fits: Callable[[int], float] = lambda index: 1500.0,
    window: int = 64,
    floor: float = FLOOR,
) -> list[Point]:
    """Put a dynamic loss scaler under the run. fits: largest scale without overflow, by point."""
    scale, quiet = initial, 0
    for index, point in enumerate(points):
        point.loss_scale = scale
        point.skipped = int(scale > fits(index))
        if point.skipped:
            point.grad_norm = math.inf
            scale, quiet = max(floor, scale / 2), 0
        else:
            quiet += 1
            if quiet >= window:
                scale, quiet = scale * 2, 0
    return points


def lr_kick(healthy_points: int, sick_points: int = 60, *, seed: int = 0) -> list[Point]:
    """What a far too high learning rate does to a small fp16 run: up to 10, skips, then NaN."""
    points = with_scaler(healthy(healthy_points, seed=seed))
    scale, loss = points[-1].loss_scale, points[-1].loss
    assert scale is not None
    assert loss is not None
    for index in range(sick_points):
        loss = min(10.0, loss * 1.35) if index < 12 else math.nan
        step = healthy_points + index + 1
        skipped = int(index >= 8)
        points.append(
            Point(step=step, loss=loss, grad_norm=40.0, loss_scale=scale, skipped=skipped, lr=3e-2)
        )
        scale = max(FLOOR, scale / 2) if skipped else scale
    for point in points[:healthy_points]:
        point.lr = 1e-3
    return points


def found(points: Iterable[Point], panel: Panel | None = None) -> list[Finding]:
    """Everything a panel says about points."""
    panel = panel or Panel()
    return [finding for point in points for finding in panel.update(point)]


def severe(findings: Iterable[Finding]) -> list[Finding]:
    """The findings that are more than a note."""
    return [finding for finding in findings if finding.severity is not Severity.OBSERVE]


def rollbacks(findings: Iterable[Finding]) -> list[Finding]:
    """The findings that call for a rollback."""
    return [finding for finding in findings if finding.severity is Severity.ROLLBACK]
