"""Gradient and activation norms: news is a jump that stays or a bend of the trend, not growth."""

from __future__ import annotations

import math
import random

from midwatch.health.numerics.point import Point
from midwatch.logbook.findings import Finding, Severity
from midwatch.tests.support.curves import found, healthy, severe


def of(detector: str, findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.detector == detector]


def norms(count: int, grad: list[float], activation: list[float] | None = None) -> list[Point]:
    rng = random.Random(0)
    run = healthy(count, seed=1)
    for index, point in enumerate(run):
        point.grad_norm = grad[index] * math.exp(rng.gauss(0, 0.05))
        if activation is not None:
            point.activation_norm = activation[index] * (1 + rng.gauss(0, 2e-4))
    return run


def test_a_gradient_norm_that_triples_and_stays_is_warned_of() -> None:
    findings = of("grad-norm", found(norms(800, [0.3] * 500 + [1.0] * 300)))
    assert [finding.severity for finding in findings] == [Severity.OBSERVE, Severity.WARN]
    assert findings[-1].onset_step == 501
    assert findings[-1].step <= 501 + 16
    assert 0.25 < findings[-1].reference < 0.35


def test_single_large_gradients_are_notes() -> None:
    grad = [0.3] * 900
    for index in range(400, 900, 100):
        grad[index] = 6.0
    findings = of("grad-norm", found(norms(900, grad)))
    assert len(findings) == 5
    assert severe(findings) == []


def test_growth_over_weeks_is_no_news() -> None:
    grad = [0.2 * math.exp(index / 2000) for index in range(4000)]
    activation = [3400 * (1 + index / 20000) for index in range(4000)]
    assert found(norms(4000, grad, activation)) == []


def test_the_norm_of_a_skipped_step_is_left_out() -> None:
    run = norms(800, [0.3] * 800)
    for point in run[500:]:
        point.grad_norm, point.skipped = 9.0, 1
        point.loss_scale = 8.0
    assert of("grad-norm", found(run)) == []


def test_an_activation_norm_that_turns_upward_is_seen() -> None:
    falling = [4100 - 0.1 * index for index in range(800)]
    rising = [falling[-1] + 0.4 * index for index in range(400)]
    findings = of("activation-norm", found(norms(1200, [0.2] * 1200, falling + rising)))
    assert findings
    assert findings[0].kind == "activation-norm-trend"
    assert 700 <= findings[0].onset_step <= 900
    assert findings[-1].severity is Severity.WARN


def test_an_activation_norm_that_jumps_is_warned_of_within_few_sparse_points() -> None:
    run = [
        Point(step=21000 + 75 * i, activation_norm=3400 + 3 * i + (i * 7) % 5) for i in range(30)
    ]
    for extra, value in enumerate((3650.0, 4180.0, 4400.0)):
        run.append(Point(step=21000 + 75 * (30 + extra), activation_norm=value))
    findings = of("activation-norm", found(run))
    assert findings[-1].severity is Severity.WARN
    assert findings[-1].onset_step == 21000 + 75 * 30


def test_zero_or_missing_norms_are_passed_over() -> None:
    run = norms(300, [0.3] * 300)
    for point in run[100:200]:
        point.grad_norm = 0.0
        point.activation_norm = None
    assert severe(found(run)) == []
