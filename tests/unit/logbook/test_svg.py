"""Charts are XML whatever the record holds: extremes, gaps, hostile titles, a million points."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from midwatch.logbook.svg import POINTS_MAX, Line, Mark, Panel, draw, thin, ticks

floats = st.floats(allow_nan=True, allow_infinity=True)


def points_of(svg: str) -> list[tuple[float, float]]:
    found = re.findall(r"(-?[\d.]+),(-?[\d.]+)", " ".join(re.findall(r'points="([^"]*)"', svg)))
    return [(float(x), float(y)) for x, y in found]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(floats, max_size=20),
    st.sampled_from([0.0, 2.0, 10.0]),
    st.text(max_size=12),
    st.lists(st.floats(-1e9, 1e9), max_size=4),
)
def test_any_values_and_any_title_make_a_chart(
    ys: list[float], log_base: float, title: str, at: list[float]
) -> None:
    line = Line([float(x) for x in range(len(ys))], ys, "#000000", title)
    marks = [Mark(x, "#ff0000", title) for x in at]
    svg = draw([Panel(title, [line], log_base)], title, "step", marks)
    ElementTree.fromstring(svg)
    assert "nan" not in re.sub(r">[^<]*<", "><", svg)
    assert all(-1 <= x <= 901 for x, _ in points_of(svg))


def test_values_closer_than_a_float_can_divide_are_one() -> None:
    assert ticks(0.0, 5e-324) == [0.0]


def test_higher_values_stand_higher() -> None:
    svg = draw([Panel("loss", [Line([0, 1, 2], [1.0, 3.0, 2.0], "#000")])], "t", "step")
    (_, low), (_, high), (_, middle) = points_of(svg)
    assert high < middle < low


def test_a_spike_does_not_flatten_the_rest_where_it_may_leave_the_picture() -> None:
    ys = [2.0 + 0.01 * (n % 10) for n in range(200)]
    ys[50] = 174.0
    whole, cut = (
        draw([Panel("loss", [Line(range(200), ys, "#000")], is_cut=is_cut)], "t", "step")
        for is_cut in (False, True)
    )
    heights = [
        max(y for _, y in points[60:]) - min(y for _, y in points[60:])
        for points in (points_of(whole), points_of(cut))
    ]
    assert heights[0] < 1.0
    assert heights[1] > 50.0
    assert "peaks to 174 cut off" in cut
    assert "cut off" not in whole


def test_marks_without_a_label_are_ticks_where_there_are_many() -> None:
    def length(num: int) -> float:
        marks = [Mark(float(n), "#f00", "", True) for n in range(num)]
        svg = draw([Panel("p", [Line([0, 99], [1, 2], "#000")])], "t", "step", marks)
        found = re.search(r'y1="([\d.]+)" y2="([\d.]+)" stroke="#f00"', svg)
        assert found is not None
        return float(found[2]) - float(found[1])

    assert length(10) > 100.0
    assert length(60) == pytest.approx(7.0)


def test_a_value_that_is_not_finite_is_a_gap_and_a_cross() -> None:
    ys = [1.0, 2.0, math.nan, 2.0, 1.0]
    svg = draw([Panel("loss", [Line(range(5), ys, "#000")])], "t", "step")
    assert svg.count("<polyline") == 2
    assert svg.count("<path") == 1


def test_a_panel_without_values_is_left_out() -> None:
    panels = [Panel("loss", [Line([0, 1], [1.0, 2.0], "#000")]), Panel("loss scale", [])]
    assert "loss scale" not in draw(panels, "t", "step")
    assert "nothing was recorded" in draw([], "t", "step")


def test_a_long_curve_is_thinned_and_keeps_its_spike() -> None:
    xs = list(range(200_000))
    ys = [1.0] * len(xs)
    ys[123_457], ys[50] = 99.0, math.nan
    kept = thin(xs, ys)
    assert len(kept) <= 1.5 * POINTS_MAX
    assert (123_457, 99.0) in kept
    assert any(math.isnan(y) for _, y in kept)
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)


def test_a_curve_aside_may_leave_the_picture_and_flattens_no_other() -> None:
    main = Line([0, 1, 2], [1.0, 2.0, 3.0], "#000")
    aside = Line([0, 1, 2], [1.0, 500.0, 1e9], "#999", is_aside=True)
    alone = points_of(draw([Panel("p", [main])], "t", "step"))
    both = points_of(draw([Panel("p", [main, aside])], "t", "step"))
    assert both[:3] == alone
    assert all(math.isfinite(y) and abs(y) < 1000 for _, y in both)


def test_labels_of_marks_at_one_place_do_not_cover_each_other() -> None:
    marks = [Mark(5.0, "#000", f"a mark {n}") for n in range(4)]
    svg = draw([Panel("p", [Line([0, 9], [1, 2], "#000")])], "t", "step", marks)
    heights = re.findall(r'y="([\d.]+)"[^>]*>a mark', svg)
    assert len(set(heights)) == 4


@pytest.mark.parametrize(
    ("low", "high", "base", "expected"),
    [
        (0.0, 10.0, 0.0, [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]),
        (0.13, 0.19, 0.0, [0.13, 0.14, 0.15, 0.16, 0.17, 0.18, 0.19]),
        (1.0, 1000.0, 10.0, [1.0, 10.0, 100.0, 1000.0]),
        (3.0, 3.0, 0.0, [3.0]),
    ],
)
def test_ticks_are_round(low: float, high: float, base: float, expected: list[float]) -> None:
    assert ticks(low, high, base) == pytest.approx(expected)
