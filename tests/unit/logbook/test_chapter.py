"""What a note takes from the journal: the turns of events around it, bounded, whatever happened."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.chapter import EXITS_MAX, Chapter, chapter_of
from midwatch.logbook.notes import render_note
from midwatch.logbook.plots import plot_incident
from midwatch.logbook.record import Record
from midwatch.logbook.state import Incident, RunState
from midwatch.operator.simulation.edges import MemoryJournal
from midwatch.operator.simulation.training import Fragility, Physics
from midwatch.tests.sim.night import Night
from midwatch.tests.support.builders import make_spec
from msgspec.structs import replace


def records(night: Night) -> Iterator[Record[ev.Event]]:
    assert isinstance(night.journal, MemoryJournal)
    return iter(night.journal.records())


def incident_of(state: RunState, number: int = -1) -> Incident:
    return list(state.incidents.values())[number]


@pytest.fixture(scope="module")
def killed() -> Night:
    night = Night()
    night.run_to_step(43)
    night.world.kill_worker(1)
    night.run_to_end()
    return night


@pytest.fixture(scope="module")
def diverged() -> Night:
    spec = make_spec(trainer={"steps": 200})
    night = Night(spec, physics=Physics(fragile=(Fragility(80, 150, 0.95),)))
    night.run_to_end()
    return night


def chapter(night: Night, number: int = -1) -> tuple[Incident, Chapter]:
    incident = incident_of(night.state, number)
    return incident, chapter_of(records(night), incident)


def test_the_time_line_runs_from_the_death_to_the_close(killed: Night) -> None:
    incident, found = chapter(killed)
    kinds = [moment.text.partition(":")[0] for moment in found.moments]
    assert kinds[0] == "worker-exited"
    assert "decision" in kinds
    assert "attempt-resumed" in kinds
    assert any("training again" in moment.text for moment in found.moments)
    assert "close" in found.moments[-1].text
    assert found.resumed == ((2, 40),)
    assert found.saved_steps == (20, 30, 40)
    by_seq = {record.seq: record for record in records(killed)}
    for moment in found.moments:
        assert by_seq[moment.seq].time_s == moment.time_s
    assert found.moments[0].time_s == incident.draft.seen_s


def test_steps_of_both_attempts_are_there_and_the_picture_has_them(diverged: Night) -> None:
    incident = next(i for i in diverged.state.incidents.values() if i.attempt_after is not None)
    found = chapter_of(records(diverged), incident)
    assert {attempt for attempt, _ in found.samples} == {1, 2}
    picture = plot_incident(incident, found)
    for words in ("gradient norm", "activation norm", "loss scale", "learning rate"):
        assert words in picture
    assert f"onset {incident.draft.onset_step}" in picture
    assert "attempt 2 from" in picture
    assert "saved " in picture


def test_an_incident_seen_at_its_decision_has_its_picture_already(diverged: Night) -> None:
    whole = list(records(diverged))
    incident = next(i for i in diverged.state.incidents.values() if i.attempt_after is not None)
    early = [record for record in whole if record.seq <= incident.opened_seq]
    found = chapter_of(early, incident)
    assert found.samples[-1][1].step >= incident.draft.step
    assert plot_incident(incident, found).startswith("<svg")


def test_the_echo_of_one_death_fills_no_note() -> None:
    night = Night()
    night.run_to_step(43)
    night.world.kill_worker(1)
    state = night.run_to_end()
    incident = incident_of(state)
    told = list(records(night))
    at = next(i for i, r in enumerate(told) if isinstance(r.event, ev.WorkerExited))
    flood = [
        Record(0, told[at].time_s, 1, 1, ev.WorkerExited(1, rank, "n0", signal=6))
        for rank in range(10, 2000)
    ]
    flooded = [
        replace(record, seq=seq)
        for seq, record in enumerate([*told[: at + 1], *flood, *told[at + 1 :]], 1)
    ]
    incident = replace(incident, opened_seq=incident.opened_seq + len(flood))
    found = chapter_of(flooded, incident)
    exits = [m for m in found.moments if m.text.startswith("worker-exited")]
    assert len(exits) == EXITS_MAX + 1
    assert exits[-1].text == f"worker-exited: and {1990 + 1 - EXITS_MAX} more"


def test_deaths_told_of_all_at_once_take_no_room_from_the_next(killed: Night) -> None:
    told = list(records(killed))
    at = next(i for i, r in enumerate(told) if isinstance(r.event, ev.WorkerExited))
    deaths = tuple(ev.WorkerExited(1, rank, "n0", exit_code=1) for rank in range(EXITS_MAX + 1))
    first, then = ev.WorkersExited(1, "n0", deaths), ev.WorkerExited(1, 8, "n1", exit_code=1)
    told[at : at + 1] = [replace(told[at], event=event) for event in (first, then)]
    told = [replace(record, seq=seq) for seq, record in enumerate(told, 1)]
    incident = incident_of(killed.state)
    found = chapter_of(told, replace(incident, opened_seq=incident.opened_seq + 1))
    kinds = [moment.text.partition(":")[0] for moment in found.moments]
    assert kinds[:2] == ["workers-exited", "worker-exited"]
    assert "rank 8" in found.moments[1].text


def exit_with(log: str, night: Night) -> Chapter:
    told = list(records(night))
    at = next(i for i, r in enumerate(told) if isinstance(r.event, ev.WorkerExited))
    event = ev.WorkerExited(1, 1, "node-2", exit_code=1, log_tail=log)
    told[at] = Record(told[at].seq, told[at].time_s, 1, 1, event)
    return chapter_of(told, incident_of(night.state))


def test_the_log_of_the_blamed_rank_is_quoted_and_cannot_leave_its_fence(killed: Night) -> None:
    found = exit_with("Traceback\n```\n# not a heading\n\x1b[31mred\x07", killed)
    [excerpt] = found.excerpts
    assert excerpt.source == "log of rank 1 on node-2"
    assert "\x1b" not in excerpt.text
    text = render_note(killed.state, incident_of(killed.state), found)
    before, _, after = text.partition("````text\n")
    assert "# not a heading" in after.partition("\n````\n")[0]
    assert "# not a heading" not in before + after.partition("\n````\n")[2]


def test_a_hang_brings_the_places_and_the_stack_of_the_blamed_rank() -> None:
    night = Night()
    night.run_to_step(30)
    night.world.stop_worker(2)
    state = night.run_to_end()
    incident = incident_of(state)
    dump = "=== rank 0\nFile a.py\n\n=== rank 2\nFile stuck.py\n"
    found = chapter_of(records(night), incident, lambda path: dump)
    places = next(e for e in found.excerpts if e.source.startswith("where the ranks"))
    assert "still for" in places.text
    if any(isinstance(r.event, ev.HangSuspected) and r.event.stacks for r in records(night)):
        stack = next(e for e in found.excerpts if e.source.startswith("stacks"))
        assert "stuck.py" in stack.text
        assert "a.py" not in stack.text


def test_decisions_of_other_incidents_are_left_out(diverged: Night) -> None:
    for incident in diverged.state.incidents.values():
        found = chapter_of(records(diverged), incident)
        seqs = {moment.seq for moment in found.moments}
        for record in records(diverged):
            event = record.event
            if isinstance(event, ev.DecisionMade) and record.seq in seqs:
                assert event.decision.incident == incident.draft.id
                assert not isinstance(event.decision.action, d.VerifyCheckpoint)
