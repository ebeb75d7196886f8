"""Checkpoints that are bad, that restarts fail from, that people keep; and how often to save."""

from __future__ import annotations

import pytest
from midwatch.checkpoints.interval import expected_ettr_frac, optimal_interval_s
from midwatch.checkpoints.manifest import checkpoint_id
from midwatch.logbook import decisions as d
from midwatch.logbook.state import Status
from midwatch.operator.simulation.conditions import Times

from ..support.builders import make_spec
from .night import Night

A30, A40 = checkpoint_id(30, 1), checkpoint_id(40, 1)


def ended(night: Night) -> Night:
    night.run_to_end()
    night.run_for(5.0)
    night.checker.check_end()
    return night


def faults_of(night: Night) -> list[str]:
    return [i.draft.fault for i in night.state.incidents.values()]


def decided(night: Night, kind: type) -> list[d.Decision]:
    return [x for x in night.checker.decisions if isinstance(x.action, kind)]


def plans(night: Night) -> list[tuple[str, ...]]:
    return [x.action.plan.checkpoints for x in decided(night, d.StartAttempt)]  # type: ignore[union-attr]


# --- loads ---------------------------------------------------------------------------------------


def test_a_rotten_checkpoint_is_passed_over_with_a_note_and_not_offered_again() -> None:
    night = Night()
    night.run_to_step(43)
    night.world.disk.saved[A40].is_corrupt = True
    night.world.kill_worker(0)
    night.run(lambda s: bool(s.num_attempts == 2 and s.attempt and s.attempt.passed_over))
    assert night.state.checkpoints[A40].verified is False
    night.run(lambda s: s.step > 33)
    night.world.kill_worker(0)
    ended(night)
    assert faults_of(night) == ["worker-killed", "bad-checkpoint", "worker-killed"]
    killed, noted, _ = night.state.incidents.values()
    assert killed.checkpoint == A30
    assert (f"passed over {A40}", "shard-corrupt: SHA-256 differs") in noted.decisions[0].evidence
    assert noted.outcome == "training went on"
    assert [plan[0] for plan in plans(night)[1:]] == [A40, A30]


def test_a_run_without_any_readable_checkpoint_reads_them_again_while_it_is_paused() -> None:
    night = Night(make_spec(numeric={"recurrence_steps": 20}))
    night.run_to_step(43)
    for saved in night.world.disk.saved.values():
        saved.misread_loads = 1
    night.world.kill_worker(0)
    night.run(lambda s: s.paused == "no-usable-checkpoint")
    night.run(lambda s: s.checkpoints[A40].verified is True)
    night.ask("resume")
    ended(night)
    assert plans(night)[-1][0] == A40


# --- restarts that fail --------------------------------------------------------------------------


def test_a_checkpoint_that_two_restarts_fail_from_is_quarantined_and_the_next_is_taken() -> None:
    night = Night()
    night.run_to_step(43)
    night.world.disk.saved[A40].is_unfit = True
    night.world.kill_worker(0)
    night.run(lambda s: bool(s.checkpoints[A40].quarantined))
    ended(night)
    assert [plan[0] for plan in plans(night)[1:]] == [A40, A40, A30]
    [decision] = decided(night, d.QuarantineCheckpoint)
    assert "2 restarts" in decision.reason
    assert ("next candidate", A30) in decision.evidence
    assert decision.incident in night.state.incidents


def test_the_only_checkpoint_is_not_quarantined_and_the_run_asks_for_a_person() -> None:
    night = Night()
    night.run_to_step(13)
    [only] = night.world.disk.saved.values()
    only.is_unfit = True
    night.world.kill_worker(0)
    night.run(lambda s: bool(s.paused))
    assert night.state.paused == "no-progress"
    assert not night.state.checkpoints[only.id].quarantined
    only.is_unfit = False
    night.ask("resume")
    ended(night)


def test_restarts_that_a_dying_node_ended_say_nothing_about_the_checkpoint() -> None:
    night = Night(make_spec(nodes={"spares": 2}, restart={"max_barren_attempts": 5}))
    night.run_to_step(43)
    night.world.kill_worker(0)
    for attempt in (2, 3):
        night.run(
            lambda s, n=attempt: s.num_attempts == n and bool(s.attempt and s.attempt.resumed_s)
        )
        assert night.state.attempt is not None
        night.world.kill_agent(night.state.attempt.plan.nodes[0], known_after_s=0.01)
    ended(night)
    assert not decided(night, d.QuarantineCheckpoint)


def test_a_person_releases_a_quarantined_checkpoint() -> None:
    night = Night(make_spec(trainer={"steps": 200}))
    night.run_to_step(43)
    quarantined = night.ask("quarantine-checkpoint", target=A40)
    night.run(lambda s: bool(s.checkpoints[A40].quarantined))
    released = night.ask("release-checkpoint", target=A40)
    night.run(lambda s: not s.checkpoints[A40].quarantined)
    night.world.kill_worker(0)
    ended(night)
    assert plans(night)[1][0] == A40
    stages = [night.state.interventions[name].stage for name in (quarantined, released)]
    assert stages == ["applied", "applied"]


