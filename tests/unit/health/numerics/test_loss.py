"""Spike, level shift and creep: a spike that heals is a note, what does not heal is rolled back."""

from __future__ import annotations

import math
import random

import pytest
from midwatch.health.numerics.config import LevelShiftConfig, PanelConfig, SpikeConfig
from midwatch.health.numerics.panel import Panel
from midwatch.health.numerics.point import Point
from midwatch.logbook.findings import Severity
from midwatch.tests.support.curves import (
    creep,
    found,
    healthy,
    lr_kick,
    raised,
    rollbacks,
    severe,
    shift,
    spike,
)


@pytest.mark.parametrize("noise_frac", [0.002, 0.01, 0.04])
@pytest.mark.parametrize("every", [1, 10, 500])
def test_a_healthy_run_raises_nothing(noise_frac: float, every: int) -> None:
    for seed in range(3):
        points = healthy(1500, seed=seed, noise_frac=noise_frac, every=every)
        assert severe(found(points)) == []


def test_one_step_outliers_are_notes_only() -> None:
    points = healthy(3000, seed=1, noise_frac=0.02, outlier_frac=0.02)
    findings = found(points)
    assert severe(findings) == []
    assert any(finding.kind == "spike" for finding in findings)


@pytest.mark.parametrize("height", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("points", [1, 2, 3])
def test_a_spike_that_heals_at_once_is_one_note(height: float, points: int) -> None:
    run = raised(healthy(800, seed=2), 600, spike(height, points))
    findings = [finding for finding in found(run) if finding.detector == "spike"]
    assert [(finding.severity, finding.onset_step) for finding in findings] == [
        (Severity.OBSERVE, 601)
    ]
    assert severe(found(run)) == []


@pytest.mark.parametrize("height", [0.08, 0.2, 1.0, 10.0])
@pytest.mark.parametrize("every", [1, 100])
def test_a_shift_escalates_to_one_rollback_within_ten_points(height: float, every: int) -> None:
    run = raised(healthy(800, seed=3, every=every), 600, shift(height))
    findings = [finding for finding in found(run) if finding.step >= 600 * every]
    assert [f.severity for f in findings if f.detector in ("spike", "level-shift")] == [
        Severity.OBSERVE,
        Severity.WARN,
        Severity.ROLLBACK,
    ]
    call = rollbacks(findings)[0]
    assert call.onset_step == 601 * every
    assert call.step - call.onset_step <= 10 * every
    assert call.reference == pytest.approx(2.4, rel=0.05)


def test_separate_spikes_are_not_a_shift() -> None:
    run = healthy(900, seed=4)
    for first in range(600, 660, 4):
        raised(run[: first + 1], first, shift(1.0))
    assert severe(found(run)) == []


@pytest.mark.parametrize(("high", "low"), [(1, 1), (2, 2), (2, 1), (3, 3), (5, 5)])
@pytest.mark.parametrize("height", [0.4, 1.0])
def test_a_divergence_that_swings_is_called_within_a_hundred_points(
    high: int, low: int, height: float
) -> None:
    run = raised(healthy(900, seed=14), 700, lambda at: height * (at % (high + low) < high))
    findings = [f for f in found(run) if f.detector == "level-shift"]
    assert [f.severity for f in findings] == [Severity.WARN, Severity.ROLLBACK]
    assert findings[0].step <= 740
    assert findings[-1].step <= 800


def test_spikes_that_come_often_and_leave_most_points_alone_are_no_divergence() -> None:
    run = raised(healthy(1500, seed=15), 600, lambda at: 1.5 * (at % 4 == 0))
    assert severe(found(run)) == []


def test_a_smaller_unit_of_loss_changes_nothing() -> None:
    for factor in (0.01, 0.1, 10.0):
        run = raised(healthy(800, seed=13), 600, shift(0.1))
        for point in run:
            assert point.loss is not None
            point.loss *= factor
        assert [f.onset_step for f in rollbacks(found(run))] == [601]


@pytest.mark.parametrize("seed", [0, 3, 6, 9])
def test_a_running_average_is_given_time_to_fade_by_itself(seed: int) -> None:
    run = healthy(3000, seed=seed)
    # Noise that wanders, as shuffled data makes it; the average leaves little of the other.
    rng, slow = random.Random(seed), 0.0
    average = run[0].loss
    for index, point in enumerate(run):
        slow = 0.97 * slow + rng.gauss(0, 0.004)
        assert average is not None
        assert point.loss is not None
        spiked = 1.5 if index > 800 and index % 150 == 0 else 1.0
        average = point.loss = 0.9 * average + 0.1 * point.loss * spiked * (1 + slow)
    assert rollbacks(found(run)) == []
    assert [f.onset_step for f in rollbacks(found(raised(run, 2930, shift(0.5))))] == [2931]


def test_a_jump_to_nan_is_called_with_the_onset_of_the_jump() -> None:
    run = lr_kick(250)
    call = rollbacks(found(run))[0]
    assert call.onset_step in (251, 252)
    assert call.step <= 262


def test_a_jump_in_the_first_steps_is_seen_once_there_is_a_past() -> None:
    call = rollbacks(found(lr_kick(30)))[0]
    assert 31 <= call.onset_step <= 33
    assert call.step <= 43


@pytest.mark.parametrize("first", [5, 8, 10, 13])
def test_a_divergence_among_the_first_points_is_called(first: int) -> None:
    run = [Point(step=100 * i, loss=2.0 + 8.0 / (1 + i / 8) + 0.02 * (i % 3)) for i in range(1, 80)]
    for point in run[first - 1 :]:
        point.loss = 12.0
    call = rollbacks(found(run))[0]
    assert (call.onset_step, call.step) == (100 * first, 100 * (first + 7))


@pytest.mark.parametrize("noise_frac", [0.05, 0.3])
def test_noise_among_the_first_points_is_no_divergence(noise_frac: float) -> None:
    for seed in range(40):
        rng = random.Random(seed)
        run = [Point(step=s, loss=1.2 * math.exp(rng.gauss(0, noise_frac))) for s in range(1, 60)]
        assert severe(found(run)) == []


@pytest.mark.parametrize("every", [50, 100, 500])
def test_a_warm_up_blinds_nobody_for_long_in_a_coarse_log(every: int) -> None:
    run = healthy(150, seed=9, every=every)
    for index, point in enumerate(run):
        point.lr = 3e-4 * min(1.0, point.step / 2000)
        assert point.loss is not None
        # Past the fall of the first points, 30 points or 3000 steps after the warm-up.
        point.loss = 2.2 * math.exp(random.Random(index).gauss(0, 0.01))
    first = max(100, 5000 // every)
    call = rollbacks(found(raised(run, first, shift(0.2))))[0]
    assert call.onset_step == (first + 1) * every


def test_a_loss_near_zero_may_wiggle() -> None:
    run = healthy(800, seed=5)
    for index, point in enumerate(run):
        point.loss = 0.004 + 0.012 * abs(math.sin(index * 12.9898) ** 9)
    assert found(run) == [] or severe(found(run)) == []


def test_a_noiseless_loss_does_not_alarm_about_nothing() -> None:
    run = [Point(step=step, loss=2.0 + 1e-6 * (step % 2)) for step in range(1, 400)]
    run += [Point(step=step, loss=2.01) for step in range(400, 500)]
    assert severe(found(run)) == []


def test_a_restart_of_the_schedule_may_raise_the_loss_somewhat() -> None:
    def rates(run: list[Point]) -> list[Point]:
        for index, point in enumerate(run):
            point.lr = 1e-3 if index >= 600 else 1e-3 * (1 - index / 600) + 1e-5
        return run

    bump = 0.12
    assert severe(found(rates(raised(healthy(800, seed=6), 600, shift(bump))))) == []
    assert rollbacks(found(raised(healthy(800, seed=6), 600, shift(bump))))
    assert rollbacks(found(rates(raised(healthy(800, seed=6), 600, shift(1.5)))))


def test_a_smoothed_log_with_more_patience_gives_one_bad_point_time_to_fade() -> None:
    run = raised(healthy(900, seed=7), 600, spike(1.0, 1))
    average = run[0].loss
    for point in run:
        assert average is not None
        assert point.loss is not None
        average = point.loss = 0.9 * average + 0.1 * point.loss
    patient = PanelConfig(level_shift=LevelShiftConfig(warn_points=25, rollback_points=30))
    findings = found(run, Panel(patient))
    assert severe(findings) == []
    assert any(finding.kind == "spike" for finding in findings)


def test_a_coarser_log_is_learned_anew() -> None:
    fine = healthy(100, seed=8, noise_frac=0.0005)
    coarse = healthy(300, seed=9, noise_frac=0.03, every=500)[20:]
    assert severe(found(fine + coarse)) == []


@pytest.mark.parametrize(("height", "over"), [(0.03, 200), (0.04, 150), (0.04, 300)])
def test_a_creep_is_warned_of_and_rolled_back(height: float, over: int) -> None:
    run = raised(healthy(3600, seed=10), 3000, creep(height, over))
    findings = severe(found(run))
    assert {finding.detector for finding in findings} == {"creep"}
    warned, called = findings
    assert warned.severity is Severity.WARN
    assert called.severity is Severity.ROLLBACK
    assert warned.step <= 3000 + over + 40
    assert called.step <= 3000 + over + 180
    assert 2800 <= called.onset_step <= 3060


def test_a_creep_that_goes_back_is_not_rolled_back() -> None:
    def shape(since: int) -> float:
        return 0.04 * max(0.0, min(1.0, since / 100, (160 - since) / 40))

    findings = severe(found(raised(healthy(3600, seed=11), 3000, shape)))
    assert [(f.detector, f.severity) for f in findings] == [("creep", Severity.WARN)]


def test_healing_time_can_be_set() -> None:
    patient = PanelConfig(level_shift=LevelShiftConfig(warn_points=40, rollback_points=50))
    run = raised(healthy(800, seed=12), 600, spike(1.0, 30))
    assert rollbacks(found(run))
    assert severe(found(run, Panel(patient))) == []


def test_a_shift_that_lasts_becomes_the_new_normal() -> None:
    config = PanelConfig(spike=SpikeConfig(adopt_points=50))
    run = raised(raised(healthy(1200, seed=13), 600, shift(0.5)), 900, shift(0.5))
    onsets = {finding.onset_step for finding in rollbacks(found(run, Panel(config)))}
    assert onsets == {601, 901}
