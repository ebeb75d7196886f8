"""Changes that wait for a step, end by themselves, meet others, and outlive what comes between."""

from __future__ import annotations

import pytest
from midwatch.logbook import decisions as d
from midwatch.logbook.decisions import ON_REQUEST, StartAttempt
from midwatch.logbook.state import RunState, Status
from midwatch.operator.cli.channel import plan_request
from midwatch.operator.policy.context import is_training
from midwatch.trainer.schedule import lr_at

from ..support.builders import make_spec
from .checkers import rate_factor
from .night import Night
from .test_people import LONG, finished, sends, stage


def settled(night: Night, name: str, wanted: str) -> None:
    """Let time pass until a request has come to a stage."""
    night.run(lambda s: name in s.interventions and s.interventions[name].stage == wanted)


def lr_of(night: Night, step: int) -> float:
    """The rate of a step over what the schedule says of it."""
    return night.world.samples[step].lr / scheduled(night, step)


def scheduled(night: Night, step: int) -> float:
    config = night.world.config
    return lr_at(step, config.optimizer, config.schedule)


def resumed_at(night: Night) -> list[int]:
    return [step for _, step in night.state.lineage]


# --- at a step, for some steps --------------------------------------------------------------------


def test_a_change_waits_for_its_step_and_takes_itself_back_on_every_rank() -> None:
    night = Night(LONG)
    night.run_to_step(43)
    name = night.ask("lr-factor", 0.5, at_step=60, for_steps=15)
    settled(night, name, "scheduled")
    assert night.state.step < 60
    settled(night, name, "applied")
    settled(night, name, "expired")
    known = night.state.interventions[name]
    assert (known.at_step, known.until_step) == (60, 75)
    assert known.acks == known.expired_acks == (0, 1, 2, 3)
    assert known.readback["lr"] == pytest.approx(known.previous["lr"] / 2)
    assert known.after["lr"] == pytest.approx(scheduled(night, 75))
    finished(night)
    halved = [step for step in range(1, 201) if lr_of(night, step) == pytest.approx(0.5)]
    assert halved == list(range(60, 75))


@pytest.mark.parametrize("strike_at", [50, 59, 60, 61, 70, 74, 75, 78])
@pytest.mark.parametrize("kill", ["worker", "controller", "both"])
def test_whatever_dies_the_change_holds_for_the_very_same_steps(strike_at: int, kill: str) -> None:
    night = Night(LONG)
    night.run_to_step(43)
    name = night.ask("lr-factor", 0.5, at_step=60, for_steps=15)
    night.run_to_step(strike_at)
    if kill != "controller":
        night.world.kill_worker(1)
    if kill != "worker":
        night.crash()
    finished(night)
    assert stage(night, name) == "expired"
    halved = [step for step in range(1, 201) if lr_of(night, step) == pytest.approx(0.5)]
    assert halved == list(range(60, 75))


def test_after_going_back_behind_its_end_a_change_comes_and_goes_again() -> None:
    night = Night(LONG)
    night.run_to_step(43)
    name = night.ask("lr-factor", 0.5, at_step=62, for_steps=6)
    settled(night, name, "expired")
    night.run_to_step(78)
    back = night.ask("rollback", 55)
    settled(night, back, "applied")
    assert stage(night, name) == "applied", "it is yet to come again"
    assert resumed_at(night)[-1] == 50
    settled(night, name, "expired")
    finished(night)
    assert [s for s in range(51, 201) if lr_of(night, s) == pytest.approx(0.5)] == [*range(62, 68)]


def test_a_step_that_has_passed_is_refused() -> None:
    night = Night(LONG)
    night.run_to_step(43)
    for name, at_step, said in (
        ("a", 20, "step 20 has passed"),
        ("b", 201, "step 201 is behind the last one, 200"),
    ):
        night.ask("lr-factor", 0.5, id=name, at_step=at_step)
        settled(night, name, "rejected")
        assert said in night.state.interventions[name].detail
    night.ask("quarantine", target="node-0", id="c", at_step=60)
    night.ask("lr-factor", 0.5, id="d", for_steps=0)
    night.ask("stop", id="e", for_steps=10)
    for name in "cde":
        settled(night, name, "rejected")


