"""The loss scaler: collapse is seen whatever the loss does; coming down at the start is normal."""

from __future__ import annotations

import pytest
from midwatch.health.numerics.config import PanelConfig, ScalerConfig
from midwatch.health.numerics.panel import Panel
from midwatch.health.numerics.point import Point
from midwatch.logbook.findings import Finding, Severity
from midwatch.tests.support.curves import (
    FLOOR,
    found,
    healthy,
    raised,
    rollbacks,
    severe,
    spike,
    with_scaler,
)


def of_scaler(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.detector == "scaler-collapse"]


@pytest.mark.parametrize("initial", [4.0, 65536.0, 2.0**32])
def test_coming_down_from_the_initial_scale_is_normal(initial: float) -> None:
    assert of_scaler(found(with_scaler(healthy(600, seed=1), initial=initial))) == []


def test_a_skip_now_and_again_is_normal() -> None:
    run = with_scaler(healthy(4000, seed=2), window=40)
    assert sum(point.skipped for point in run) > 60
    assert of_scaler(found(run)) == []


def test_a_healed_spike_with_a_few_skips_is_not_a_collapse() -> None:
    run = raised(healthy(800, seed=3), 500, spike(1.5, 3))
    with_scaler(run, fits=lambda index: 90.0 if 500 <= index < 506 else 1500.0)
    assert of_scaler(found(run)) == []


def test_the_scale_falls_to_its_floor_while_the_loss_is_flat() -> None:
    run = with_scaler(healthy(700, seed=4), fits=lambda index: 1500.0 if index < 500 else 0.0)
    findings = of_scaler(found(run))
    assert [finding.severity for finding in findings] == [Severity.WARN, Severity.ROLLBACK]
    call = findings[-1]
    assert call.onset_step in range(500, 503)
    assert call.step <= 500 + 25


def test_twenty_steps_at_the_floor_are_a_collapse_even_from_the_start() -> None:
    run = with_scaler(healthy(80, seed=5), initial=4.0, fits=lambda index: 0.0)
    call = rollbacks(found(run))[0]
    at_floor = next(point.step for point in run if point.loss_scale == FLOOR)
    assert call.step - at_floor == 19
    assert call.onset_step <= at_floor


def test_a_scale_that_cannot_fall_further_is_pinned_whatever_its_value() -> None:
    run = with_scaler(
        healthy(700, seed=6), fits=lambda index: 1500.0 if index < 500 else 0.0, floor=64.0
    )
    assert rollbacks(of_scaler(found(run)))


def test_a_floor_of_its_own_can_be_set() -> None:
    run = with_scaler(healthy(300, seed=7), initial=4.0, fits=lambda index: 1.5, floor=1.0)
    assert rollbacks(found(run)) == []
    config = PanelConfig(scaler=ScalerConfig(floor=1.0))
    assert rollbacks(found(run, Panel(config)))


def test_below_one_is_a_note_and_below_a_half_a_warning() -> None:
    def fits(index: int) -> float:
        return 3.0 if index < 300 else (0.9 if index < 500 else 0.3)

    run = with_scaler(healthy(700, seed=8), initial=4.0, fits=fits, window=400)
    findings = of_scaler(found(run))
    assert [(f.severity, f.value) for f in findings] == [
        (Severity.OBSERVE, 0.5),
        (Severity.WARN, 0.25),
    ]


def test_half_of_the_steps_skipped_is_a_collapse() -> None:
    run = healthy(400, seed=9)
    for index, point in enumerate(run):
        point.loss_scale = 1024.0
        point.skipped = int(index >= 300 and index % 2)
    assert rollbacks(of_scaler(found(run)))


def test_skips_count_in_a_log_without_the_scale() -> None:
    run = healthy(400, seed=10)
    for index, point in enumerate(run):
        point.skipped = int(index < 9 or index >= 300)
    findings = of_scaler(found(run))
    assert rollbacks(findings)
    assert findings[0].onset_step >= 300


def test_a_log_every_tenth_step_carries_its_skips() -> None:
    run = healthy(300, seed=11, every=10)
    for index, point in enumerate(run):
        point.loss_scale = 512.0 if index < 200 else 1.0
        point.skipped = 10 if index < 2 or index >= 200 else 0
        if point.skipped:
            point.loss = None
    call = rollbacks(of_scaler(found(run)))[0]
    assert call.step <= 2010 + 20


def test_an_unusually_high_scale_is_warned_of_once() -> None:
    run = healthy(3500, seed=12)
    for index, point in enumerate(run):
        point.loss_scale = 2.0 if index < 3000 else min(64.0, 2.0 * 2 ** ((index - 3000) // 50))
    findings = of_scaler(found(run))
    assert [(f.kind, f.severity, f.value) for f in findings] == [
        ("scale-high", Severity.WARN, 16.0)
    ]


def test_a_scale_that_grows_in_its_first_steps_is_normal() -> None:
    run = with_scaler(healthy(1500, seed=13), initial=32.0, fits=lambda i: 8192.0, window=50)
    assert of_scaler(found(run)) == []


def test_recovery_ends_the_episode_and_a_second_collapse_is_seen() -> None:
    points = [Point(step=step, loss=2.0, loss_scale=4.0) for step in range(1, 400)]
    for point in points:
        if 100 <= point.step < 140 or point.step >= 320:
            point.loss_scale = 0.25
    findings = of_scaler(found(points))
    assert [(f.severity, f.onset_step) for f in findings] == [
        (Severity.WARN, 100),
        (Severity.WARN, 320),
    ]


def test_after_a_restart_the_scale_may_come_down_again() -> None:
    panel = Panel()
    found(with_scaler(healthy(300, seed=14), initial=1024.0), panel)
    panel.restarted(200)
    again = with_scaler(healthy(300, seed=14), initial=65536.0)
    assert severe(found(again[200:], panel)) == []
