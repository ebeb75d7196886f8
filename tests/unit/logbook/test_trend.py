"""The running line equals the one fitted to the whole series at once."""

import math
import random

import numpy as np
import pytest
from midwatch.logbook.trend import Trend


def fitted(steps: range, values: list[float]) -> Trend:
    trend = Trend()
    for step, value in zip(steps, values, strict=True):
        trend = trend.add(step, value)
    return trend


@pytest.mark.parametrize("first", [0, 143_000, 10**9])
def test_slope_equals_a_batch_fit(first: int) -> None:
    rng = random.Random(first)
    values = [3400.0 + 0.25 * i + rng.gauss(0.0, 5.0) for i in range(200)]
    expected = np.polyfit(np.arange(200.0), values, 1)[0]
    trend = fitted(range(first, first + 200), values)
    assert trend.slope == pytest.approx(expected, rel=1e-6)
    assert trend.relative_slope == pytest.approx(expected / np.mean(values), rel=1e-6)


def test_sign_follows_the_direction_even_below_zero() -> None:
    assert fitted(range(3), [-1.0, -2.0, -3.0]).relative_slope == pytest.approx(-0.5)
    assert fitted(range(3), [4.0, 3.0, 2.0]).relative_slope == pytest.approx(-1 / 3)
    assert fitted(range(3), [7.0, 7.0, 7.0]).relative_slope == 0.0


def test_unknown_until_two_different_steps() -> None:
    assert Trend().relative_slope is None
    assert Trend().add(5, 1.0).relative_slope is None
    assert Trend().add(5, 1.0).add(5, 2.0).relative_slope is None
    assert Trend().add(5, 1.0).add(6, 2.0).relative_slope is not None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_never_a_downward_trend(bad: float) -> None:
    trend = fitted(range(4), [4.0, 3.0, bad, 2.0])
    assert trend.relative_slope == math.inf
    assert trend.slope is not None
    assert trend.slope < 0.0
    assert trend.num_points == 4


def test_a_mean_of_zero_keeps_the_sign() -> None:
    assert fitted(range(2), [1.0, -1.0]).relative_slope == -math.inf
