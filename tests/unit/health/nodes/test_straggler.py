"""A straggler is slow all the time; a step that takes 3.4 times as long now and then is none."""

from __future__ import annotations

import random
import statistics

from midwatch.health.nodes.straggler import StragglerDetector, StragglerRules
from midwatch.logbook.findings import Finding
from midwatch.tests.support.recorded import recorded_rows

NODES = {rank: f"node-{rank // 2}" for rank in range(8)}


def times(rng: random.Random, base_s: float = 1.0) -> dict[int, float]:
    return {rank: base_s * rng.uniform(0.97, 1.03) for rank in range(8)}


def run(steps: int, slow: dict[int, float], first: int = 0, seed: int = 1) -> list[Finding]:
    """Ranks in slow take that many times as long from step first on."""
    rng, detector, found = random.Random(seed), StragglerDetector(), []
    for step in range(1, steps + 1):
        spent_s = times(rng)
        if step > first:
            spent_s = {rank: value * slow.get(rank, 1.0) for rank, value in spent_s.items()}
        found += detector.observe(step, spent_s, NODES)
    return found


def test_a_slow_rank_is_named_once_after_fifty_steps() -> None:
    (finding,) = run(400, {5: 1.5}, first=100)
    assert (finding.rank, finding.node, finding.action) == (5, "node-2", "drain")
    assert 140 <= finding.step <= 155
    assert 1.0 < finding.value < 1.6
    assert finding.onset_step >= 90


def test_the_whole_group_slowing_down_is_nobodys_fault() -> None:
    assert run(300, dict.fromkeys(range(8), 3.0), first=100) == []


def test_a_little_slower_is_no_straggler() -> None:
    assert run(500, {3: 1.15}) == []


def test_several_at_once_are_named_slowest_first() -> None:
    assert [f.rank for f in run(60, {1: 1.5, 6: 2.5})] == [6, 1]


def test_a_rank_that_recovers_may_be_named_again() -> None:
    rng, detector, found = random.Random(2), StragglerDetector(), []
    for step in range(1, 401):
        spent_s = times(rng)
        if step <= 80 or step > 250:
            spent_s[2] *= 2.0
        found += detector.observe(step, spent_s, NODES)
    told = [(f.rank, f.action) for f in found]
    assert told == [(2, "drain"), (2, "ignore"), (2, "drain"), (2, "ignore")][: len(told)]
    assert told[:3] == [(2, "drain"), (2, "ignore"), (2, "drain")]


def test_what_it_costs_a_step_is_what_it_exceeds_the_median_by() -> None:
    (finding,) = run(50, {5: 1.5})
    assert 0.4 < finding.cost_s < 0.6
    (finding,) = run(400, {5: 1.5}, first=100)
    assert 0.2 < finding.cost_s < 0.6


def test_noise_of_milliseconds_is_no_straggler() -> None:
    rng, detector = random.Random(3), StragglerDetector()
    for step in range(1, 300):
        spent_s = times(rng, 0.01)
        spent_s[4] *= 1.9
        assert detector.observe(step, spent_s, NODES) == []


def test_a_restart_begins_anew_and_too_few_ranks_say_nothing() -> None:
    detector, rng = StragglerDetector(StragglerRules(window_steps=10)), random.Random(4)
    for step in range(1, 10):
        assert detector.observe(step, times(rng) | {0: 3.0}, NODES) == []
    detector.restarted()
    for step in range(10, 19):
        assert detector.observe(step, times(rng) | {0: 3.0}, NODES) == []
    assert detector.observe(19, times(rng) | {0: 3.0}, NODES)
    alone = StragglerDetector(StragglerRules(window_steps=10))
    assert not any(alone.observe(step, {0: 1.0, 1: 9.0}, NODES) for step in range(100))
    assert detector.observe(20, dict.fromkeys(range(8), float("nan")), NODES) == []


def test_recorded_healthy_runs_with_slow_steps_name_nobody() -> None:
    """One rank carries every slow step of a recorded run, the others its usual time."""
    by_run: dict[str, list[float]] = {}
    for row in recorded_rows("mlperf_llama31_405b", "curves.csv"):
        if row["step_time_s"]:
            by_run.setdefault(row["run_id"], []).append(float(row["step_time_s"]))
    assert len(by_run) >= 20
    worst = 0.0
    for seed, steps_s in enumerate(by_run.values()):
        rng, detector = random.Random(seed), StragglerDetector()
        usual_s = statistics.median(steps_s)
        for step, step_s in enumerate(steps_s, start=1):
            spent_s = times(rng, usual_s)
            spent_s[rng.randrange(8) if seed % 2 else 3] = step_s
            worst = max(worst, step_s / usual_s)
            assert detector.observe(step, spent_s, NODES) == []
    assert worst > 2.0
