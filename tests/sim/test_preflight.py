"""Nodes are tried out before they first carry ranks, and again when they are suspected."""

from __future__ import annotations

from typing import Any

import pytest
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.findings import Finding, Severity
from midwatch.logbook.preflight import Thoroughness
from midwatch.logbook.state import RunState, Status
from midwatch.operator.preflight import DEADLINE_S
from midwatch.tests.support.builders import make_spec

from .night import Night

NODES = ("node-0", "node-1", "node-2")


def night_of(seed: int, **nodes: Any) -> Night:
    return Night(make_spec(nodes={"preflight": "quick", **nodes}), seed=seed)


def events_of(night: Night, kind: type) -> list[Any]:
    records = night.journal.records()
    return [record.event for record in records if isinstance(record.event, kind)]


def actions_of(night: Night, kind: type) -> list[Any]:
    made = (event.decision.action for event in events_of(night, ev.DecisionMade))
    return [action for action in made if isinstance(action, kind)]


def placed(state: RunState) -> tuple[str, ...]:
    assert state.attempt is not None
    return state.attempt.plan.nodes


def straggles(node: str) -> Finding:
    return Finding(
        detector="straggler",
        kind="straggler",
        severity=Severity.WARN,
        step=0,
        onset_step=0,
        value=1.5,
        reference=1.0,
        message="rank 0 computes 1.50 times as long as the median rank",
        action="drain",
    )


# --- before the first attempt --------------------------------------------------------------------


def test_every_node_at_hand_is_tried_out_once_before_the_first_attempt() -> None:
    night = night_of(1)
    state = night.run_to_step(1)
    (plan,) = [action.plan for action in actions_of(night, d.RunPreflight)]
    assert (plan.is_gate, set(plan.nodes)) == (True, set(NODES))
    judged = events_of(night, ev.PreflightJudged)[0]
    assert judged.checks_total > 0
    assert (judged.failed, judged.bad_nodes, judged.error) == ((), (), "")
    assert state.num_attempts == 1
    state = night.run_to_end()
    assert state.status is Status.COMPLETED
    assert len(actions_of(night, d.RunPreflight)) == 1
    assert not state.incidents


@pytest.mark.parametrize("fault", ["memory", "collectives"])
def test_a_node_that_fails_never_carries_a_rank(fault: str) -> None:
    night = night_of(2)
    night.world.trouble.sick["node-1"] = fault
    state = night.run_to_step(3)
    assert set(placed(state)) == {"node-0", "node-2"}
    assert state.nodes["node-1"].quarantined
    (incident,) = state.incidents.values()
    assert incident.draft.fault == f"preflight-{fault}"
    assert "no rank ran on it" in incident.outcome
    found = [event.finding for event in events_of(night, ev.FindingSeen)]
    assert [(f.detector, f.node, f.action) for f in found] == [("preflight", "node-1", "evict")]
    (ended,) = [
        event.decision
        for event in events_of(night, ev.DecisionMade)
        if isinstance(event.decision.action, d.EndPreflight)
    ]
    assert "node-1" in ended.reason
    assert ended.evidence
    assert night.run_to_end().status is Status.COMPLETED


def test_without_a_spare_the_run_waits_for_another_node_and_says_why() -> None:
    night = night_of(3, spares=0)
    night.world.trouble.sick["node-1"] = "memory"
    night.run(lambda s: bool(s.nodes) and any(n.quarantined for n in s.nodes.values()))
    state = night.run_for(10.0)
    assert (state.status, state.num_attempts) == (Status.WAITING, 0)
    night.world.trouble.sick.clear()
    night.ask("release", target="node-1")
    state = night.run_to_end()
    assert state.status is Status.COMPLETED


def test_what_fails_on_every_node_is_nobodys_fault() -> None:
    night = night_of(4)
    night.world.trouble.sick |= dict.fromkeys(NODES, "memory")
    state = night.run_to_end()
    assert state.status is Status.COMPLETED
    assert not any(node.quarantined for node in state.nodes.values())
    assert [f.finding.kind for f in events_of(night, ev.FindingSeen)] == ["preflight-in-doubt"]


