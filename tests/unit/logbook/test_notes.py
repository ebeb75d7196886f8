"""Incident notes: what a person finds in them, whatever state the incident is in."""

from __future__ import annotations

from pathlib import Path

import pytest
from midwatch.logbook.chapter import Chapter, Moment
from midwatch.logbook.costs import incident_gpu_s
from midwatch.logbook.events import NoteAdded
from midwatch.logbook.notes import render_note
from midwatch.logbook.state import RunState
from midwatch.operator.desk import FileDesk, note_path
from midwatch.operator.simulation.training import Fragility, Physics
from midwatch.tests.sim.night import Night
from midwatch.tests.support.builders import fold, make_spec
from msgspec.structs import replace


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
    assert "| resumed from |  | step-00000040.a0001 (disk) |" in text
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


def test_the_way_to_the_journal_begins_with_the_first_sign(rolled_back: RunState) -> None:
    incident = next(iter(rolled_back.incidents.values()))
    sign = Moment(incident.opened_seq - 1, incident.draft.seen_s, "worker-exited")
    text = render_note(rolled_back, incident, Chapter((sign,)))
    assert f"--since {sign.seq}`" in text
    assert f"--since {incident.opened_seq}`" in render_note(rolled_back, incident)


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


def test_a_note_says_what_it_cost_in_what_the_spec_declares() -> None:
    accounting = {"price_per_gpu_hour": 3600.0, "currency": "EUR", "grid_g_per_kwh": 100.0}
    night = Night(make_spec(nodes={"gpu_watts": 400.0}, accounting=accounting))
    night.run_to_step(43)
    night.world.kill_worker(1)
    state = night.run_to_end()
    gpu_s = incident_gpu_s(state, state.incidents["inc-0001"])
    text = note(state)
    assert f"| money | {gpu_s:,.2f} EUR |" in text
    assert "| energy |" in text
    assert "| CO2e |" in text
    assert "declared 400 W" in text


def test_a_note_knows_the_machine_by_its_hardware_and_the_earlier_of_its_kind() -> None:
    night = Night()
    for number, step in enumerate((23, 43), 1):
        night.run_to_step(step)
        night.world.kill_worker(1)
        night.run(lambda s, n=number: len(s.incidents) == n and not s.open_incidents)
    state = night.state
    known = {
        name: replace(node, machine="uuid-7", gpus=(("GPU-1", "serial-9"),))
        for name, node in state.nodes.items()
    }
    text = note(replace(state, nodes=known), 1)
    assert "machine `uuid-7`" in text
    assert "GPUs `GPU-1` (serial-9)" in text
    assert "not the first of its kind: inc-0001." in text


def test_what_a_person_adds_stays_when_the_note_is_written_again() -> None:
    night = Night()
    night.run_to_step(43)
    night.world.kill_worker(1)
    night.run(lambda s: bool(s.incidents))
    night.world.ask(NoteAdded("ann", "swapped the cable\n# of port 3", "inc-0001"))
    night.run(lambda s: bool(s.incidents["inc-0001"].remarks))
    assert "> swapped the cable" in night.world.notes["inc-0001"]
    night.run_to_end()
    final = night.world.notes["inc-0001"]
    assert "**ann**" in final
    assert "> # of port 3" in final
    assert "recovered in" in final.partition("## Outcome")[2]


def test_the_same_addition_told_twice_is_one_and_one_for_nobody_changes_nothing() -> None:
    night = Night()
    night.run_to_step(43)
    night.world.kill_worker(1)
    state = night.run_to_end()
    added = NoteAdded("ann", "looked at it", "inc-0001")
    twice = fold([added, added, NoteAdded("ann", "?", "inc-9999")], state)
    assert len(twice.incidents["inc-0001"].remarks) == 1
    on_run = fold([NoteAdded("ann", "night shift over"), added], state)
    assert [remark.text for remark in on_run.remarks] == ["night shift over"]
    assert on_run.incidents["inc-0001"].remarks[0].seq == state.seq + 2
