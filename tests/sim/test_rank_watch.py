"""What single ranks report reaches the detectors, whole and in order, and what it leads to."""

from __future__ import annotations

import math
from collections.abc import Iterable

from midwatch.health.numerics.panel import Panel
from midwatch.logbook.state import RunState, Status
from midwatch.logbook.wire import RankSample
from midwatch.operator.agent.reports import RankSamples
from midwatch.operator.rank_watch import PENDING_STEPS_MAX, RankWatch
from midwatch.tests.support.builders import make_spec

from .night import Night


def sample(rank: int, step: int, **fields: float | bool) -> RankSample:
    wobble = 1.0 + 0.01 * math.sin(7.0 * rank + step)
    values: dict[str, float | bool] = {
        "step_s": 0.5,
        "data_s": 0.01,
        "forward_s": 0.1,
        "backward_s": 0.2,
        "comm_s": 0.1,
        "optimizer_s": 0.05,
        "local_loss": 4.0 * wobble,
        "local_grad_norm": 0.5 * wobble,
        "found_inf": False,
    }
    return RankSample(rank=rank, step=step, **{**values, **fields})


def say(night: Night, step: int, samples: Iterable[RankSample]) -> None:
    """Every node reports its own ranks of one step."""
    assert night.state.attempt is not None
    for placement in night.state.attempt.plan.placements:
        ranks = range(placement.first_rank, placement.first_rank + placement.num_ranks)
        mine = tuple(s for s in samples if s.rank in ranks)
        report = RankSamples(
            attempt=night.state.num_attempts, batch=mine, stride=1, dropped_total=0
        )
        night.world.agents[placement.node].report(report)


def healthy_step(step: int) -> list[RankSample]:
    return [sample(rank, step) for rank in range(4)]


def run_steps(night: Night, first: int, last: int, odd: int | None = None, **fields: float) -> None:
    for step in range(first, last + 1):
        rows = [sample(r, step, **(fields if r == odd else {})) for r in range(4)]
        say(night, step, rows)
        night.run_for(0.5)


def node_of(state: RunState, rank: int) -> str:
    assert state.attempt is not None
    node = state.attempt.plan.node_of(rank)
    assert node is not None
    return node


def test_a_corrupting_rank_costs_its_node_its_place_and_the_rate_nothing() -> None:
    night = Night(seed=51)
    state = night.run_to_step(30)
    victim = node_of(state, 3)
    run_steps(night, 1, 25)
    run_steps(night, 26, 34, odd=3, local_grad_norm=9.0)
    state = night.run(lambda s: s.num_attempts == 2 and s.attempt is not None)
    assert victim not in state.attempt.plan.nodes
    assert state.nodes[victim].quarantined
    (past,) = state.rollbacks
    assert past.lr_factor == 1.0
    assert state.hyper.lr_changes == ()
    (incident,) = state.incidents.values()
    assert (incident.draft.fault, incident.draft.node) == ("cross-rank-outlier", victim)
    assert night.run_to_end().status is Status.COMPLETED


def test_a_single_odd_batch_costs_nothing() -> None:
    night = Night(seed=52)
    night.run_to_step(30)
    run_steps(night, 1, 25)
    run_steps(night, 26, 26, odd=3, local_loss=5.5)
    run_steps(night, 27, 40)
    state = night.run_to_end()
    assert state.num_attempts == 1
    assert not any(node.quarantined for node in state.nodes.values())


def test_a_rank_with_unusual_data_keeps_its_place_and_is_tried_out_when_it_can_be() -> None:
    night = Night(make_spec(trainer={"steps": 200}), seed=56)
    night.run_to_step(10)
    victim = node_of(night.state, 3)
    run_steps(night, 1, 25)
    run_steps(night, 26, 60, odd=3, local_loss=9.0)
    state = night.state
    assert state.num_attempts == 1
    assert not state.rollbacks
    assert state.nodes[victim].suspicion
    assert (state.nodes[victim].evict, state.nodes[victim].drain) == (None, None)
    state = night.run_to_end()
    assert state.num_attempts == 1
    assert not any(node.quarantined for node in state.nodes.values())


