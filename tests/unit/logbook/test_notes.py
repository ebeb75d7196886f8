"""Incident notes: what a person finds in them, whatever state the incident is in."""

from __future__ import annotations

from pathlib import Path

import pytest
from midwatch.logbook.notes import render_note
from midwatch.logbook.state import RunState
from midwatch.operator.desk import FileDesk, note_path
from midwatch.tests.sim.night import Night
from midwatch.tests.sim.training import Fragility, Physics
from midwatch.tests.support.builders import make_spec


def note(state: RunState, number: int = 0) -> str:
    return render_note(state, list(state.incidents.values())[number])


@pytest.fixture(scope="module")
def rolled_back() -> RunState:
    night = Night(make_spec(trainer={"steps": 200}), physics=Physics(fragile=(_WEAK,)))
    return night.run_to_end()


_WEAK = Fragility(80, 150, 0.95)


def test_a_note_of_a_killed_worker_tells_who_when_and_what_was_lost() -> None:
    night = Night()
    night.run_to_step(43)
    night.world.kill_worker(1)
    text = note(night.run_to_end())
    assert text.startswith("# inc-0001: rank 1 on node-")
    assert "Fault: **worker-killed**" in text
    assert "SIGKILL at step 43" in text
    assert "**start-attempt 2**" in text
    assert "| resumed from |  | step-00000040.a0001 |" in text
    assert "| steps to train again |  | 3 |" in text
    assert "Closed: recovered in" in text


def test_a_note_of_a_rollback_shows_rates_checkpoint_and_what_was_passed_over(
    rolled_back: RunState,
) -> None:
    text = note(rolled_back)
    [incident] = [i for i in rolled_back.incidents.values() if i.attempt_after is not None]
    assert incident.lr_before is not None
    assert incident.lr_after is not None
    assert f"| learning rate | {incident.lr_before:.6g} | {incident.lr_after:.6g} |" in text
    assert "| loss scale at the checkpoint |  | 64 |" in text
    assert "passed over same checkpoint, same rate: an identical retry is refused" in text
    assert "remaining LR schedule x0.9" in text
    assert "| onset step |" in text


def test_a_note_of_an_open_incident_says_so() -> None:
    night = Night()
    night.run_to_step(43)
    night.world.kill_worker(1)
    state = night.run(lambda s: bool(s.incidents))
    text = note(state)
    assert "Still open." in text
    assert "| resumed from |  | - |" in text
    assert "first new step" not in text


def test_a_note_of_a_pause_names_the_budget() -> None:
    night = Night(make_spec(nodes={"spares": 0}))
    night.world.trouble.failing_starts["node-0"] = 3
    text = note(night.run(lambda s: bool(s.paused)), -1)
    assert "**pause-run**" in text
    assert "restart.max_barren_attempts" in text


def test_text_from_outside_cannot_break_the_table() -> None:
    night = Night()
    night.run_to_step(43)
    gang = night.world.live_gang
    assert gang is not None
    gang._fail(gang.workers[2], "worker-raised", "ValueError: a | b\n| c |\n# not a heading")
    text = note(night.run_to_end())
    assert "# not a heading" in text
    assert not [line for line in text.splitlines() if line.lstrip().startswith("# not")]
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)


def test_the_desk_writes_what_is_rendered(tmp_path: Path, rolled_back: RunState) -> None:
    desk = FileDesk(tmp_path)
    incident = next(iter(rolled_back.incidents.values()))
    desk.write_note(rolled_back, incident)
    path = note_path(tmp_path, incident.draft.id)
    assert path.read_text(encoding="utf-8") == render_note(rolled_back, incident)
