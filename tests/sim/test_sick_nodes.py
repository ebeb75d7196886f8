"""Nodes that say they are sick: evicted now, left out at the next restart, or only noted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from midwatch.health.nodes.lemons import GpuIdentity, LemonBudget, MachineIdentity
from midwatch.logbook.decisions import QuarantineNode, StartAttempt
from midwatch.logbook.events import DecisionMade, FindingSeen
from midwatch.logbook.findings import Finding, Severity
from midwatch.logbook.state import RunState, Status
from midwatch.operator.lemon_file import LemonFile
from midwatch.tests.support.builders import make_spec

from .night import Night


def finding(action: str, kind: str = "xid", value: float = 79.0, device: str = "GPU-1") -> Finding:
    takes_node = action in ("drain", "evict")
    return Finding(
        detector="nvml",
        kind=kind,
        severity=Severity.WARN if takes_node else Severity.OBSERVE,
        step=0,
        onset_step=0,
        value=value,
        reference=0.0,
        message=f"XID {value:g}",
        device=device,
        action=action,
    )


def nodes_of(state: RunState) -> tuple[str, ...]:
    assert state.attempt is not None
    return state.attempt.plan.nodes


def spare_of(state: RunState) -> str:
    (spare,) = [node for node in state.nodes if node not in nodes_of(state)]
    return spare


def see(night: Night, node: str, *findings: Finding) -> None:
    night.world.agents[node].find(*findings)


def found(night: Night) -> list[Finding]:
    events = [record.event for record in night.journal.records()]
    return [event.finding for event in events if isinstance(event, FindingSeen)]


def test_a_node_to_evict_is_replaced_at_once_and_training_goes_on() -> None:
    night = Night(seed=1)
    state = night.run_to_step(23)
    victim, spare = nodes_of(state)[1], spare_of(state)
    see(night, victim, finding("evict"))
    state = night.run(lambda s: s.num_attempts == 2 and s.step > 30)
    assert victim not in nodes_of(state)
    assert spare in nodes_of(state)
    assert state.nodes[victim].quarantined
    (incident,) = state.incidents.values()
    assert (incident.draft.fault, incident.draft.node) == ("xid", victim)
    assert incident.recovered_s is not None
    actions = [type(decision.action) for decision in incident.decisions]
    assert actions[:2] == [QuarantineNode, StartAttempt]
    state = night.run_to_end()
    assert state.status is Status.COMPLETED
    assert all(each.outcome for each in state.incidents.values())


def test_a_spare_to_evict_costs_no_restart() -> None:
    night = Night(seed=2)
    spare = spare_of(night.run_to_step(10))
    see(night, spare, finding("evict"))
    state = night.run_to_end()
    assert state.num_attempts == 1
    assert state.nodes[spare].quarantined
    (incident,) = state.incidents.values()
    assert "no rank ran on it" in incident.outcome


def test_a_node_to_drain_is_left_out_at_the_next_restart_and_not_before() -> None:
    night = Night(seed=3)
    state = night.run_to_step(20)
    victim, other, spare = *nodes_of(state), spare_of(state)
    see(night, victim, finding("drain", "ecc", 1.0))
    state = night.run_to_step(45)
    assert state.num_attempts == 1
    night.world.kill_worker(3)
    state = night.run(lambda s: s.num_attempts == 2 and s.step > 50)
    assert set(nodes_of(state)) == {other, spare}
    assert not state.nodes[victim].quarantined


def test_a_drained_node_carries_ranks_again_where_nothing_else_can() -> None:
    night = Night(make_spec(nodes={"spares": 0}), seed=4)
    state = night.run_to_step(20)
    before = nodes_of(state)
    see(night, before[0], finding("drain", "ecc", 1.0))
    night.run_to_step(25)
    night.world.kill_worker(3)
    state = night.run(lambda s: s.num_attempts == 2 and s.step > 30)
    assert set(nodes_of(state)) == set(before)


@pytest.mark.parametrize("action", ["watch", "ignore"])
def test_milder_findings_are_a_note(action: str) -> None:
    night = Night(seed=5)
    state = night.run_to_step(20)
    see(night, nodes_of(state)[0], finding(action))
    state = night.run_to_end()
    assert state.num_attempts == 1
    assert not state.incidents
    assert [f.action for f in found(night)] == [action]


def test_two_witnesses_to_one_event_are_one_finding() -> None:
    night = Night(seed=6)
    state = night.run_to_step(20)
    victim = nodes_of(state)[0]
    see(night, victim, finding("evict"), finding("evict"))
    see(night, victim, finding("evict"))
    night.run(lambda s: s.num_attempts == 2 and s.step > 30)
    assert len(found(night)) == 1
    assert found(night)[0].node == victim
    assert found(night)[0].step >= 20


def test_an_eviction_without_a_spare_waits_and_says_so() -> None:
    night = Night(make_spec(nodes={"spares": 0}), seed=7)
    state = night.run_to_step(20)
    see(night, nodes_of(state)[0], finding("evict"))
    victim = nodes_of(state)[0]
    state = night.run(lambda s: s.attempt is None and s.num_attempts == 1)
    assert state.status is Status.WAITING
    night.ask("release", target=victim)
    state = night.run_to_end()
    assert state.status is Status.COMPLETED


def test_a_crash_and_its_xid_in_either_order_end_on_other_nodes() -> None:
    for order in range(2):
        night = Night(seed=8 + order)
        state = night.run_to_step(20)
        victim = nodes_of(state)[0]
        if order:
            night.world.kill_worker(0)
            night.run_for(1.0)
        see(night, victim, finding("evict"))
        if not order:
            night.world.kill_worker(0)
        state = night.run(lambda s: s.step > 40)
        assert victim not in nodes_of(state)
        assert night.run_to_end().status is Status.COMPLETED


@pytest.mark.parametrize("calls", range(1, 30, 2))
def test_a_controller_lost_while_it_evicts_changes_nothing(calls: int) -> None:
    night = Night(seed=11)
    state = night.run_to_step(20)
    victim = nodes_of(state)[0]
    see(night, victim, finding("evict"))
    night.crash_after(calls)
    state = night.run_to_end()
    assert state.status is Status.COMPLETED
    assert state.nodes[victim].quarantined
    starts = [
        record.event
        for record in night.journal.records()
        if isinstance(record.event, DecisionMade)
        and isinstance(record.event.decision.action, StartAttempt)
    ]
    assert len(starts) == 2


# --- lemons --------------------------------------------------------------------------------------

BAD = MachineIdentity("machine-bad", (GpuIdentity("GPU-1", "s1"), GpuIdentity("GPU-2", "s2")))


def with_memory(path: Path, seed: int, node: str, machine: MachineIdentity = BAD) -> Night:
    night = Night(make_spec(name=f"night-{seed}"), seed=seed)
    night.lemons = LemonFile(path, LemonBudget(), night.timeline.now_s)
    night.world.machines[node] = machine
    return night


def fail_twice(path: Path, seed: int) -> None:
    """Have one machine evicted in two runs, which is past its budget."""
    for run in range(2):
        night = with_memory(path, seed + run, "node-1")
        night.run_to_step(10)
        see(night, "node-1", finding("evict"))
        night.run(lambda s: bool(s.nodes["node-1"].quarantined))
        night.run_for(2.0)


def test_a_gpu_past_its_budget_is_known_again_in_another_run_on_another_node(
    tmp_path: Path,
) -> None:
    path = tmp_path / "lemons.json"
    fail_twice(path, 20)
    # The provider returns it under another name, in another chassis.
    moved = MachineIdentity("machine-new", (GpuIdentity("GPU-1", "s1"),))
    night = with_memory(path, 22, "node-0", moved)
    state = night.run_to_end()
    assert state.status is Status.COMPLETED
    assert state.nodes["node-0"].quarantined
    assert "GPU GPU-1" in state.nodes["node-0"].quarantined
    assert state.num_attempts == 1
    (incident,) = state.incidents.values()
    assert incident.draft.fault == "lemon"


def test_a_person_forgives_a_lemon(tmp_path: Path) -> None:
    path = tmp_path / "lemons.json"
    fail_twice(path, 30)
    night = with_memory(path, 32, "node-1")
    night.run(lambda s: "node-1" in s.nodes and bool(s.nodes["node-1"].quarantined))
    night.ask("release", target="node-1")
    night.run(lambda s: not s.nodes["node-1"].quarantined)
    night.run_for(2.0)
    night = with_memory(path, 33, "node-1")
    state = night.run_to_end()
    assert not state.nodes["node-1"].quarantined


@pytest.mark.parametrize("is_heard", [True, False])
def test_what_a_machine_does_is_remembered_though_its_driver_was_slow_to_open(
    tmp_path: Path, is_heard: bool
) -> None:
    path = tmp_path / "lemons.json"
    night = with_memory(path, 24, "node-1")
    # Where no heartbeat has told before, the finding itself does.
    opens_s = night.timeline.now_s() + (20.0 if is_heard else 1e9)
    night.world.trouble.drivers_open_s["node-1"] = opens_s
    state = night.run_to_step(20)
    assert state.nodes["node-1"].gpus == ()
    if is_heard:
        state = night.run(lambda s: s.nodes["node-1"].gpus != ())
        assert state.nodes["node-1"].machine == BAD.uuid
    night.world.trouble.drivers_open_s.clear()
    see(night, "node-1", finding("evict"))
    night.run(lambda s: bool(s.nodes["node-1"].quarantined))
    night.run_for(2.0)
    assert LemonFile(path).verdict(BAD) == ""
    book = json.loads(path.read_text())
    assert book["gpus"]["GPU-1"]["failures_total"] == 1


def test_a_lemon_known_too_late_is_left_out_at_the_next_restart(tmp_path: Path) -> None:
    path = tmp_path / "lemons.json"
    fail_twice(path, 50)
    night = with_memory(path, 52, "node-1")
    night.world.trouble.drivers_open_s["node-1"] = night.timeline.now_s() + 20.0
    state = night.run(lambda s: "node-1" in s.nodes and bool(s.nodes["node-1"].lemon))
    # Ranks train on it, and what it did in other runs is no reason to end them.
    assert "node-1" in nodes_of(state)
    state = night.run_to_step(state.step + 10)
    assert state.num_attempts == 1
    assert not state.nodes["node-1"].quarantined
    spare = spare_of(state)
    night.world.kill_worker(0)
    state = night.run(lambda s: s.num_attempts == 2 and s.step > state.step + 10)
    assert spare in nodes_of(state)
    assert "GPU GPU-1" in state.nodes["node-1"].quarantined
    lemon = next(i for i in state.incidents.values() if i.draft.fault == "lemon")
    assert lemon.draft.node == "node-1"
    assert lemon.closed_s is not None


def test_an_unreadable_memory_is_put_aside_and_costs_no_run(tmp_path: Path) -> None:
    path = tmp_path / "lemons.json"
    path.write_text("{nonsense")
    memory = LemonFile(path)
    assert memory.verdict(BAD) == ""
    assert path.with_suffix(".unreadable").exists()


def test_program_failures_are_not_laid_at_the_nodes_door(tmp_path: Path) -> None:
    path = tmp_path / "lemons.json"
    night = with_memory(path, 40, "node-0")
    night.run_to_step(20)
    night.world.kill_worker(0)
    night.run_to_end()
    assert not path.exists()