def test_an_overflow_on_one_shard_is_the_scalers_business() -> None:
    night = Night(seed=53)
    night.run_to_step(30)
    run_steps(night, 1, 25)
    overflow = {"local_grad_norm": math.inf, "found_inf": True}
    run_steps(night, 26, 34, odd=2, **overflow)
    state = night.run_to_end()
    assert state.num_attempts == 1
    assert not state.rollbacks


def test_a_straggler_is_left_out_at_the_next_restart() -> None:
    night = Night(make_spec(restart={"straggler_payback_s": 0.0}), seed=54)
    state = night.run_to_step(10)
    victim = node_of(state, 2)
    run_steps(night, 1, 55, odd=2, backward_s=0.6)
    state = night.state
    assert state.num_attempts == 1
    assert state.nodes[victim].drain is not None
    (incident,) = state.incidents.values()
    assert (incident.draft.fault, incident.draft.rank) == ("straggler", 2)
    night.world.kill_worker(0)
    state = night.run(lambda s: s.num_attempts == 2 and s.attempt is not None)
    assert victim not in state.attempt.plan.nodes


def test_a_straggler_that_costs_enough_is_replaced_as_soon_as_it_is_known() -> None:
    night = Night(seed=57)
    victim = node_of(night.run_to_step(10), 2)
    run_steps(night, 1, 52, odd=2, backward_s=0.6)
    state = night.run(lambda s: s.num_attempts == 2 and s.attempt is not None)
    assert state.attempt is not None
    assert victim not in state.attempt.plan.nodes
    assert state.step < 80


def test_steps_of_many_times_the_median_now_and_then_cause_nothing() -> None:
    night = Night(seed=58)
    night.run_to_step(10)
    for first in range(1, 100, 10):
        run_steps(night, first, first, odd=2, backward_s=2.0)
        run_steps(night, first + 1, first + 9)
    state = night.run_to_end()
    assert (state.num_attempts, state.findings) == (1, ())


def test_one_that_keeps_pace_again_stays_where_it_is() -> None:
    spec = make_spec(restart={"straggler_payback_s": 0.0}, trainer={"steps": 300})
    night = Night(spec, seed=59)
    state = night.run_to_step(10)
    victim = node_of(state, 2)
    assert state.attempt is not None
    before = state.attempt.plan.nodes
    run_steps(night, 1, 52, odd=2, backward_s=0.6)
    assert night.state.nodes[victim].drain is not None
    run_steps(night, 53, 110)
    assert night.state.nodes[victim].drain is None
    assert not night.state.nodes[victim].suspicion
    night.world.kill_worker(0)
    state = night.run(lambda s: s.num_attempts == 2 and s.attempt is not None)
    assert state.attempt is not None
    assert state.attempt.plan.nodes == before


def test_steps_that_never_become_whole_are_forgotten() -> None:
    night = Night(seed=55)
    state = night.run_to_step(5)
    watch = RankWatch(Panel())
    for step in range(1, 2000):
        rows = (sample(0, step), sample(1, step))
        watch.take(state, RankSamples(attempt=1, batch=rows, stride=1, dropped_total=0, node="a"))
    assert len(watch._pending) <= PENDING_STEPS_MAX


def test_reports_of_another_attempt_and_repeated_ones_are_not_heard() -> None:
    night = Night(seed=56)
    state = night.run_to_step(5)
    watch = RankWatch(Panel())
    report = RankSamples(attempt=1, batch=tuple(healthy_step(7)), stride=1, dropped_total=0)
    assert watch.take(state, report) == []
    assert watch._judged_step == 7
    watch.take(state, report)
    assert not watch._pending
    stale = RankSamples(attempt=9, batch=tuple(healthy_step(8)), stride=1, dropped_total=0)
    watch.take(state, stale)
    assert watch._judged_step == 7
