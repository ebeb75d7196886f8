"""The progress deadline and the blame, on plain rows: no process, no clock."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from midwatch.health.nodes.liveness import (
    HangLimits,
    Overdue,
    ProgressDeadline,
    RankProgress,
    blame,
    is_waiting_stack,
)
from midwatch.logbook.wire import CollectiveMark, Phase
from msgspec.structs import replace

LIMITS = HangLimits(multiple=6.0, min_s=2.0, max_s=100.0, saving_s=50.0, window=16)
LOOK_S = 0.5


def row(
    rank: int, step: int, phase: Phase = Phase.FORWARD, age_s: float = 0.0, state: str = "S"
) -> RankProgress:
    return RankProgress(rank, step, phase, age_s, state)


class Watched:
    """A deadline looked at every half second of its own clock."""

    def __init__(self, limits: HangLimits = LIMITS) -> None:
        self.deadline = ProgressDeadline(limits)
        self.now_s = 1000.0

    def look(self, rows: Sequence[RankProgress], for_s: float) -> list[Overdue]:
        """Show the same rows for a while; return every alarm."""
        alarms = []
        for _ in range(round(for_s / LOOK_S)):
            self.now_s += LOOK_S
            alarms.append(self.deadline.observe(rows, self.now_s))
        return [alarm for alarm in alarms if alarm is not None]

    def train(self, steps_s: Sequence[float], first: int = 0) -> list[Overdue]:
        """Complete steps of these lengths on two ranks."""
        alarms = []
        for step, step_s in enumerate(steps_s, first):
            alarms += self.look([row(0, step), row(1, step)], step_s)
        return alarms


def test_nothing_is_armed_before_the_first_completed_step() -> None:
    watched = Watched()
    assert watched.look([row(0, 40, Phase.LOADING), row(1, 40, Phase.BUILDING)], 500) == []
    assert watched.look([row(0, 40), row(1, 40)], 500) == []
    assert not watched.deadline.is_armed


def test_one_rank_still_starting_keeps_it_unarmed() -> None:
    watched = Watched()
    watched.look([row(0, 0), row(1, 0, Phase.LOADING)], 10)
    assert watched.look([row(0, 1), row(1, 0, Phase.LOADING)], 500) == []


def test_silence_past_the_multiple_of_the_median_is_told_once() -> None:
    watched = Watched()
    assert watched.train([2.0] * 10) == []
    alarms = watched.look([row(0, 10), row(1, 10)], 100)
    assert len(alarms) == 1
    (alarm,) = alarms
    assert alarm.median_step_s == pytest.approx(2.0)
    assert alarm.deadline_s == pytest.approx(12.0)
    assert 12.0 < alarm.waited_s <= 12.0 + LOOK_S
    assert alarm.step == 10


def test_a_completed_step_arms_it_again() -> None:
    watched = Watched()
    watched.train([2.0] * 10)
    assert len(watched.look([row(0, 10)], 50)) == 1
    assert watched.train([2.0] * 3, first=11) == []
    assert len(watched.look([row(0, 14)], 50)) == 1


def rounds_of(rank: int, rounds: int, step: int = 10) -> RankProgress:
    return RankProgress(rank, step, Phase.VALIDATING, 0.0, "S", rounds=rounds)


def test_rounds_of_a_validation_are_progress_and_no_steps() -> None:
    watched = Watched()
    watched.train([2.0] * 10)
    # Twenty rounds of 10 s each: every one within the deadline of 12 s, together far past it.
    for done in range(21):
        assert watched.look([rounds_of(0, done), rounds_of(1, done)], 10.0) == []
    assert watched.deadline.median_step_s == pytest.approx(2.0)
    after = [replace(rounds_of(rank, 20), phase=Phase.FORWARD) for rank in (0, 1)]
    assert watched.look(after, 2.0) == []
    assert watched.look([row(0, 11), row(1, 11)], 2.0) == []
    assert watched.deadline.median_step_s == pytest.approx(2.0, abs=LOOK_S)


def test_a_round_that_does_not_end_is_a_hang_and_the_rank_behind_is_to_blame() -> None:
    watched = Watched()
    watched.train([2.0] * 10)
    watched.look([rounds_of(0, 3), rounds_of(1, 3)], 4.0)
    stuck = [rounds_of(0, 4), rounds_of(1, 3)]
    (alarm,) = watched.look(stuck, 60.0)
    assert alarm.step == 10
    rank, why = blame(stuck)
    assert rank == 1
    assert "in VALIDATING after 3 rounds" in why
    assert "rank 0 is at step 10 in VALIDATING after 4 rounds" in why


def test_the_slowest_rank_counts() -> None:
    watched = Watched()
    watched.train([2.0] * 5)
    alarms = []
    for step in range(5, 20):
        alarms += watched.look([row(0, step), row(1, 5)], 2.0)
    assert len(alarms) == 1


@pytest.mark.parametrize("seed", range(5))
def test_isolated_steps_of_three_point_four_medians_cause_nothing(seed: int) -> None:
    chance = random.Random(seed)
    steps_s = [chance.choice([10.0] * 8 + [34.0]) * chance.uniform(0.9, 1.0) for _ in range(300)]
    watched = Watched(HangLimits(multiple=6.0, min_s=2.0, max_s=900.0))
    assert watched.train(steps_s) == []
    assert len(watched.look([row(0, 300), row(1, 300)], 200)) == 1


def test_the_deadline_stays_within_its_bounds() -> None:
    quick = Watched()
    quick.train([0.5] * 50)
    assert quick.deadline.deadline_s == pytest.approx(3.0)
    floor = Watched(HangLimits(multiple=6.0, min_s=5.0))
    floor.train([0.5] * 50)
    assert floor.deadline.deadline_s == 5.0
    slow = Watched(HangLimits(multiple=6.0, max_s=100.0))
    slow.train([40.0] * 5)
    assert slow.deadline.deadline_s == 100.0


def test_steps_between_two_looks_are_averaged() -> None:
    watched = Watched(HangLimits(min_s=0.0))
    for step in range(0, 500, 50):
        watched.look([row(0, step)], LOOK_S)
    assert watched.deadline.median_step_s == pytest.approx(LOOK_S / 50)


def test_only_recent_steps_count_and_memory_is_bounded() -> None:
    watched = Watched()
    watched.train([20.0] * 20)
    watched.train([1.0] * 40, first=20)
    assert watched.deadline.median_step_s == pytest.approx(1.0)
    assert len(watched.deadline._steps_s) == LIMITS.window


def test_saving_is_excused_but_not_for_ever() -> None:
    watched = Watched()
    watched.train([1.0] * 10)
    saving = [row(0, 10, Phase.SAVING), row(1, 10, Phase.VOTE)]
    assert watched.look(saving, LIMITS.saving_s) == []
    alarms = watched.look(saving, 20)
    assert len(alarms) == 1


def test_a_save_does_not_lengthen_the_median() -> None:
    watched = Watched()
    watched.train([1.0] * 10)
    watched.look([row(0, 10, Phase.SAVING)], 40)
    watched.look([row(0, 11)], 1)
    assert max(watched.deadline._steps_s) <= 1.0 + LOOK_S


def test_a_stopped_rank_gets_no_credit_for_a_save() -> None:
    watched = Watched()
    watched.train([1.0] * 10)
    rows = [row(0, 10, Phase.SAVING), row(1, 10, state="T")]
    alarms = watched.look(rows, 10)
    assert len(alarms) == 1
    assert alarms[0].waited_s < 7.0


def test_what_the_observer_slept_through_is_no_evidence() -> None:
    watched = Watched()
    watched.train([1.0] * 10)
    watched.now_s += 3600.0
    assert watched.look([row(0, 10)], 2.0) == []
    assert len(watched.look([row(0, 10)], 20.0)) == 1


def test_ranks_that_are_done_are_left_alone() -> None:
    watched = Watched()
    watched.train([1.0] * 10)
    assert watched.look([row(0, 10, Phase.DONE), row(1, 10, Phase.DONE)], 500) == []


def test_nobody_to_look_at_is_no_hang() -> None:
    watched = Watched()
    watched.train([1.0] * 10)
    assert watched.look([], 500) == []


# --- blame ---


def shuffled(rows: list[RankProgress]) -> list[list[RankProgress]]:
    return [list(order) for order in itertools.permutations(rows)]


def blamed(rows: list[RankProgress]) -> int | None:
    """The verdict, which must not depend on the order of the rows."""
    verdicts = {blame(order) for order in shuffled(rows)}
    assert len(verdicts) == 1, verdicts
    return verdicts.pop()[0]


def test_a_stopped_process_is_blamed_before_a_slower_one() -> None:
    rows = [row(0, 7, Phase.BACKWARD), row(1, 7, Phase.FORWARD), row(2, 7, Phase.VOTE, state="T")]
    assert blamed(rows) == 2
    assert "stopped (state T)" in blame(rows)[1]


def test_a_gone_process_is_blamed() -> None:
    assert blamed([row(0, 7), row(1, 7, state="Z"), row(2, 6)]) == 1


def test_the_lowest_step_then_the_lowest_phase_is_blamed() -> None:
    assert blamed([row(0, 7), row(1, 6, Phase.OPTIMIZER), row(2, 7)]) == 1
    rows = [row(0, 7, Phase.BACKWARD), row(1, 7, Phase.DATA), row(2, 7, Phase.BACKWARD)]
    assert blamed(rows) == 1
    assert "step 7 in DATA" in blame(rows)[1]


def test_among_equals_the_one_outside_the_collective_is_blamed() -> None:
    rows = [
        RankProgress(0, 7, Phase.BACKWARD, 9.0, "S", waits=True),
        RankProgress(1, 7, Phase.BACKWARD, 8.0, "S", waits=False),
        RankProgress(2, 7, Phase.BACKWARD, 9.5, "S", waits=True),
    ]
    assert blamed(rows) == 1


def test_among_equals_the_longest_silent_is_blamed() -> None:
    assert blamed([row(0, 7, age_s=9.0), row(1, 7, age_s=9.9), row(2, 7, age_s=9.02)]) == 1


def test_facts_that_single_nobody_out_blame_nobody() -> None:
    rows = [row(0, 7, age_s=9.00), row(1, 7, age_s=9.01), row(2, 7, age_s=9.02)]
    assert blamed(rows) is None
    assert blame([])[0] is None


@given(
    st.lists(
        st.builds(
            RankProgress,
            rank=st.integers(0, 7),
            step=st.integers(0, 3),
            phase=st.sampled_from(list(Phase)),
            age_s=st.sampled_from([0.0, 1.0, 2.0]),
            state=st.sampled_from("RSDTZ?"),
            waits=st.sampled_from([None, True, False]),
        ),
        unique_by=lambda row: row.rank,
        max_size=4,
    )
)
def test_blame_names_an_observed_rank_and_says_why(rows: list[RankProgress]) -> None:
    rank = blamed(rows)
    assert rank is None or rank in {row.rank for row in rows}
    stopped = [row.rank for row in rows if row.state == "T"]
    assert not stopped or rank in stopped


# --- collectives ---


def at(rank: int, age_s: float = 5.0, **called: tuple[int, int]) -> RankProgress:
    """A rank in the middle of a step; called: (called, completed) by group."""
    marks = tuple(CollectiveMark(g, *counts, "all_gather") for g, counts in called.items())
    return RankProgress(rank, 9, Phase.FORWARD, age_s, "S", True, marks)


def test_the_chain_of_waiting_ends_at_the_rank_that_waits_for_nobody() -> None:
    # 3 is stuck in its own code; 2 waits for it in their pair; 0 and 1 wait for 2 and 3.
    rows = [
        at(0, tp0=(8, 8), dp0=(5, 4), dp1=(0, 0)),
        at(1, tp0=(8, 8), dp1=(5, 4)),
        at(2, 9.0, tp1=(8, 7), dp0=(4, 4)),
        at(3, tp1=(7, 7), dp1=(4, 4)),
    ]
    rank, why = blame(rows)
    assert rank == 3
    assert "has not called all_gather" in why


def test_a_collective_that_has_ended_elsewhere_holds_nobody() -> None:
    # The recorder of rank 2 has not heard of the end of what all have called before.
    rows = [at(r, world=(3, 3), dp=(2, 1)) for r in (0, 1, 3)]
    for late in (at(2, world=(3, 2), dp=(1, 1)), at(2, world=(3, 3), dp=(1, 0))):
        rank, why = blame([*rows, late])
        assert rank == 2, why
        assert "has not called all_gather 2 of group dp" in why


def test_ranks_that_have_all_called_are_told_apart_by_other_signs() -> None:
    rank, why = blame([at(r, 5.0 + r, world=(5, 4)) for r in range(3)])
    assert rank == 2
    assert "fell silent" in why


def test_marks_that_some_ranks_lack_prove_nothing() -> None:
    rows = [at(0, world=(5, 4)), at(1, world=(4, 4)), at(2)]
    _, why = blame(rows)
    assert "has not called" not in why


# --- stacks ---

WAITING = """Thread 0x00007f01 (most recent call first):
  File "/lib/python3.11/threading.py", line 327 in wait
  File "/site/x/worker.py", line 10 in pump

Current thread 0x00007f02 (most recent call first):
  File "/site/torch/distributed/distributed_c10d.py", line 2806 in all_reduce
  File "/site/torch/distributed/c10d_logger.py", line 83 in wrapper
  File "/site/x/step.py", line 44 in vote
"""


def test_stacks_tell_waiting_from_working() -> None:
    assert is_waiting_stack(WAITING) is True
    assert is_waiting_stack(WAITING.replace("torch/distributed", "torch/optim")) is False
    assert is_waiting_stack("process 7, state T\nit did not dump its own stacks") is None
    assert is_waiting_stack("") is None


def test_computing_through_sharded_modules_is_not_waiting() -> None:
    for path in ("tensor/_dispatch.py", "fsdp/_fully_shard/_fsdp_state.py"):
        stack = WAITING.replace("distributed_c10d.py", path).replace("c10d_logger.py", "x.py")
        assert is_waiting_stack(stack) is False
