"""Figures are kept whole, drawn coarsely, and no spike is lost on the way."""

from __future__ import annotations

import math

import pytest
from midwatch.logbook.tui.plot import Cell, Drawing, Frame, Scale, draw
from midwatch.logbook.tui.series import FANOUT, Point, Series
from midwatch.logbook.tui.span import Span
from midwatch.logbook.y_range import YRange, cut_text
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
    assert drawing.shown == YRange(2.0, 2.0, 2.0, 2.0)


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


def long_run(num_steps: int = 10_000) -> list[float]:
    """A loss from ten nats down to two, most of the way within its first hundredth."""
    return [2.0 + 8.0 * math.exp(-500.0 * n / num_steps) - n / num_steps
            for n in range(num_steps)]  # fmt: skip


def drawn(values: list[float], frame: Frame) -> Drawing:
    series = Series()
    series.add([(1, make_sample(n, loss=value)) for n, value in enumerate(values, 1)])
    return draw(series.points("loss", 1, len(values), 8 * frame.width), frame)


def rows_of(drawing: Drawing, kind: str) -> set[int]:
    return {y for y, row in enumerate(drawing.rows) for cell in row if cell.kind == kind}


def test_the_first_steps_of_a_long_run_do_not_flatten_the_rest() -> None:
    drawing = drawn(long_run(), Frame(1, 10_000, 60, 8))
    assert drawing.shown is not None
    assert drawing.shown.high < 5.0
    assert drawing.shown.greatest == 10.0
    assert drawing.rows[0][0] == Cell("^", "cut")
    assert rows_of(drawing, "curve") >= set(range(1, 8))


def test_spikes_however_many_do_not_flatten_the_rest() -> None:
    values = long_run()
    for n in range(60):
        values[100 + 160 * n] = 174.0
    drawing = drawn(values, Frame(1, 10_000, 60, 8))
    assert drawing.shown is not None
    assert drawing.shown.high < 5.0
    assert cut_text(drawing.shown, ".4f") == ", peaks to 174.0000 cut off"
    # Each of them is seen all the same.
    spiked = {int((101 + 160 * n - 1) * 119 / 9999) // 2 for n in range(60)}
    assert spiked <= {x for x, cell in enumerate(drawing.rows[0]) if cell.kind == "cut"}


def test_a_dip_leaves_the_picture_at_the_bottom() -> None:
    values = [5.0 + 0.1 * (n % 7) for n in range(200)]
    values[120] = -300.0
    drawing = drawn(values, Frame(1, 200, 60, 4))
    assert rows_of(drawing, "cut") == {3}
    assert {cell.char for cell in drawing.rows[3] if cell.kind == "cut"} == {"v"}


def test_a_curve_that_is_spread_out_is_shown_whole() -> None:
    values = [2.0 + 8.0 * math.exp(-n / 60) for n in range(400)]
    drawing = drawn(values, Frame(1, 400, 60, 8))
    assert drawing.shown == YRange(min(values), 10.0, min(values), 10.0)
    assert rows_of(drawing, "cut") == set()


@pytest.mark.parametrize(("num", "rows"), [(5, {0, 1, 2, 3}), (30, {3})])
def test_many_marks_keep_to_the_bottom(num: int, rows: set[int]) -> None:
    marks = tuple(range(3, 600, 600 // num))
    drawing = draw([Point(599, 600, 1.0, 2.0)], Frame(1, 600, 60, 4, marks))
    assert rows_of(drawing, "mark") == rows
    assert sum(cell.kind == "mark" for cell in drawing.rows[3]) >= num - 1


def test_nothing_is_drawn_of_nothing() -> None:
    drawing = draw([], Frame(1, 1, 5, 2))
    assert drawing.shown is None
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
