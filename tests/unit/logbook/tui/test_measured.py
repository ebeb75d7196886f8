"""A chart of what was measured on held-out text, in runs that do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from midwatch.logbook import events as ev
from midwatch.logbook.record import Record
from midwatch.logbook.tui.chart import PERPLEXITY, Chart
from midwatch.logbook.tui.measured import Measurements
from midwatch.logbook.tui.series import Point
from midwatch.tests.support.screens import compare_picture, drive, text_on, until, watching
from midwatch.tests.support.synthetic_run import SyntheticRun

PICTURES = Path(__file__).with_name("pictures")


def records(*measured: tuple[int, int, float]) -> list[Record[ev.Event]]:
    """Records of (attempt, step, loss)."""
    return [
        Record(seq, 1.7e9 + seq, attempt, 1, ev.ValidationDone(attempt, step, loss, 8, 256, 0.0, 1))
        for seq, (attempt, step, loss) in enumerate(measured, 1)
    ]


def test_each_stands_for_the_steps_since_the_one_before() -> None:
    known = Measurements()
    assert not known
    known.add(records((1, 30, 0.0)))
    known.add_past(records((1, 10, 2.0), (1, 20, 1.0)))
    assert known
    lineage = [(1, 0)]
    high, low = math.exp(2.0), math.exp(1.0)
    whole = [Point(1, 10, high, high), Point(11, 20, low, low), Point(21, 30, 1.0, 1.0)]
    assert known.points(1, 100, lineage) == whole
    assert known.points(15, 25, lineage) == [Point(15, 20, low, low), Point(21, 25, 1.0, 1.0)]


def test_what_was_gone_back_past_is_left_and_what_is_not_finite_has_no_value() -> None:
    known = Measurements()
    known.add(records((1, 10, 2.0), (1, 20, 9e9), (2, 20, 1.0)))
    points = known.points(1, 100, [(1, 0), (2, 12)])
    assert [(p.first, p.last, p.is_abandoned) for p in points] == [
        (1, 10, False),
        (11, 20, True),
        (11, 20, False),
    ]
    assert math.isnan(points[1].low)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SyntheticRun]:
    run = SyntheticRun(tmp_path_factory.mktemp("measured"), nodes=4, spares=1, slots=2)
    run.start("the first attempt")
    for step in range(20, 241, 20):
        run.train(step)
        run.measure(30.0)
    run.crash(rank=3)
    run.start("the spare takes over", step=200, incident="inc-0001")
    for step in range(220, 281, 20):
        run.train(step)
        run.measure(30.0)
    yield run
    run.close()


@pytest.mark.parametrize(("name", "size"), [("large", (120, 40)), ("small", (80, 24))])
def test_it_has_a_chart_beside_the_others(
    measured: SyntheticRun, tmp_path: Path, name: str, size: tuple[int, int]
) -> None:
    async def scenario() -> None:
        async with watching(measured, size) as pilot:
            await until(pilot, lambda: "held-out perplexity 10" in text_on(pilot))
            picture = f"charts-measured-{name}.svg"
            await compare_picture(pilot, PICTURES / picture, tmp_path / picture)

    drive(scenario())


def test_a_run_that_measures_nothing_has_none_until_it_does(small_run: SyntheticRun) -> None:
    async def scenario() -> None:
        async with watching(small_run) as pilot:
            chart = next(c for c in pilot.app.query(Chart) if c.topic.column == PERPLEXITY)
            assert not chart.display
            assert "perplexity" not in text_on(pilot)
            small_run.measure(10.0)
            await until(pilot, lambda: chart.display and "held-out perplexity" in text_on(pilot))

    drive(scenario())


def test_what_goes_on_is_in_the_head(small_run: SyntheticRun) -> None:
    async def scenario() -> None:
        async with watching(small_run) as pilot:
            small_run.measure(10.0, is_cut=True)
            await until(pilot, lambda: "measuring step 60 on held-out text" in text_on(pilot))
            assert "4 of 8 rounds" in text_on(pilot)
            small_run.measure(10.0)
            await until(pilot, lambda: "ppl" in text_on(pilot))
            assert "measuring" not in text_on(pilot).splitlines()[1]

    drive(scenario())
