"""Non-finite values: one is a note, several in a row are a rollback, a missing field counts too."""

from __future__ import annotations

import math

import pytest
from midwatch.health.numerics.point import Point
from midwatch.logbook.findings import Finding, Severity
from midwatch.tests.support.curves import (
    found,
    healthy,
    raised,
    rollbacks,
    severe,
    shift,
    with_scaler,
)


def of_values(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.detector == "non-finite"]


def test_one_nan_is_a_note() -> None:
    run = healthy(300, seed=1)
    run[200].loss = math.nan
    assert severe(found(run)) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_eight_in_a_row_are_a_rollback_since_the_first(value: float) -> None:
    run = healthy(300, seed=2)
    for point in run[200:]:
        point.loss = value
    call = rollbacks(found(run))[0]
    assert call.onset_step == 201
    assert call.step <= 208


def test_nan_from_the_very_first_step_is_seen() -> None:
    run = [Point(step=step, loss=math.nan) for step in range(1, 20)]
    call = rollbacks(found(run))[0]
    assert (call.kind, call.onset_step, call.step) == ("non-finite", 1, 8)


def test_nan_at_every_other_point_adds_up() -> None:
    run = [Point(step=s, loss=math.nan if s % 2 else 2.0) for s in range(1, 60)]
    assert rollbacks(of_values(found(run)))


def test_nan_at_every_third_point_is_one_episode_and_a_rollback() -> None:
    run = [Point(step=s, loss=math.nan if s % 3 == 0 else 2.0) for s in range(1, 3000)]
    findings = of_values(found(run))
    assert [f.severity for f in findings] == [Severity.OBSERVE, Severity.WARN, Severity.ROLLBACK]
    assert findings[-1].step <= 50


def test_nan_now_and_then_is_one_note() -> None:
    run = [Point(step=s, loss=math.nan if s % 12 == 0 else 2.0) for s in range(1, 3000)]
    assert [f.severity for f in of_values(found(run))] == [Severity.OBSERVE]


def test_points_that_lie_far_apart_need_fewer() -> None:
    run = [Point(step=s * 100, loss=2.0 if s < 5 else math.nan) for s in range(1, 9)]
    call = rollbacks(found(run))[0]
    assert (call.onset_step, call.step) == (500, 700)


def test_a_loss_that_vanishes_in_an_excursion_counts_in_full() -> None:
    run = raised(healthy(200, seed=3), 150, shift(3.0))
    for point in run[152:]:
        point.loss = None
    call = rollbacks(found(run))[0]
    assert (call.kind, call.onset_step, call.step) == ("non-finite", 151, 160)


def test_a_loss_that_vanishes_for_good_from_a_quiet_run_is_called_later() -> None:
    run = healthy(200, seed=3)
    for point in run[150:]:
        point.loss = None
    call = rollbacks(found(run))[0]
    assert (call.onset_step, call.step) == (151, 174)


def test_a_log_that_becomes_coarser_is_healthy() -> None:
    run = healthy(600, seed=3)
    for index, point in enumerate(run):
        if index > 200 and index % 10:
            point.loss = None
    assert rollbacks(found(run)) == []


def test_a_log_that_prints_its_loss_now_and_then_is_healthy() -> None:
    run = healthy(600, seed=4)
    for index, point in enumerate(run):
        if index % 10:
            point.loss = None
    assert severe(found(run)) == []


def test_overflow_under_a_scaler_is_not_counted_here() -> None:
    run = with_scaler(healthy(300, seed=5))
    assert math.inf in {point.grad_norm for point in run}
    assert of_values(found(run)) == []


def test_gradients_that_are_not_finite_without_a_scaler_count() -> None:
    run = healthy(300, seed=6)
    for point in run[200:]:
        point.grad_norm, point.skipped = math.nan, 1
    call = rollbacks(of_values(found(run)))[0]
    assert (call.onset_step, call.step) == (201, 208)


def test_it_ends_when_values_are_finite_again() -> None:
    run = healthy(400, seed=7)
    for point in (*run[200:203], *run[320:323]):
        point.loss = math.nan
    findings = of_values(found(run))
    assert [(f.severity, f.onset_step) for f in findings if f.severity is Severity.WARN] == [
        (Severity.WARN, 201)
    ]
    assert {finding.onset_step for finding in findings} == {201, 321}