def test_a_step_that_passes_on_the_way_to_the_ranks_fails_on_all_alike() -> None:
    night = Night(LONG)
    night.run_to_step(43)
    for agent in night.world.agents.values():
        agent.lost_commands = 1
    name = night.ask("lr-factor", 0.5, at_step=46)
    settled(night, name, "failed")
    assert "step-passed" in night.state.interventions[name].detail
    assert rate_factor(night.state.hyper, 200) == 1.0
    finished(night)


def test_a_change_that_the_end_overtakes_is_settled_and_forgotten() -> None:
    night = Night(LONG)
    night.run_to_step(43)
    name = night.ask("lr-factor", 0.5, at_step=190)
    settled(night, name, "scheduled")
    night.ask("stop")
    finished(night, Status.STOPPED)
    assert stage(night, name) == "failed"
    assert night.state.hyper.scheduled == ()


# --- what can be changed --------------------------------------------------------------------------


def test_optimizer_scaler_and_clip_are_read_back_and_survive_a_crash_right_behind() -> None:
    night = Night(LONG)
    night.run_to_step(43)
    asked = {
        "adam": night.ask("optimizer", id="adam", values={"beta2": 0.98, "weight-decay": 0.05}),
        "scaler": night.ask("scaler", id="scaler", values={"loss-scale": 8.0}),
        "clip": night.ask("grad-clip", 0.3, id="clip"),
    }
    settled(night, "clip", "applied")
    night.world.kill_worker(3)
    night.run(lambda s: s.num_attempts == 2 and s.step > 50)
    assert night.state.attempt is not None
    # It went back behind the changes, and came to their step again.
    assert resumed_at(night)[-1] == 40
    readback = night.state.attempt.readback
    expected = {"beta2": 0.98, "weight_decay": 0.05, "grad_clip": 0.3, "loss_scale": 8.0}
    assert expected.items() <= readback.items()
    assert night.state.attempt.differs == ()
    finished(night)
    assert {stage(night, name) for name in asked} == {"applied"}
    at_step = night.state.interventions["scaler"].at_step
    assert at_step is not None
    assert night.world.samples[at_step].loss_scale == 8.0


def test_data_is_left_out_and_only_data_that_is_still_to_come() -> None:
    night = Night(LONG)
    night.run_to_step(43)
    name = night.ask("skip", target="60:70")
    late = night.ask("skip", target="5:9", id="late")
    finished(night)
    assert (stage(night, name), stage(night, late)) == ("applied", "rejected")
    assert "is behind" in night.state.interventions["late"].detail
    consumed = [night.world.samples[step].data_step for step in range(1, 201)]
    assert consumed == [*range(60), *range(70, 210)]


def test_a_change_is_taken_back_while_it_waits_and_while_it_holds() -> None:
    night = Night(LONG)
    night.run_to_step(43)
    waits = night.ask("lr-factor", 0.5, id="waits", at_step=100)
    holds = night.ask("grad-clip", 0.3, id="holds")
    settled(night, "waits", "scheduled")
    settled(night, "holds", "applied")
    for number, target in enumerate((waits, holds, "nobody")):
        night.ask("revert", target=target, id=f"r{number}")
    finished(night)
    assert [stage(night, f"r{n}") for n in range(3)] == ["applied", "applied", "rejected"]
    assert (stage(night, waits), stage(night, holds)) == ("reverted", "reverted")
    assert "taken back by r0 of ann" in night.state.interventions[waits].detail
    assert night.state.hyper.value_at("grad-clip", 200) is None
    assert rate_factor(night.state.hyper, 200) == 1.0


def test_a_rate_asked_for_as_such_stands_whatever_was_set_for_a_while_before() -> None:
    night = Night(LONG)
    night.run_to_step(43)
    first = night.ask("lr-factor", 0.5, id="first", for_steps=30)
    settled(night, "first", "applied")
    night.ask("lr", 2e-4, id="second")
    finished(night)
    assert stage(night, first) == "reverted"
    assert "superseded by second" in night.state.interventions[first].detail
    at_step = night.state.interventions["second"].at_step
    assert at_step is not None
    assert night.world.samples[at_step].lr == pytest.approx(2e-4)
    factor = lr_of(night, at_step)
    assert all(lr_of(night, s) == pytest.approx(factor) for s in range(at_step, 201))


