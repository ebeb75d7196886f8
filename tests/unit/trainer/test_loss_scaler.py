"""The loss scale falls at once, grows by patience, and stands at its floor without raising."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from midwatch.trainer.config import LossScalerConfig
from midwatch.trainer.loss_scaler import LossScaler, ScalerState, advance, window_at

OPT = LossScalerConfig()


def _run(config: LossScalerConfig, votes: list[bool]) -> list[ScalerState]:
    states = [ScalerState(scale=config.init)]
    for found_inf in votes:
        states.append(advance(states[-1], found_inf, config))
    return states


def test_defaults_are_those_of_opt() -> None:
    assert (OPT.init, OPT.factor, OPT.window, OPT.floor) == (4.0, 2.0, 256, 2.0**-5)


def test_window_doubles_and_halves_with_the_scale() -> None:
    windows = {s: window_at(s, OPT) for s in (16.0, 8.0, 4.0, 2.0, 0.25, 2.0**-5)}
    assert windows == {16.0: 1024, 8.0: 512, 4.0: 256, 2.0: 128, 0.25: 16, 2.0**-5: 2}


def test_scale_grows_after_a_clean_window_only() -> None:
    states = _run(OPT, [False] * 255)
    assert states[-1].scale == 4.0
    assert advance(states[-1], False, OPT).scale == 8.0
    interrupted = advance(states[-1], True, OPT)
    assert (interrupted.scale, interrupted.good_steps) == (2.0, 0)


def test_every_overflow_lowers_the_scale_until_the_floor() -> None:
    states = _run(OPT, [True] * 30)
    assert [s.scale for s in states[:9]] == [4.0 / 2**i for i in range(8)] + [2.0**-5]
    last = states[-1]
    assert last.scale == 2.0**-5
    assert last.skips_total == last.consecutive_skips == 30
    assert last.floor_dwell_steps == 23


def test_dwell_counts_clean_steps_at_the_floor_and_ends_with_it() -> None:
    at_floor = ScalerState(scale=2.0**-5, floor_dwell_steps=9)
    once = advance(at_floor, False, OPT)
    assert (once.scale, once.floor_dwell_steps) == (2.0**-5, 10)
    twice = advance(once, False, OPT)
    assert (twice.scale, twice.floor_dwell_steps) == (2.0**-4, 0)


def test_scale_stops_at_its_maximum() -> None:
    config = LossScalerConfig(init=4.0, window=1, max=16.0)
    assert [s.scale for s in _run(config, [False] * 40)][-1] == 16.0


@given(st.lists(st.booleans(), max_size=300))
def test_invariants_hold_for_any_votes(votes: list[bool]) -> None:
    config = LossScalerConfig(init=4.0, window=4, floor=0.25, max=64.0)
    states = _run(config, votes)
    for before, after, found_inf in zip(states, states[1:], votes, strict=False):
        assert config.floor <= after.scale <= config.max
        assert math.log2(after.scale).is_integer()
        assert after.skips_total == before.skips_total + found_inf
        assert (after.consecutive_skips > 0) == found_inf
        assert (after.scale > before.scale) <= (not found_inf)
        assert (after.floor_dwell_steps > 0) <= (before.scale == config.floor)


@given(st.lists(st.booleans(), max_size=60), st.lists(st.booleans(), max_size=60))
def test_a_restored_scaler_goes_on_alike(before: list[bool], after: list[bool]) -> None:
    config = LossScalerConfig(init=4.0, window=3)
    scaler = LossScaler(config)
    for vote in before:
        scaler.update(vote)
    restored = LossScaler(config)
    restored.load_state_dict(scaler.state_dict())
    for vote in after:
        scaler.update(vote)
        restored.update(vote)
    assert restored.state == scaler.state


def test_reset_and_load_keep_within_bounds() -> None:
    scaler = LossScaler(OPT)
    scaler.update(True)
    scaler.reset(1e9)
    assert scaler.state == ScalerState(scale=OPT.max, skips_total=1)
    scaler.load_state_dict(ScalerState(scale=2.0**-9).__dict__)
    assert scaler.scale == OPT.floor
