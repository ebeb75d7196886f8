"""Every key of every view does what it says, on a real screen driven by a pilot."""

from __future__ import annotations

import pytest
from midwatch.logbook.tui.charts_pane import ChartsPane
from midwatch.logbook.tui.checkpoints_pane import CheckpointsPane
from midwatch.logbook.tui.fleet import Health
from midwatch.logbook.tui.fleet_map import FleetMap
from midwatch.logbook.tui.span import Span
from midwatch.logbook.tui.tab_strip import VIEWS
from midwatch.logbook.tui.text_screen import TextScreen
from midwatch.logbook.tui.timeline_list import TimelineList
from midwatch.logbook.tui.timeline_pane import TimelinePane
from midwatch.tests.support.screens import (
    RecordingControls,
    drive,
    text_on,
    until,
    watch_app,
    watching,
)
from midwatch.tests.support.synthetic_run import SyntheticRun
from textual.widgets import ContentSwitcher, Input, OptionList


def test_numbers_change_the_view_and_q_leaves(night: SyntheticRun) -> None:
    async def scenario() -> None:
        async with watching(night) as pilot:
            for number, view in enumerate(VIEWS, 1):
                await pilot.press(str(number))
                assert pilot.app.query_one(ContentSwitcher).current == view
                assert f"[{number} {view}]" in text_on(pilot)
            await pilot.press("q")
            await until(pilot, lambda: pilot.app._exit)

    drive(scenario())


@pytest.mark.parametrize("size", [(120, 40), (80, 24)])
@pytest.mark.parametrize("view", range(1, len(VIEWS) + 1))
def test_how_to_see_all_keys_and_how_to_leave_is_on_every_view(
    night: SyntheticRun, size: tuple[int, int], view: int
) -> None:
    async def scenario() -> None:
        async with watching(night, size) as pilot:
            await pilot.press(str(view))
            await until(
                pilot, lambda: text_on(pilot).splitlines()[-1].startswith(" ? Keys  q Quit")
            )

    drive(scenario())


def test_the_head_says_what_is_done_and_why(night: SyntheticRun) -> None:
    async def scenario() -> None:
        async with watching(night, (80, 24)) as pilot:
            seen = text_on(pilot)
            for words in (
                "opt-175b",
                "TRAINING",
                "watching inc-0002 (divergence)",
                "back to the last good checkpoint",
                "405/2000",
                "0.000106 x0.9",
                "scale 32768",
                "ettr 78.8%",
                "left 22 h",
            ):
                assert words in seen, words

    drive(scenario())


def test_charts_zoom_pan_follow_and_go_to_incidents(night: SyntheticRun) -> None:
    async def scenario() -> None:
        async with watching(night) as pilot:
            charts = pilot.app.query_one(ChartsPane)
            last = charts.book.series.last_step
            await pilot.press("plus", "plus")
            assert charts.span == Span(101)
            assert f"steps {last - 100} .. {last}" in text_on(pilot)
            await pilot.press("left")
            assert charts.span == Span(101, last - 25)
            await pilot.press("right")
            assert charts.span == Span(101)
            await pilot.press("left", "minus")
            assert charts.span.steps == 202
            await pilot.press("f")
            assert charts.span == Span(202)
            await pilot.press("0")
            assert charts.span == Span()
            await pilot.press("left_square_bracket")
            first, end = charts.span.bounds(1, last)
            assert first < 400 <= end
            await pilot.press("left_square_bracket")
            first, end = charts.span.bounds(1, last)
            assert first <= 230 <= end < 400
            await pilot.press("right_square_bracket")
            assert charts.span.bounds(1, last)[1] >= 400

    drive(scenario())


def test_enter_shows_one_chart_alone_and_arrows_choose_it(night: SyntheticRun) -> None:
    async def scenario() -> None:
        async with watching(night) as pilot:
            await pilot.press("down", "enter")
            await pilot.pause()
            assert "grad norm" in text_on(pilot)
            assert "learning rate" not in text_on(pilot)
            await pilot.press("enter")
            await pilot.pause()
            assert "learning rate" in text_on(pilot)
            await pilot.press("up", "enter")
            await pilot.pause()
            assert "grad norm" not in text_on(pilot)

    drive(scenario())


def test_the_fleet_is_walked_by_arrows_and_n_finds_trouble(night: SyntheticRun) -> None:
    async def scenario() -> None:
        async with watching(night) as pilot:
            await pilot.press("2")
            fleet = pilot.app.query_one(FleetMap)
            assert len(fleet.nodes) == 126
            await pilot.press("right", "right", "left", "down", "up")
            assert fleet.cursor == 1
            assert "n001 lost a GPU to ECC" in text_on(pilot)
            await pilot.press("end")
            assert fleet.selected is not None
            assert (fleet.selected.node, fleet.selected.health) == ("n125", Health.SPARE)
            await pilot.press("home")
            assert fleet.cursor == 0
            await pilot.press("n")
            assert fleet.selected.node == "n001"

    drive(scenario())


