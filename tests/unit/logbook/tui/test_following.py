"""The screen keeps up with a run that goes on, and with one whose controller comes and goes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest
from midwatch.logbook import decisions as d
from midwatch.logbook.segment import segment_path
from midwatch.logbook.state import Incident
from midwatch.logbook.tui import source
from midwatch.logbook.tui.timeline_list import TimelineList
from midwatch.tests.support.screens import drive, text_on, until, watch_app, watching
from midwatch.tests.support.synthetic_run import SyntheticRun


def test_new_steps_and_incidents_appear(small_run: SyntheticRun) -> None:
    async def scenario() -> None:
        async with watching(small_run) as pilot:
            small_run.train(75)
            await until(pilot, lambda: "75/2000" in text_on(pilot))
            small_run.crash(rank=3)
            await until(pilot, lambda: "RECOVERING" in text_on(pilot))
            await pilot.press("4")
            await until(pilot, lambda: "rank 3 on n001 died" in text_on(pilot))

    drive(scenario())


def test_a_note_that_cannot_be_made_is_told_of_and_the_watch_goes_on(
    small_run: SyntheticRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_chapter(directory: Path, incident: Incident) -> NoReturn:
        raise ValueError("a mistake of ours")

    async def scenario() -> None:
        monkeypatch.setattr(source, "read_chapter", read_chapter)
        async with watching(small_run) as pilot:
            small_run.crash(rank=3)
            await pilot.press("4")
            await until(pilot, lambda: "Not all of this incident can be told" in text_on(pilot))
            assert "rank 3 on n001 died" in text_on(pilot)
            small_run.train(75)
            await until(pilot, lambda: "75/2000" in text_on(pilot))

    drive(scenario())


def test_it_survives_the_controller_going_away_and_coming_back(small_run: SyntheticRun) -> None:
    async def scenario() -> None:
        async with watching(small_run) as pilot:
            small_run.close()
            small_run.now_s += 600.0
            await until(pilot, lambda: "silent for 10 min" in text_on(pilot))
            small_run.reopen()
            small_run.train(70)
            await until(pilot, lambda: "70/2000" in text_on(pilot))
            assert "silent" not in text_on(pilot)

    drive(scenario())


def test_the_timeline_follows_until_somebody_moves_up(small_run: SyntheticRun) -> None:
    async def scenario() -> None:
        async with watching(small_run) as pilot:
            await pilot.press("3")
            rows = pilot.app.query_one(TimelineList)
            small_run.train(100)
            await until(pilot, lambda: any("00000100" in str(r.event) for r in rows.rows))
            assert rows.cursor == len(rows.rows) - 1
            await pilot.press("up")
            held = rows.rows[rows.cursor].seq
            count = len(rows.rows)
            small_run.train(150)
            await until(pilot, lambda: len(rows.rows) > count)
            assert rows.rows[rows.cursor].seq == held

    drive(scenario())


def test_what_a_writer_withdrew_is_forgotten(small_run: SyntheticRun) -> None:
    async def scenario() -> None:
        async with watching(small_run) as pilot:
            app = watch_app(pilot)
            path = segment_path(small_run.folder / "journal", 1)
            size = path.stat().st_size
            small_run.decide(d.Observe(), "never acknowledged")
            seq = small_run.state.seq
            await until(pilot, lambda: app.book.state.seq == seq)
            os.truncate(path, size)
            await until(pilot, lambda: app.book.is_whole and app.book.state.seq == seq - 2)
            assert app.book.series.last_step == 60

    drive(scenario())


def test_a_journal_that_cannot_be_read_is_told_of_and_the_rest_stays(
    small_run: SyntheticRun,
) -> None:
    async def scenario() -> None:
        async with watching(small_run) as pilot:
            path = segment_path(small_run.folder / "journal", 1)
            sound = path.read_bytes()
            last = sound.splitlines(keepends=True)[-1]
            # A line that does not belong, and sound ones behind it: no torn tail.
            path.write_bytes(sound + b"spilt\n" + last)
            await until(pilot, lambda: "cannot read the journal" in text_on(pilot))
            assert "60/2000" in text_on(pilot)
            path.write_bytes(sound)
            await until(pilot, lambda: "cannot read" not in text_on(pilot))

    drive(scenario())
