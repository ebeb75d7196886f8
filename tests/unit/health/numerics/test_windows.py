"""The tools below the detectors: a window that knows its quantiles, a drift its noise."""

from __future__ import annotations

import random
import statistics
from collections import deque

import pytest
from midwatch.health.numerics.drift import Drift
from midwatch.health.numerics.window import SortedWindow


def test_a_window_agrees_with_sorting_its_last_values() -> None:
    rng = random.Random(0)
    window, last = SortedWindow(16), deque[float](maxlen=16)
    for _ in range(500):
        value = float(rng.randrange(20))
        window.push(value)
        last.append(value)
        ordered = sorted(last)
        assert window.ordered == ordered
        assert window.median() == ordered[len(ordered) // 2]
        assert window.quantile(0.75) == ordered[min(len(ordered) - 1, 3 * len(ordered) // 4)]
    window.clear()
    assert len(window) == 0


@pytest.mark.parametrize("trend", [0.0, -0.002, 0.002])
def test_drift_measures_the_noise_of_a_level_through_a_trend(trend: float) -> None:
    rng = random.Random(1)
    drift = Drift(8, 64, 18)
    for step in range(3000):
        drift.observe(step, 5.0 + trend * step + rng.gauss(0, 0.1))
    assert drift.noise == pytest.approx(0.1 / 24**0.5, rel=0.35)


def test_a_steady_climb_has_no_excess_growth_and_a_bend_has() -> None:
    rng = random.Random(2)
    drift = Drift(8, 64, 18)
    excess = []
    value = 1.0
    for step in range(4000):
        value += 0.0002 if step < 3000 else 0.0010
        if drift.observe(step, value + rng.gauss(0, 0.01)):
            excess.append((step, *drift.growth(12)))
    before = [z for step, _, z in excess if step < 3000]
    after = [(grown, z) for step, grown, z in excess if 3090 < step < 3110]
    assert max(before) < 9
    assert all(z > 9 for _, z in after)
    assert statistics.mean(grown for grown, _ in after) == pytest.approx(0.075, abs=0.02)


def test_a_reset_drift_waits_for_new_history() -> None:
    drift = Drift(4, 32, 18)
    assert any(drift.observe(step, float(step % 5)) for step in range(200))
    drift.reset()
    assert not any(drift.observe(step, float(step % 5)) for step in range(80))
    assert drift.growth(12) == (0.0, 0.0)