# --- what is taken back before it took effect -----------------------------------------------------


def paused(night: Night) -> None:
    night.ask("pause", id="rest")
    night.run(lambda s: bool(s.paused))


def test_what_waits_on_a_paused_run_is_forgotten_and_never_comes() -> None:
    night = Night(LONG)
    night.run_to_step(43)
    paused(night)
    night.ask("lr-factor", 0.1, id="slow")
    night.ask("rollback", 20, id="back")
    night.run_for(5.0)
    assert (stage(night, "slow"), stage(night, "back")) == ("requested", "requested")
    for name in ("slow", "back"):
        undo = night.ask("revert", target=name, id=f"undo-{name}")
        settled(night, undo, "applied")
        assert stage(night, name) == "reverted"
    assert "ann asked: test" in night.state.interventions["slow"].detail
    held = night.state.step
    night.ask("resume")
    finished(night)
    assert resumed_at(night)[-1] == held
    assert not [s for s in sends(night) if s.command.cause in ("slow", "undo-slow")]
    assert rate_factor(night.state.hyper, 200) == 1.0


@pytest.mark.parametrize("action", ["lr-factor", "grad-clip"])
def test_a_change_and_its_undoing_right_behind_it_leave_nothing(action: str) -> None:
    night = Night(LONG)
    night.run_to_step(43)
    name = night.ask(action, 0.5, id="hasty")
    night.ask("revert", target=name, id="undo")
    settled(night, "undo", "applied")
    finished(night)
    assert stage(night, name) == "reverted"
    assert rate_factor(night.state.hyper, 200) == 1.0
    assert night.state.hyper.value_at("grad-clip", 200) is None


@pytest.mark.parametrize("after_s", [0.0, 0.3, 0.6, 1.0])
def test_a_change_lost_on_its_way_with_its_attempt_can_be_taken_back(after_s: float) -> None:
    night = Night(LONG)
    night.run_to_step(43)
    name = night.ask("lr-factor", 0.5, id="hasty")
    night.run_for(after_s)
    night.world.kill_worker(2)
    night.ask("revert", target=name, id="undo")
    finished(night)
    assert (stage(night, name), stage(night, "undo")) == ("reverted", "applied")
    assert rate_factor(night.state.hyper, 200) == 1.0


def test_a_scheduled_stop_is_taken_back_and_what_is_under_way_is_not() -> None:
    night = Night(LONG)
    night.run_to_step(43)
    later = night.ask("stop", id="later", at_step=90)
    night.ask("revert", target=later, id="undo")
    settled(night, "undo", "applied")
    assert stage(night, later) == "reverted"
    night.run_to_step(95)
    night.ask("pause", id="now")
    night.run(lambda s: "now" in s.interventions and s.interventions["now"].stage == "sent")
    night.ask("revert", target="now", id="too-late")
    night.ask("revert", target="too-late-2", id="too-late-2")
    settled(night, "too-late", "rejected")
    settled(night, "too-late-2", "rejected")
    assert "now is sent: nothing of it" in night.state.interventions["too-late"].detail
    night.run(lambda s: bool(s.paused))


def test_a_pause_that_waits_for_the_run_to_train_is_taken_back_and_the_run_goes_on() -> None:
    night = Night(LONG)
    night.run_to_step(43)
    night.world.kill_worker(1)
    night.run(lambda s: s.num_attempts == 2 and not is_training(s))
    night.ask("pause", id="hold")
    night.ask("revert", target="hold", id="undo")
    settled(night, "undo", "applied")
    assert (stage(night, "hold"), night.state.stopping) == ("reverted", "")
    finished(night)
    assert not night.state.paused


# --- the life of a run ----------------------------------------------------------------------------


@pytest.mark.parametrize("at_step", [None, 60])
def test_a_paused_run_holds_its_state_and_goes_on_where_it_stood(at_step: int | None) -> None:
    night = Night(LONG)
    night.run_to_step(43)
    name = night.ask("pause", at_step=at_step)
    night.run(lambda s: bool(s.paused))
    state = night.state
    assert (state.paused, stage(night, name), state.attempt) == (ON_REQUEST, "applied", None)
    assert state.step == (at_step or state.step)
    assert max(s.step for s in night.world.disk.saved.values()) == state.step
    held = state.step
    night.run_for(30.0)
    assert night.state.step == held
    night.ask("lr-factor", 0.5, id="meanwhile")
    night.ask("resume")
    night.run_to_step(held + 1)
    assert resumed_at(night)[-1] == held
    finished(night)
    assert stage(night, "meanwhile") == "applied"