# --- what people keep ----------------------------------------------------------------------------


def test_a_pinned_checkpoint_outlives_retention_until_it_is_unpinned() -> None:
    spec = make_spec(trainer={"steps": 300}, retention={"keep_newest": 1})
    night = Night(spec)
    night.run_to_step(23)
    pinned = checkpoint_id(20, 1)
    first = night.ask("pin", target=pinned)
    night.run(lambda s: s.interventions.get(first) is not None and pinned in s.pins)
    night.run_to_step(200)
    assert pinned in night.world.disk.saved
    night.ask("unpin", target=pinned)
    ended(night)
    assert pinned not in night.world.disk.saved
    assert not night.state.pins


def test_requests_about_checkpoints_are_settled_with_what_came_of_them() -> None:
    night = Night(make_spec(trainer={"steps": 200}))
    night.run_to_step(43)
    nothing = night.ask("pin", target=checkpoint_id(41, 1), id="nothing")
    sound = night.ask("verify", target=A30, id="sound")
    night.world.disk.saved[A40].is_corrupt = True
    rotten = night.ask("verify", target=A40, id="rotten")
    pruned = night.ask("prune", id="prune")
    ended(night)
    said = {n: night.state.interventions[n] for n in (nothing, sound, rotten, pruned)}
    assert said[nothing].stage == "rejected"
    assert said[sound].detail == f"{A30} is sound"
    assert "NOT sound" in said[rotten].detail
    assert said[pruned].stage == "applied"


def test_old_checkpoints_go_by_age_but_never_the_one_to_go_back_to() -> None:
    spec = make_spec(
        trainer={"steps": 300}, retention={"keep_newest": 20, "max_age_hours": 20 / 3600}
    )
    night = Night(spec)
    night.run_to_step(200)
    ages_s = [night.state.time_s - c.time_s for c in night.state.checkpoints.values()]
    assert sum(age > 25.0 for age in ages_s) <= 2, "the far-back one and last_good"
    ended(night)


# --- how often -----------------------------------------------------------------------------------


def failing_night(mtbf_s: float, seed: int) -> Night:
    """A night in which saves hold the loop up and workers die at random, and often."""
    interval = {"min_steps": 2, "max_steps": 400, "prior_mtbf_hours": 0.1}
    spec = make_spec(
        trainer={"steps": 6000},
        checkpoints={"interval": interval},
        restart={"max_restarts_per_hour": 1000},
    )
    night = Night(spec, seed=seed, times=Times(blocked_s=0.8))
    rng = night.world.rng

    def strike() -> None:
        if night.world.live_gang is not None and night.world.live_gang.is_training:
            night.world.kill_worker(rng.randrange(4))
        night.world.timeline.later(rng.expovariate(1.0 / mtbf_s), strike)

    night.world.timeline.later(rng.expovariate(1.0 / mtbf_s), strike)
    return night


@pytest.mark.parametrize("seed", [1, 2])
def test_the_interval_settles_near_the_optimum_of_the_run_and_does_not_flap(seed: int) -> None:
    mtbf_s = 120.0
    night = failing_night(mtbf_s, seed)
    night.run(lambda s: s.status.is_terminal, limit_s=8000.0)
    chosen = [
        x
        for x in decided(night, d.SendCommand)
        if isinstance(x.action, d.SendCommand) and x.action.command.kind == "save-interval"
    ]
    assert "frequent saves find it out" in chosen[0].reason
    best_s = optimal_interval_s(0.8, mtbf_s)
    last = night.state.hyper.save_interval_steps
    assert last is not None
    # Where it counts, in time lost, the choice is as good as the optimum.
    ideal, had = (expected_ettr_frac(s, 0.8, mtbf_s) for s in (best_s, last * 0.5))
    assert had > 0.99 * ideal
    assert 0.5 * best_s < last * 0.5 < 2.0 * best_s
    assert 2 <= len(chosen) <= 12
    evidence = dict(chosen[-1].evidence)
    assert evidence["loop held up by a save"].startswith("0.8 s")
    assert evidence["bound hit"] == "none"
    assert night.state.num_setbacks > 20


def test_the_trainers_own_interval_stays_where_no_bounds_are_given() -> None:
    night = ended(Night(times=Times(blocked_s=0.8)))
    assert night.state.hyper.save_interval_steps is None
    assert not decided(night, d.SendCommand)


def test_a_bound_that_holds_is_named() -> None:
    interval = {"min_steps": 5, "max_steps": 15}
    spec = make_spec(trainer={"steps": 200}, checkpoints={"interval": interval})
    night = ended(Night(spec, times=Times(blocked_s=0.8)))
    assert night.state.end is Status.COMPLETED
    assert night.state.hyper.save_interval_steps == 15
    last = decided(night, d.SendCommand)[-1]
    assert ("bound hit", "max_steps") in last.evidence
    steps = sorted(s.step for s in night.world.disk.saved.values())
    assert {b - a for a, b in zip(steps[-4:-1], steps[-3:-1], strict=False)} <= {15}
