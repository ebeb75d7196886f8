"""What people ask for: carried out once, confirmed by every rank, never lost, never stuck."""

from __future__ import annotations

import pytest
from midwatch.logbook import decisions as d
from midwatch.logbook.events import FaultInjected, InterventionRequested
from midwatch.logbook.state import Status

from ..support.builders import make_spec
from .checkers import rate_factor
from .night import Night

LONG = make_spec(trainer={"steps": 200})


def stage(night: Night, name: str) -> str:
    return night.state.interventions[name].stage


def sends(night: Night) -> list[d.SendCommand]:
    return [x.action for x in night.checker.decisions if isinstance(x.action, d.SendCommand)]


def finished(night: Night, status: Status = Status.COMPLETED) -> Night:
    night.run_to_end()
    night.run_for(5.0)
    night.checker.check_end()
    assert night.state.end is status
    return night


def test_a_change_of_the_rate_is_confirmed_by_every_rank_and_survives_restarts() -> None:
    night = Night(LONG)
    night.run_to_step(43)
    name = night.ask("lr-factor", 0.5)
    night.run(lambda s: name in s.interventions and s.interventions[name].stage == "applied")
    known = night.state.interventions[name]
    assert known.acks == (0, 1, 2, 3)
    assert known.readback["lr"] == pytest.approx(known.previous["lr"] / 2)
    night.run_to_step(60)
    night.world.kill_worker(1)
    finished(night)
    assert rate_factor(night.state.hyper, 200) == pytest.approx(0.5)
    assert night.world.samples[200].lr == pytest.approx(0.5 * 1e-4, rel=1e-3)


def test_two_commands_at_once_are_both_applied() -> None:
    night = Night(LONG)
    night.run_to_step(43)
    names = [night.ask("lr-factor", 0.5, id="a"), night.ask("grad-clip", 0.3, id="b")]
    finished(night)
    assert [stage(night, name) for name in names] == ["applied", "applied"]
    assert night.state.hyper.value_at("grad-clip", 200) == 0.3


@pytest.mark.parametrize("lost_on", [("node-0",), ("node-0", "node-1", "node-2")])
def test_a_command_lost_on_its_way_is_sent_again(lost_on: tuple[str, ...]) -> None:
    night = Night(LONG)
    night.run_to_step(43)
    for node in lost_on:
        night.world.agents[node].lost_commands = 1
    first = night.ask("lr-factor", 0.5, id="a")
    night.run_for(2.0)
    second = night.ask("lr-factor", 0.5, id="b")
    finished(night)
    assert (stage(night, first), stage(night, second)) == ("applied", "applied")
    assert rate_factor(night.state.hyper, 200) == pytest.approx(0.25)


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.3, 0.6, 1.0])
def test_a_change_sent_to_an_attempt_that_dies_takes_effect_exactly_once(after_s: float) -> None:
    night = Night(LONG)
    night.run_to_step(43)
    name = night.ask("lr-factor", 0.5)
    night.run_for(after_s)
    night.world.kill_worker(2)
    later = night.ask("lr-factor", 0.5, id="later")
    finished(night)
    assert (stage(night, name), stage(night, later)) == ("applied", "applied")
    assert rate_factor(night.state.hyper, 200) == pytest.approx(0.25)


def test_stop_saves_and_ends_the_run() -> None:
    night = Night(LONG)
    night.run_to_step(43)
    name = night.ask("stop")
    finished(night, Status.STOPPED)
    assert stage(night, name) == "applied"
    assert max(s.step for s in night.world.disk.saved.values()) == night.state.step < 60


@pytest.mark.parametrize("after_s", [0.0, 0.3, 0.6, 0.9, 1.2, 1.5, 1.8])
def test_stop_is_obeyed_although_a_worker_dies_while_it_stops(after_s: float) -> None:
    night = Night(LONG)
    night.run_to_step(43)
    name = night.ask("stop")
    night.run_for(after_s)
    night.world.kill_worker(1)
    finished(night, Status.STOPPED)
    assert stage(night, name) == "applied"
    assert night.state.step < 60, "it must not have trained on"


def test_stop_while_the_run_recovers_is_obeyed_at_its_first_step() -> None:
    night = Night(LONG)
    night.run_to_step(43)
    night.world.kill_worker(1)
    night.run(lambda s: s.status is Status.RECOVERING)
    night.ask("stop")
    finished(night, Status.STOPPED)
    assert night.state.step < 50


def test_stop_that_meets_a_run_waiting_for_nodes_ends_it() -> None:
    for ask_first in (True, False):
        night = Night(make_spec(nodes={"spares": 0}))
        night.run_to_step(43)
        if ask_first:
            # Sent, but the node dies before any rank can take it.
            for agent in night.world.agents.values():
                agent.lost_commands = 1
            night.ask("stop")
            night.run_for(1.0)
        night.world.kill_agent("node-1", known_after_s=0.05)
        night.run(lambda s: s.status is Status.WAITING or s.status.is_terminal)
        if not ask_first:
            night.ask("stop")
        finished(night, Status.STOPPED)