@pytest.mark.parametrize("after_s", [0.0, 0.3, 0.6, 1.2, 1.8])
def test_pause_is_obeyed_although_a_worker_dies_while_it_pauses(after_s: float) -> None:
    night = Night(LONG)
    night.run_to_step(43)
    night.ask("pause")
    night.run_for(after_s)
    night.world.kill_worker(1)
    night.run(lambda s: bool(s.paused))
    assert night.state.step < 60
    night.ask("resume")
    finished(night)


def test_a_scheduled_stop_outlives_a_crash_right_before_it() -> None:
    night = Night(LONG)
    night.run_to_step(43)
    name = night.ask("stop", at_step=60)
    settled(night, name, "scheduled")
    night.run_to_step(59)
    night.world.kill_worker(0)
    finished(night, Status.STOPPED)
    assert (stage(night, name), night.state.step) == ("applied", 60)


def test_who_asks_for_the_end_gets_it_though_somebody_asked_for_a_pause() -> None:
    night = Night(LONG)
    night.run_to_step(43)
    names = [night.ask("pause", id="pause"), night.ask("stop", id="stop")]
    finished(night, Status.STOPPED)
    assert [stage(night, name) for name in names] == ["applied", "applied"]


def test_a_paused_run_can_be_stopped() -> None:
    night = Night(LONG)
    night.run_to_step(43)
    night.ask("pause")
    night.run(lambda s: bool(s.paused))
    night.ask("stop")
    finished(night, Status.STOPPED)


@pytest.mark.parametrize("strike", [False, True])
def test_a_rollback_goes_where_it_was_told_also_when_it_is_struck_on_the_way(strike: bool) -> None:
    night = Night(LONG)
    night.run_to_step(65)
    night.ask("grad-clip", 0.3, id="clip")
    settled(night, "clip", "applied")
    name = night.ask("rollback", 45)
    night.run(lambda s: s.num_attempts == 2)
    if strike:
        night.world.kill_worker(2)
    settled(night, name, "applied")
    assert resumed_at(night)[-1] == 40
    assert night.state.interventions[name].at_step == 41
    finished(night)
    left = [c for c in night.state.checkpoints.values() if c.attempt == 1 and c.step > 40]
    assert all(c.abandoned for c in left)
    assert night.state.hyper.value_at("grad-clip", 200) == 0.3


def test_a_paused_run_that_is_to_go_back_begins_again_there() -> None:
    night = Night(LONG)
    night.run_to_step(65)
    night.ask("pause", id="pause")
    night.run(lambda s: bool(s.paused))
    held = night.state.step
    name = night.ask("rollback", 45)
    nowhere = night.ask("rollback", 5, id="nowhere")
    settled(night, nowhere, "rejected")
    request = night.state.interventions[name].request
    foretold = plan_request(night.state, request, night.timeline.now_s())
    assert [type(decision.action) for decision in foretold] == [StartAttempt]
    night.run_for(30.0)
    # What is asked for is no reason to go on: somebody has paused it.
    assert (stage(night, name), night.state.step) == ("requested", held)
    night.ask("resume")
    settled(night, name, "applied")
    assert resumed_at(night)[-1] == 40
    assert night.state.num_attempts == 2
    left = [c for c in night.state.checkpoints.values() if c.attempt == 1 and c.step > 40]
    assert left
    assert all(c.abandoned for c in left)
    finished(night)


def test_a_way_back_asked_for_is_taken_before_the_policys_own() -> None:
    night = Night(LONG)
    night.run_to_step(65)
    nodes = night.state.attempt.plan.nodes if night.state.attempt else ()
    # Nothing is left to run on: the run waits for a node, and somebody makes up their mind.
    for node in night.state.nodes:
        if node not in nodes:
            night.ask("quarantine", target=node, id=f"q-{node}")
    night.world.kill_agent(nodes[1], known_after_s=0.1)
    night.ask("quarantine", target=nodes[1], id="q-lost")
    night.run(lambda s: s.attempt is None)
    name = night.ask("rollback", 45)
    night.run_for(5.0)
    assert stage(night, name) == "requested"
    for node in night.state.nodes:
        night.ask("release", target=node, id=f"r-{node}")
    settled(night, name, "applied")
    assert resumed_at(night)[-1] == 40
    finished(night)


