"""Figures are kept whole, drawn coarsely, and no spike is lost on the way."""

from __future__ import annotations

import math

import pytest
from midwatch.logbook.tui.plot import Frame, Scale, draw
from midwatch.logbook.tui.series import FANOUT, Point, Series
from midwatch.logbook.tui.span import Span
from midwatch.tests.support.builders import make_sample


def series_of(count: int, **at: float) -> Series:
    """Steps 1 to count with loss 2, other losses by step as s7=9.0."""
    series = Series()
    series.add([(1, make_sample(s, loss=at.get(f"s{s}", 2.0))) for s in range(1, count + 1)])
    return series


@pytest.mark.parametrize("most", [10, 50, 100_000])
def test_every_step_is_covered_once_and_a_spike_is_kept(most: int) -> None:
    series = series_of(1000, s517=9.0)
    points = series.points("loss", 3, 990, most)
    covered = [step for p in points for step in range(p.first, p.last + 1)]
    assert covered == list(range(covered[0], 991))
    assert covered[0] <= 3 < covered[0] + 988 * FANOUT // most + FANOUT
    assert max(p.high for p in points) == 9.0
    if most < 988:
        assert len(points) <= most + 4 * FANOUT


def test_values_that_are_not_finite_are_told_apart() -> None:
    points = series_of(40, s5=math.nan, s6=math.inf).points("loss", 1, 40, 1000)
    assert [p.first for p in points if math.isnan(p.low)] == [5, 6]
    drawing = draw(points, Frame(1, 40, 40, 4))
    assert [x for x, cell in enumerate(drawing.rows[0]) if cell.kind == "bad"] == [4, 5]
    assert (drawing.low, drawing.high) == (2.0, 2.0)


def test_a_block_with_a_value_that_is_not_finite_keeps_the_range_of_the_others() -> None:
    count = FANOUT**3
    series = series_of(count, s3=math.nan, s4=9.0)
    assert series.points("loss", 1, count, 1) == [Point(1, count, 2.0, 9.0)]


def test_what_a_rollback_left_behind_is_marked() -> None:
    series = series_of(20)
    series.add([(2, make_sample(step)) for step in range(11, 16)])
    points = series.points("loss", 1, 20, 100)
    assert [p.first for p in points if p.is_abandoned] == list(range(11, 21))
    assert series.last_step == 15


def test_the_history_goes_before_the_end() -> None:
    series = Series()
    series.add([(1, make_sample(11))])
    series.add_past([(1, make_sample(10))])
    assert [p.first for p in series.points("loss", 1, 20, 100)] == [10, 11]
    assert (series.first_step, series.last_step) == (10, 11)


def test_a_curve_runs_from_corner_to_corner_and_incidents_stand_in_their_column() -> None:
    points = [Point(step, step, float(step), float(step)) for step in (1, 2, 3)]
    drawing = draw(points, Frame(1, 3, 10, 3, marks=(2, 99)))
    assert drawing.rows[2][0].kind == drawing.rows[0][9].kind == "curve"
    column = [row[4].kind for row in drawing.rows]
    assert column.count("mark") == 2
    kinds = {cell.kind for row in drawing.rows for cell in row[5:]}
    assert "mark" not in kinds


def test_a_logarithmic_scale_needs_positive_values() -> None:
    wide = [Point(1, 1, 1.0, 1.0), Point(2, 2, 1000.0, 1000.0)]
    assert draw(wide, Frame(1, 2, 8, 2, scale=Scale.AUTO)).is_log
    assert not draw(wide, Frame(1, 2, 8, 2)).is_log
    assert not draw([*wide, Point(3, 3, 0.0, 0.0)], Frame(1, 3, 8, 2, scale=Scale.LOG)).is_log


def test_nothing_is_drawn_of_nothing() -> None:
    drawing = draw([], Frame(1, 1, 5, 2))
    assert math.isnan(drawing.low)
    assert {cell.char for row in drawing.rows for cell in row} == {" "}


def test_a_span_zooms_around_its_middle_and_moves_within_the_run() -> None:
    whole = Span()
    assert whole.bounds(1, 1000) == (1, 1000)
    half = whole.zoomed(True, 1, 1000)
    assert half == Span(500)
    assert half.bounds(1, 1000) == (501, 1000)
    earlier = half.panned(False, 1, 1000)
    assert earlier.bounds(1, 1000) == (376, 875)
    begin, end = earlier.zoomed(True, 1, 1000).bounds(1, 1000)
    assert abs((begin + end) // 2 - (376 + 875) // 2) <= 1
    for _ in range(9):
        earlier = earlier.panned(False, 1, 1000)
    assert earlier.bounds(1, 1000)[0] == 1
    assert half.zoomed(False, 1, 1000) == Span()
    assert earlier.centred(990, 1, 1000) == Span(500)


def test_a_held_span_stays_where_it_is_and_a_following_one_moves_on() -> None:
    assert Span(100, 500).bounds(1, 2000) == Span(100, 500).bounds(1, 1000)
    assert Span(100).bounds(1, 2000) == (1901, 2000)


@pytest.mark.parametrize("batch", [1, 3, 64, 1000])
def test_it_does_not_matter_in_what_portions_steps_come(batch: int) -> None:
    steps = [(1, make_sample(s, loss=float(s % 7))) for s in range(1, 301)]
    steps += [(2, make_sample(s, loss=9.0)) for s in range(250, 400)]
    whole, portions = Series(), Series()
    whole.add(steps)
    for at in range(0, len(steps), batch):
        portions.add(steps[at : at + batch])
    for most in (5, 50, 5000):
        assert portions.points("loss", 1, 400, most) == whole.points("loss", 1, 400, most)
    assert len(whole.points("loss", 1, 400, 5000)) == len(steps)