def test_the_timeline_moves_filters_and_opens(night: SyntheticRun) -> None:
    async def scenario() -> None:
        async with watching(night) as pilot:
            await pilot.press("3")
            rows = pilot.app.query_one(TimelineList)
            pane = pilot.app.query_one(TimelinePane)
            last = len(rows.rows) - 1
            assert (rows.cursor, rows.is_following) == (last, True)
            await pilot.press("up", "up", "down")
            assert (rows.cursor, rows.is_following) == (last - 1, False)
            await pilot.press("pageup")
            assert rows.cursor < last - 10
            await pilot.press("pagedown", "end")
            assert (rows.cursor, rows.is_following) == (last, True)
            await pilot.press("home")
            assert rows.rows[rows.cursor].kind == "run-submitted"
            await pilot.press("a")
            assert len(rows.rows) > last + 400
            await pilot.press("a", "slash", *"ECC", "enter")
            assert {row.kind for row in rows.rows} == {"worker-exited", "decision"}
            await pilot.press("slash")
            assert pilot.app.focused is pane.query_one(Input)
            await pilot.press("escape", "escape")
            assert len(rows.rows) == last + 1
            await pilot.press("home", "enter")
            assert isinstance(pilot.app.screen, TextScreen)
            assert '"kind": "run-submitted"' in text_on(pilot)
            await pilot.press("escape")
            assert not isinstance(pilot.app.screen, TextScreen)

    drive(scenario())


def test_the_note_of_the_chosen_incident_is_shown(night: SyntheticRun) -> None:
    async def scenario() -> None:
        async with watching(night) as pilot:
            await pilot.press("4")
            assert "level-shift" in text_on(pilot) or "loss 4.9 against 2.4" in text_on(pilot)
            await pilot.press("down")
            await pilot.pause()
            assert pilot.app.query_one(OptionList).highlighted == 1
            # What the state remembers is there at once, what the journal holds soon after.
            assert "inc-0001: rank 13 on n001 died" in text_on(pilot)
            await until(pilot, lambda: "quarantine n001" in text_on(pilot))
            await pilot.press("enter", "end")
            await until(pilot, lambda: "What to watch next" in text_on(pilot))

    drive(scenario())


def test_checkpoints_are_listed_with_where_they_lie(night: SyntheticRun) -> None:
    """By the journal for who only watches; by a look at the tiers where there is one."""

    async def scenario() -> None:
        async with watching(night, (160, 40)) as pilot:
            await pilot.press("5")
            assert "+store" not in text_on(pilot)
        async with watching(night, (160, 40), RecordingControls()) as pilot:
            await pilot.press("5")
            await until(pilot, lambda: text_on(pilot).count(" disk+store ") == 4)
            assert text_on(pilot).count(" disk ") == 5

    drive(scenario())


def test_checkpoints_are_listed_with_their_health(night: SyntheticRun) -> None:
    async def scenario() -> None:
        async with watching(night, (160, 40)) as pilot:
            await pilot.press("5", "ctrl+end")
            seen = text_on(pilot)
            assert "9 checkpoints, 1 pinned; memory: step 404" in seen
            assert "pinned: the paper's" in seen
            assert "healthy for 5 steps" in seen
            assert pilot.app.query_one(CheckpointsPane).chosen() == "step-00000050.a0001"

    drive(scenario())


def test_the_palette_finds_views_and_interventions(night: SyntheticRun) -> None:
    async def scenario() -> None:
        async with watching(night) as pilot:
            await pilot.press("colon")
            await pilot.press(*"fleet")
            await until(pilot, lambda: "View: fleet" in text_on(pilot))
            await pilot.press("enter")
            await until(pilot, lambda: pilot.app.query_one(ContentSwitcher).current == "fleet")

    drive(scenario())


@pytest.mark.parametrize("size", [(20, 8), (40, 12), (80, 24), (250, 70)])
def test_any_size_shows_every_view_and_may_change(
    night: SyntheticRun, size: tuple[int, int]
) -> None:
    async def scenario() -> None:
        async with watching(night, size) as pilot:
            for key in "12345":
                await pilot.press(key)
                await pilot.resize_terminal(*reversed(size))
                await pilot.pause()
                await pilot.resize_terminal(*size)
                await pilot.pause()
            assert "opt-175b" in text_on(pilot)
            assert watch_app(pilot).book.state.step == 405

    drive(scenario())
