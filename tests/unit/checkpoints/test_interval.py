"""The closed forms give the published table, and the optimum is one."""

from __future__ import annotations

import math

import pytest
from midwatch.checkpoints.interval import (
    daly_higher_order_interval_s,
    daly_interval_s,
    expected_ettr_frac,
    optimal_interval_s,
    young_interval_s,
)

# (d/M, tau*/M, and how far off Young, Daly and Daly's higher order are, in percent)
TABLE = [
    (0.001, 0.04406, 1.51, -0.76, 0.0),
    (0.01, 0.13483, 4.89, -2.53, -0.001),
    (0.1, 0.38318, 16.7, -9.39, -0.04),
    (0.5, 0.69829, 43.2, -28.4, -0.55),
    (1.0, 0.84141, 68.1, -50.8, -1.8),
]


@pytest.mark.parametrize(("ratio", "optimum", "young", "daly", "higher"), TABLE)
def test_the_table(ratio: float, optimum: float, young: float, daly: float, higher: float) -> None:
    mtbf_s = 43_200.0
    exact = optimal_interval_s(ratio * mtbf_s, mtbf_s)
    assert exact / mtbf_s == pytest.approx(optimum, abs=5e-6)
    for form, percent, digits in (
        (young_interval_s, young, 0.06),
        (daly_interval_s, daly, 0.06),
        (daly_higher_order_interval_s, higher, 0.05),
    ):
        off = 100.0 * (form(ratio * mtbf_s, mtbf_s) / exact - 1.0)
        assert off == pytest.approx(percent, abs=digits)


@pytest.mark.parametrize("ratio", [1e-12, 1e-6, 1e-3, 0.1, 1.0, 5.0, 30.0])
def test_it_solves_its_equation_at_any_ratio(ratio: float) -> None:
    x = optimal_interval_s(ratio, 1.0)
    assert 0.0 < x <= 1.0
    # Near 1 the equation loses x itself, so there it is checked in the form solved for 1 - x.
    if x < 0.999:
        assert x + math.log1p(-x) == pytest.approx(-ratio, rel=1e-4)
    else:
        assert 1.0 - x == pytest.approx(math.exp(-ratio - 1.0), rel=1e-2)


@pytest.mark.parametrize("stall_s", [0.01, 1.0, 40.0, 4000.0])
def test_no_other_interval_does_better(stall_s: float) -> None:
    mtbf_s, costs = 11_124.0, {"restart_s": 180.0, "downtime_s": 30.0}
    best_s = optimal_interval_s(stall_s, mtbf_s)
    best = expected_ettr_frac(best_s, stall_s, mtbf_s, **costs)
    for factor in (0.25, 0.9, 0.99, 1.01, 1.1, 4.0):
        assert expected_ettr_frac(factor * best_s, stall_s, mtbf_s, **costs) < best


@pytest.mark.parametrize(
    ("mtbf_h", "stall_s", "restart_s", "meta"),
    [(12.0, 40.0, 1200.0, 0.931), (12.0, 1.0, 180.0, 0.989), (3.09, 0.5, 60.0, 0.985)],
)
def test_it_agrees_with_the_published_predictions(
    mtbf_h: float, stall_s: float, restart_s: float, meta: float
) -> None:
    mtbf_s = 3600.0 * mtbf_h
    interval_s = young_interval_s(stall_s, mtbf_s)
    ettr = expected_ettr_frac(interval_s, stall_s, mtbf_s, restart_s=restart_s)
    assert ettr == pytest.approx(meta, abs=0.003)


def test_edges() -> None:
    assert optimal_interval_s(0.0, 100.0) == 0.0
    assert daly_higher_order_interval_s(300.0, 100.0) == 100.0
    assert expected_ettr_frac(0.0, 1.0, 100.0) == 0.0
    for stall_s, mtbf_s in ((-1.0, 10.0), (1.0, 0.0), (math.nan, 10.0), (1.0, math.nan)):
        with pytest.raises(ValueError):
            optimal_interval_s(stall_s, mtbf_s)
