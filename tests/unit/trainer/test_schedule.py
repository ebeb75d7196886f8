"""Warm-up, decay, and changes that scale what remains of the schedule."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from midwatch.logbook.errors import ConfigError
from midwatch.logbook.wire import LrChange
from midwatch.trainer.config import OptimizerConfig, ScheduleConfig
from midwatch.trainer.schedule import factor_for_lr, lr_at

PEAK = OptimizerConfig(lr=1.2e-4)
PLAN = ScheduleConfig(warmup_steps=2000, decay_steps=142_000)

changes = st.lists(
    st.builds(
        LrChange,
        from_step=st.integers(1, 200_000),
        factor=st.floats(0.05, 2.0),
        cause=st.just("test"),
    ),
    max_size=5,
).map(tuple)
steps = st.integers(1, 200_000)


def test_warms_up_to_the_peak_and_decays_to_a_tenth() -> None:
    assert lr_at(1, PEAK, PLAN) == pytest.approx(1.2e-4 / 2000)
    assert lr_at(1000, PEAK, PLAN) == pytest.approx(0.6e-4)
    assert lr_at(2000, PEAK, PLAN) == 1.2e-4
    assert lr_at(72_000, PEAK, PLAN) == pytest.approx(1.2e-4 * 0.55)
    assert lr_at(142_000, PEAK, PLAN) == pytest.approx(1.2e-5)
    assert lr_at(500_000, PEAK, PLAN) == pytest.approx(1.2e-5)


def test_no_warm_up_starts_near_the_peak() -> None:
    plan = ScheduleConfig(warmup_steps=0, decay_steps=100)
    assert 0.98 * 1.2e-4 < lr_at(1, PEAK, plan) < 1.2e-4


def test_a_change_scales_the_remaining_schedule_from_its_step_on() -> None:
    change = (LrChange(38_500, 0.9, "test"),)
    assert lr_at(38_499, PEAK, PLAN, change) == lr_at(38_499, PEAK, PLAN)
    for step in (38_500, 90_000, 142_000):
        assert lr_at(step, PEAK, PLAN, change) == pytest.approx(0.9 * lr_at(step, PEAK, PLAN))


@given(steps, changes)
def test_changes_multiply_in_any_order(step: int, made: tuple[LrChange, ...]) -> None:
    rate = lr_at(step, PEAK, PLAN, made)
    product = math.prod(c.factor for c in made if c.from_step <= step)
    assert rate == pytest.approx(lr_at(step, PEAK, PLAN) * product)
    assert rate == pytest.approx(lr_at(step, PEAK, PLAN, made[::-1]))
    assert 0.0 < rate < math.inf


@given(steps, changes, st.floats(1e-9, 1.0))
def test_the_factor_for_a_rate_gives_that_rate(
    step: int, made: tuple[LrChange, ...], target_lr: float
) -> None:
    factor = factor_for_lr(step, target_lr, PEAK, PLAN, made)
    changed = (*made, LrChange(step, factor, "test"))
    assert lr_at(step, PEAK, PLAN, changed) == pytest.approx(target_lr, rel=1e-12)
    assert lr_at(step - 1, PEAK, PLAN, changed) == lr_at(step - 1, PEAK, PLAN, made)


@given(steps, steps)
def test_the_rate_never_rises_after_warm_up(first: int, second: int) -> None:
    low, high = sorted((max(first, 2000), max(second, 2000)))
    assert lr_at(high, PEAK, PLAN) <= lr_at(low, PEAK, PLAN)


@pytest.mark.parametrize("target_lr", [-1e-4, math.nan, math.inf])
def test_impossible_rates_are_refused(target_lr: float) -> None:
    with pytest.raises(ConfigError) as caught:
        factor_for_lr(10, target_lr, PEAK, PLAN)
    assert caught.value.code == "lr-out-of-range"


def test_no_factor_lifts_a_schedule_from_zero() -> None:
    plan = ScheduleConfig(decay_steps=10, end_lr_frac=0.0)
    with pytest.raises(ConfigError) as caught:
        factor_for_lr(10, 1e-4, PEAK, plan)
    assert caught.value.code == "lr-out-of-range"
