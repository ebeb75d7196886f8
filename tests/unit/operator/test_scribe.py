"""Notes are written beside the controller: newest state last, in spite of any disk."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from midwatch.logbook.state import Incident, RunState
from midwatch.operator import desk as desk_module
from midwatch.operator.desk import note_path
from midwatch.operator.scribe import ScribedDesk
from midwatch.tests.sim.night import DiskJournal, Night
from midwatch.tests.support.live_run import wait_until


@pytest.fixture
def night(tmp_path: Path) -> Night:
    night = Night(journal=DiskJournal(tmp_path / "journal"))
    night.run_to_step(43)
    night.world.kill_worker(1)
    night.run(lambda s: bool(s.incidents))
    return night


def incident(state: RunState) -> Incident:
    return state.incidents["inc-0001"]


def test_notes_and_their_plots_are_written_and_close_waits_for_them(
    night: Night, tmp_path: Path
) -> None:
    desk = ScribedDesk(tmp_path)
    desk.write_note(night.state, incident(night.state))
    wait_until(note_path(tmp_path, "inc-0001").exists, "the note never came")
    state = night.run_to_end()
    desk.write_note(state, incident(state))
    assert desk.finish(30.0)
    text = note_path(tmp_path, "inc-0001").read_text()
    assert "Closed: recovered in" in text
    assert "![The numbers around inc-0001](inc-0001.svg)" in text
    assert (tmp_path / "notes" / "inc-0001.svg").read_text().startswith("<svg")


def test_a_stuck_disk_holds_up_nobody_and_the_newest_state_is_what_remains(
    night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, free = threading.Event(), threading.Event()
    real = desk_module._write_atomically

    def write(path: Path, data: bytes) -> None:
        stuck.set()
        assert free.wait(30.0)
        real(path, data)

    monkeypatch.setattr(desk_module, "_write_atomically", write)
    desk = ScribedDesk(tmp_path)
    first = night.state
    desk.write_note(first, incident(first))
    assert stuck.wait(30.0)
    state = night.run_to_end()
    for _ in range(1000):
        desk.write_note(state, incident(state))
    assert not desk.finish(0.0)
    free.set()
    assert desk.finish(30.0)
    assert "Closed: recovered in" in note_path(tmp_path, "inc-0001").read_text()


def test_a_disk_that_refuses_is_tried_again(
    night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("midwatch.operator.scribe.RETRY_S", 0.01)
    real, refused = desk_module._write_atomically, []

    def write(path: Path, data: bytes) -> None:
        if len(refused) < 3:
            refused.append(path)
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(desk_module, "_write_atomically", write)
    desk = ScribedDesk(tmp_path)
    desk.write_note(night.state, incident(night.state))
    assert desk.finish(30.0)
    assert len(refused) == 3
    assert note_path(tmp_path, "inc-0001").exists()
