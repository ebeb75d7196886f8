"""How often the state goes to memory: as asked, or as often as its measured cost allows."""

from __future__ import annotations

import pytest
from midwatch.checkpoints.cadence import Cadence


def measured(step_s: float, cost_s: float, frac: float = 0.01, takes_s: float = 0.0) -> Cadence:
    cadence = Cadence(None, frac)
    for _ in range(50):
        cadence.step_done(step_s)
        cadence.copy_done(cost_s, takes_s or cost_s)
    return cadence


def test_a_fixed_distance_is_kept_whatever_it_costs() -> None:
    cadence = Cadence(3, 0.01)
    cadence.step_done(0.1)
    cadence.copy_done(10.0, 10.0)
    assert [cadence.is_due(since, 1) for since in (1, 2, 3, 4)] == [False, False, True, True]


def test_the_first_copy_is_made_before_anything_is_measured() -> None:
    assert Cadence(None, 0.01).is_due(1, 100)


@pytest.mark.parametrize(("cost_s", "steps"), [(0.0005, 1), (0.001, 1), (0.0101, 11), (0.5, 500)])
def test_the_distance_keeps_the_cost_within_its_share(cost_s: float, steps: int) -> None:
    assert measured(0.1, cost_s).interval_steps == steps


def test_a_dearer_copy_is_made_less_often_as_soon_as_it_is_seen() -> None:
    cadence = measured(0.1, 0.001)
    before = cadence.interval_steps
    for _ in range(20):
        cadence.copy_done(0.1, 0.1)
    assert cadence.interval_steps > 50 * before


def test_no_copy_is_begun_that_the_next_save_would_wait_for() -> None:
    cadence = measured(0.1, 0.001, takes_s=0.35)
    assert not cadence.is_due(5, 3)
    assert cadence.is_due(5, 4)