def test_a_rollback_names_what_stands_in_its_way() -> None:
    night = Night(LONG)
    night.run_to_step(43)
    for name, value, target, said in (
        ("a", 5.0, "", "no sound checkpoint"),
        ("b", 99.0, "", "still to come"),
        ("c", 0.0, "step-00000777.a0001", "no checkpoint"),
    ):
        night.ask("rollback", value, target, id=name)
        settled(night, name, "rejected")
        assert said in night.state.interventions[name].detail


def test_an_incident_is_acknowledged_by_name() -> None:
    night = Night(LONG)
    night.run_to_step(43)
    night.world.kill_worker(1)
    night.run(lambda s: bool(s.incidents))
    name, nobody = night.ask("ack", target="inc-0001"), night.ask("ack", target="inc-9", id="no")
    settled(night, name, "applied")
    assert "ann asked: test" in night.state.incidents["inc-0001"].acknowledged
    assert stage(night, nobody) == "rejected"
    finished(night)


# --- people and the policy ------------------------------------------------------------------------


def climbs(night: Night) -> list[d.Decision]:
    return [x for x in night.checker.decisions if "one rung back up" in x.reason]


def diverged(state: RunState) -> bool:
    return bool(state.rollbacks) and state.attempt is not None and state.attempt.num_steps > 30


@pytest.mark.parametrize("who_sets_it", ["nobody", "for good", "for a while"])
def test_a_rate_set_by_a_person_is_not_climbed_back_from(who_sets_it: str) -> None:
    spec = make_spec(trainer={"steps": 420}, numeric={"recover_after_steps": 60})
    night = Night(spec)
    night.run_to_step(50)
    night.ask("lr-factor", 30.0, id="raise")
    night.run(diverged)
    if who_sets_it == "for good":
        name = night.ask("lr-factor", 0.8, id="mine")
    elif who_sets_it == "for a while":
        name = night.ask("lr-factor", 0.8, id="mine", for_steps=100)
    finished(night)
    assert len(climbs(night)) == (0 if who_sets_it == "for good" else 1)
    if who_sets_it == "for good":
        sent = next(x for x in night.checker.decisions if "mine" in str(x.action))
        assert ("rungs no longer climbed back", "x0.9") in sent.evidence
        assert rate_factor(night.state.hyper, 420) == pytest.approx(0.9 * 0.8)
    else:
        assert rate_factor(night.state.hyper, 420) == pytest.approx(1.0)
    if who_sets_it == "for a while":
        known = night.state.interventions[name]
        assert known.stage == "expired"
        [climb] = climbs(night)
        assert isinstance(climb.action, d.SendCommand)
        climbed_at = night.state.interventions[climb.id].at_step
        assert climbed_at is not None
        assert known.until_step is not None
        assert climbed_at >= known.until_step


def test_a_numeric_rollback_keeps_what_people_set_and_drops_what_was_for_the_state_it_leaves() -> (
    None
):
    spec = make_spec(trainer={"steps": 300})
    night = Night(spec)
    night.run_to_step(51)
    night.ask("grad-clip", 0.3, id="clip")
    night.ask("scaler", id="reset", values={"loss-scale": 8.0})
    night.ask("optimizer", id="while", values={"beta2": 0.98}, for_steps=5)
    settled(night, "while", "expired")
    clip_at = night.state.interventions["clip"].at_step
    night.ask("lr-factor", 30.0, id="raise")
    night.run(diverged)
    assert clip_at is not None
    resumed = resumed_at(night)[-1]
    hyper = night.state.hyper
    if resumed < clip_at:
        assert hyper.value_at("grad-clip", resumed + 1) == 0.3, "it holds from the first new step"
        assert stage(night, "reset") == "reverted"
        assert hyper.value_at("beta2", resumed + 1) is None, "what was over is not made longer"
    assert stage(night, "raise") == "reverted"
    assert stage(night, "clip") == "applied"
    finished(night)
    assert hyper.value_at("grad-clip", 300) == 0.3
