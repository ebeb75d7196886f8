"""The pulse of a controller: left now and then, read from its file, no trouble without one."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from midwatch.logbook.pulse import EVERY_S, NAME, Pulse, pulse_s
from midwatch.logbook.tui.source import JournalSource
from midwatch.tests.support.builders import START_S
from midwatch.tests.support.synthetic_run import SyntheticRun


def test_a_pulse_is_left_now_and_then(tmp_path: Path) -> None:
    now_s = START_S
    pulse = Pulse(tmp_path, lambda: now_s)
    assert pulse_s(tmp_path) == 0.0
    pulse.beat()
    assert pulse_s(tmp_path) == START_S
    now_s += EVERY_S / 2
    pulse.beat()
    assert pulse_s(tmp_path) == START_S
    now_s += EVERY_S / 2
    pulse.beat()
    assert pulse_s(tmp_path) == START_S + EVERY_S
    # A clock that was set back must not silence it until it has caught up.
    now_s = START_S - 3600.0
    pulse.beat()
    assert pulse_s(tmp_path) == START_S - 3600.0


def test_a_folder_that_takes_no_pulse_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = START_S
    pulse = Pulse(tmp_path / "gone", lambda: now_s)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            pulse.beat()
            now_s += EVERY_S
    assert len(caplog.records) == 1
    assert pulse_s(tmp_path / "gone") == 0.0


def test_the_screen_learns_of_it(small_run: SyntheticRun) -> None:
    journal = small_run.folder / "journal"
    source = JournalSource(journal)
    assert source.advance(1.0).alive_s == 0.0
    Pulse(journal, lambda: START_S).beat()
    assert source.advance(1.0).alive_s == START_S
    assert (journal / NAME).stat().st_size == 0