def test_stop_of_a_paused_run_ends_it() -> None:
    night = Night(make_spec(nodes={"spares": 0}))
    night.world.trouble.failing_starts["node-0"] = 3
    night.run(lambda s: bool(s.paused))
    name = night.ask("stop")
    finished(night, Status.STOPPED)
    assert stage(night, name) == "applied"


def test_two_stops_are_both_settled() -> None:
    night = Night(LONG)
    night.run_to_step(43)
    names = [night.ask("stop", id="a"), night.ask("stop", id="b")]
    finished(night, Status.STOPPED)
    assert [stage(night, name) for name in names] == ["applied", "applied"]


def test_a_command_that_the_end_of_the_run_overtakes_is_settled_as_failed() -> None:
    night = Night(make_spec())
    night.run_to_step(118)
    for agent in night.world.agents.values():
        agent.lost_commands = 10
    name = night.ask("lr-factor", 0.5)
    finished(night)
    assert stage(night, name) == "failed"
    assert "completed" in night.state.interventions[name].detail


def test_the_same_request_read_twice_is_one_request() -> None:
    night = Night(LONG)
    night.run_to_step(43)
    night.ask("lr-factor", 0.5, id="a")
    night.ask("lr-factor", 0.5, id="a")
    for _ in range(2):
        night.world.ask(FaultInjected("raise-lr", "lr", injected_s=1.0))
    finished(night)
    assert rate_factor(night.state.hyper, 200) == pytest.approx(0.5)
    assert len(night.state.faults) == 1


@pytest.mark.parametrize(
    ("action", "value", "target", "said"),
    [
        ("lr", 50.0, "", "outside limits"),
        ("lr", float("nan"), "", "outside limits"),
        ("lr-factor", 1e9, "", "outside limits"),
        ("lr-factor", float("nan"), "", "outside limits"),
        ("grad-clip", -1.0, "", "outside limits"),
        ("grad-clip", float("inf"), "", "outside limits"),
        ("quarantine", 0.0, "node-77", "no node"),
        ("resume", 0.0, "", "only a paused or stopped run"),
        ("dance", 0.0, "", "unknown action"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(
    action: str, value: float, target: str, said: str
) -> None:
    night = Night()
    night.run_to_step(13)
    name = night.ask(action, value, target)
    night.run_for(1.0)
    assert stage(night, name) == "rejected"
    assert said in night.state.interventions[name].detail


def test_a_request_meant_for_another_attempt_is_refused() -> None:
    night = Night()
    night.run_to_step(13)
    name = night.ask("lr-factor", 0.5, expect_attempt=7)
    night.run_for(1.0)
    assert stage(night, name) == "rejected"
    assert "conflict" in night.state.interventions[name].detail


def test_a_quarantined_node_is_left_at_the_next_restart_and_taken_again_when_released() -> None:
    night = Night(make_spec(trainer={"steps": 300}))
    night.run_to_step(13)
    assert night.state.attempt is not None
    node = night.state.attempt.plan.nodes[0]
    name = night.ask("quarantine", target=node)
    night.run_to_step(23)
    assert stage(night, name) == "applied"
    assert night.state.num_attempts == 1, "it goes on until the next restart"
    night.world.kill_worker(0)
    night.run(lambda s: s.num_attempts == 2)
    assert night.state.attempt is not None
    assert node not in night.state.attempt.plan.nodes
    night.ask("release", target=node)
    night.run_to_step(43)
    assert night.state.nodes[node].is_usable
    finished(night)


def test_a_resume_that_is_asked_for_at_one_instant_is_settled_as_applied() -> None:
    night = Night(make_spec(nodes={"spares": 0}))
    night.world.trouble.failing_starts["node-0"] = 3
    night.run(lambda s: bool(s.paused))
    name = night.ask("resume")
    finished(night)
    assert stage(night, name) == "applied"


def test_a_lost_node_of_a_paused_run_is_not_placed_when_it_resumes() -> None:
    night = Night(make_spec(nodes={"spares": 1}))
    night.run(lambda s: s.attempt is not None)
    for node in list(night.world.agents):
        night.world.trouble.failing_starts[node] = 3
    night.run(lambda s: bool(s.paused))
    night.world.trouble.failing_starts.clear()
    night.world.kill_agent("node-0", known_after_s=0.05)
    night.world.absent["node-0"] = 1e6
    night.run_for(2.0)
    night.ask("resume")
    night.run(lambda s: s.attempt is not None)
    assert night.state.attempt is not None
    assert "node-0" not in night.state.attempt.plan.nodes
    finished(night)


def test_a_request_by_hand_that_names_nobody_is_no_crash() -> None:
    night = Night()
    night.run_to_step(5)
    night.world.ask(InterventionRequested("x", "release", "ann", "", target=""))
    night.run_for(2.0)
    assert stage(night, "x") == "rejected"