def test_a_preflight_that_cannot_be_run_is_a_warning_and_stops_nobody() -> None:
    night = night_of(5)
    night.world.trouble.no_preflights |= set(NODES)
    state = night.run_to_end()
    assert state.status is Status.COMPLETED
    (judged,) = events_of(night, ev.PreflightJudged)
    assert "ended without a report" in judged.error
    assert [f.finding.kind for f in events_of(night, ev.FindingSeen)] == ["preflight-not-run"]
    assert not any(node.quarantined for node in state.nodes.values())


def test_a_preflight_that_never_answers_is_given_up_in_bounded_time() -> None:
    night = night_of(6)
    night.world.trouble.mute |= set(NODES)
    night.run_to_step(1)
    assert night.timeline.elapsed_s < DEADLINE_S["quick"] + 30.0
    (judged,) = events_of(night, ev.PreflightJudged)
    assert judged.error


def test_the_one_node_that_never_answers_is_left_out() -> None:
    night = night_of(7)
    night.world.trouble.mute.add("node-0")
    state = night.run_to_step(3)
    assert set(placed(state)) == {"node-1", "node-2"}
    assert state.nodes["node-0"].quarantined


def test_a_node_lost_meanwhile_costs_the_others_one_more_try() -> None:
    night = night_of(8)
    night.run(lambda s: s.preflight is not None)
    night.world.kill_agent("node-2", known_after_s=0.1)
    state = night.run_to_step(3)
    first, second = [action.plan for action in actions_of(night, d.RunPreflight)][:2]
    assert set(first.nodes) == set(NODES)
    assert set(second.nodes) >= {"node-0", "node-1"}
    assert state.num_attempts == 1
    assert not any(node.quarantined for node in state.nodes.values())


def test_switched_off_it_costs_nothing() -> None:
    night = night_of(9, preflight="off")
    night.run_to_step(1)
    assert not actions_of(night, d.RunPreflight)
    assert not night.world.examined


def test_in_shadow_mode_a_failure_is_recorded_and_nothing_is_done() -> None:
    night = night_of(10)
    night.world.trouble.sick["node-1"] = "memory"
    night.run(lambda s: s.preflight is not None)
    night.ask("detector", target="preflight=shadow")
    state = night.run_to_end()
    assert not state.nodes["node-1"].quarantined
    (finding,) = [event.finding for event in events_of(night, ev.FindingSeen)]
    assert finding.shadow


@pytest.mark.parametrize("calls", range(1, 60, 3))
def test_a_controller_lost_in_the_middle_changes_nothing(calls: int) -> None:
    night = night_of(11)
    night.world.trouble.sick["node-1"] = "memory"
    night.crash_after(calls)
    state = night.run_to_end()
    assert state.status is Status.COMPLETED
    assert state.nodes["node-1"].quarantined
    assert state.num_attempts == 1
    found = [event.finding for event in events_of(night, ev.FindingSeen)]
    assert [f.node for f in found if f.detector == "preflight"] == ["node-1"]
    assert state.preflight is None


def test_orders_lost_with_the_controller_are_not_waited_for() -> None:
    night = night_of(12)
    wire = night.world.wire
    carry, wire.order = wire.order, lambda agent, action: None  # type: ignore[method-assign]
    night.run(lambda s: s.preflight is not None)
    night.crash()
    wire.order = carry  # type: ignore[method-assign]
    began_s = night.timeline.now_s()
    state = night.run_to_step(1)
    assert night.timeline.now_s() - began_s < DEADLINE_S[Thoroughness.QUICK] / 2
    judged = events_of(night, ev.PreflightJudged)
    assert [(j.preflight, j.is_cut) for j in judged] == [(1, True), (2, False)]
    assert (state.num_attempts, state.epoch) == (1, 2)


def test_a_preflight_under_way_outlives_the_controller() -> None:
    night = night_of(13)
    night.run(lambda s: s.preflight is not None and len(s.preflight.begun) == 3)
    night.crash()
    night.run_to_step(1)
    assert [j.is_cut for j in events_of(night, ev.PreflightJudged)] == [False]


