"""Every rank draws the same conclusions from the same votes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from midwatch.trainer.outcome import Agreement, Vote, conclude

SOUND = Vote(
    loss_sum=8.0,
    activation_norm_sum=4.0,
    split_squares=3.0,
    alike_squares=6.0,
    command_seq=5,
    memory_level=1,
)


def _conclude(votes: list[Vote], rank: int = 0, tp: int = 2) -> Agreement:
    return conclude(votes, rank, tp=tp, rank_tokens=4, unscale=0.5)


def test_columns_that_tp_ranks_share_count_once() -> None:
    agreed = _conclude([SOUND] * 4)
    # Two groups of two: loss 16 over 8 tokens; squares 4 x 3 split and 2 x 6 alike.
    assert agreed.loss == 2.0
    assert agreed.activation_norm == 1.0
    assert agreed.grad_norm == pytest.approx(0.5 * math.sqrt(24.0))
    assert agreed.local_loss == 2.0
    assert agreed.local_grad_norm == 0.5 * 3.0
    assert not agreed.found_inf


def test_the_slowest_rank_decides_the_command() -> None:
    votes = [SOUND._replace(command_seq=seq) for seq in (9, 7, 8, 9)]
    assert _conclude(votes).command_seq == 7


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("column", ["loss_sum", "activation_norm_sum", "split_squares"])
def test_one_unsound_value_anywhere_is_found(column: str, bad: float) -> None:
    votes = [SOUND, SOUND, SOUND, SOUND._replace(**{column: bad})]
    by_rank = [_conclude(votes, rank) for rank in range(4)]
    assert all(agreed.found_inf for agreed in by_rank)
    assert [agreed.local_found_inf for agreed in by_rank] == [False, False, False, True]


numbers = st.floats(allow_nan=True, allow_infinity=True, min_value=None).map(abs)
votes = st.builds(Vote, numbers, numbers, numbers, numbers, st.integers(0, 1000), st.integers(0, 2))


@given(st.lists(votes, min_size=4, max_size=4))
def test_ranks_agree_whatever_they_hear(heard: list[Vote]) -> None:
    def shared(rank: int) -> str:
        agreed = _conclude(heard, rank)
        mine = {"local_loss": 0.0, "local_grad_norm": 0.0, "local_found_inf": False}
        return repr(replace(agreed, **mine))

    assert len({shared(rank) for rank in range(4)}) == 1