# --- on suspicion --------------------------------------------------------------------------------


def test_a_fault_of_a_proven_run_is_answered_without_any_preflight() -> None:
    night = night_of(20)
    night.run_to_step(20)
    night.world.kill_worker(3)
    state = night.run_to_end()
    assert state.num_attempts == 2
    assert len(actions_of(night, d.RunPreflight)) == 1


def test_a_straggler_is_tried_out_once_it_is_idle_and_training_goes_on() -> None:
    night = night_of(21)
    state = night.run_to_step(20)
    victim = placed(state)[1]
    night.world.agents[victim].find(straggles(victim))
    night.run_to_step(25)
    assert len(actions_of(night, d.RunPreflight)) == 1
    night.world.kill_worker(0)
    night.run(lambda s: s.num_attempts == 2 and s.step > 30)
    state = night.run(lambda s: s.num_preflights == 2 and s.preflight is None)
    plan = actions_of(night, d.RunPreflight)[1].plan
    assert (plan.is_gate, plan.nodes) == (False, (victim,))
    assert victim not in placed(state)
    assert (state.num_attempts, state.nodes[victim].suspicion) == (2, "")
    assert night.run_to_end().num_attempts == 2


def test_a_suspect_that_must_carry_ranks_is_tried_out_with_the_next_restart() -> None:
    night = night_of(22, spares=0)
    state = night.run_to_step(20)
    victim = placed(state)[1]
    night.world.agents[victim].find(straggles(victim))
    night.run_to_step(25)
    night.world.kill_worker(0)
    state = night.run(lambda s: s.num_attempts == 2 and s.step > 30)
    gate = actions_of(night, d.RunPreflight)[1].plan
    assert (gate.is_gate, gate.nodes) == (True, (victim,))
    (incident,) = [i for i in state.incidents.values() if i.draft.fault == "worker-killed"]
    actions = [type(decision.action) for decision in incident.decisions]
    assert actions[:2] == [d.RunPreflight, d.StartAttempt]
    assert night.run_to_end().status is Status.COMPLETED


def test_repeated_hangs_have_their_node_tried_out() -> None:
    night = night_of(23, spares=1)
    for _ in range(2):
        state = night.run(lambda s: s.step > 15 and s.attempt is not None, 400.0)
        night.run_for(5.0)
        attempt = night.state.num_attempts
        night.world.stop_worker(3)
        state = night.run(lambda s, a=attempt: s.num_attempts > a and s.attempt.num_steps > 3)
    victim = next(node for node in state.nodes.values() if node.quarantined)
    state = night.run(lambda s: s.num_preflights >= 2 and s.preflight is None)
    plan = actions_of(night, d.RunPreflight)[-1].plan
    assert plan.nodes == (victim.node,)
    assert state.nodes[victim.node].quarantined


def test_a_spare_that_comes_back_is_tried_out_before_it_is_trusted() -> None:
    night = night_of(24)
    state = night.run_to_step(10)
    (spare,) = [node for node in state.nodes if node not in placed(state)]
    night.world.kill_agent(spare)
    night.run(lambda s: not s.nodes[spare].present)
    night.world.trouble.sick[spare] = "memory"
    state = night.run(lambda s: bool(s.nodes[spare].quarantined))
    assert state.num_attempts == 1
    assert night.run_to_end().num_attempts == 1


def test_a_spare_that_is_needed_while_it_is_tried_out_is_no_less_tried_out() -> None:
    night = night_of(25)
    state = night.run_to_step(10)
    (spare,) = [node for node in state.nodes if node not in placed(state)]
    night.world.kill_agent(spare)
    night.run(lambda s: s.num_preflights == 2 and s.preflight is not None)
    victim = placed(night.state)[1]
    night.world.kill_agent(victim, known_after_s=0.1)
    state = night.run(lambda s: s.num_attempts == 2 and s.step > 15)
    gate = actions_of(night, d.RunPreflight)[2].plan
    assert (gate.is_gate, gate.nodes) == (True, (spare,))
    assert spare in placed(state)
    assert night.run_to_end().status is Status.COMPLETED
