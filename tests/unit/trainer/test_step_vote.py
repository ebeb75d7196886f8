"""A non-finite gradient on one rank makes every rank skip; commands wait for the last rank."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from midwatch.logbook.wire import Mesh, Phase
from midwatch.trainer.step import Ballot, TrainStep
from torch import Tensor, nn

from tests.support.ranks import run_ranks
from tests.support.training import CPU, batches_at, make_step, run_steps, small_config

POISONED_RANK = 2


def _poison_next_gradient(train_step: TrainStep) -> None:
    """Let the gradient of the first block's output be infinite, once, on this rank alone."""

    def poison(module: nn.Module, inputs: Any, output: Tensor) -> None:
        output.register_hook(lambda grad: torch.full_like(grad, math.inf))
        handle.remove()

    handle = train_step.model.blocks[0].register_forward_hook(poison)


def _state_bytes(train_step: TrainStep) -> list[bytes]:
    state = train_step.state_dict()
    return [
        tensor.to_local().numpy().tobytes()
        for part in ("model", "exp_avg", "exp_avg_sq")
        for tensor in state[part].values()
    ]


def _train_through_poison(rank: int, precision: str) -> dict[str, Any]:
    train_step = make_step(small_config(precision=precision), Mesh(2, 2))
    before_outcomes = run_steps(train_step, rank, range(1, 4))
    before = _state_bytes(train_step)
    updates = train_step.optimizer.updates
    if rank == POISONED_RANK:
        _poison_next_gradient(train_step)
    (poisoned,) = run_steps(train_step, rank, range(4, 5))
    unchanged = _state_bytes(train_step) == before
    updates_after = train_step.optimizer.updates
    after_outcomes = run_steps(train_step, rank, range(5, 7))
    return {
        "clean": not any(o.found_inf for o in before_outcomes + after_outcomes),
        "poisoned": poisoned,
        "unchanged": unchanged,
        "updates": (updates, updates_after, train_step.optimizer.updates),
        "moved": _state_bytes(train_step) != before,
        "scales": [o.loss_scale for o in [*before_outcomes, poisoned, *after_outcomes]],
    }


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_one_poisoned_rank_makes_all_skip_bit_for_bit(precision: str) -> None:
    results = run_ranks(_train_through_poison, 4, precision)
    for result in results:
        assert result["clean"]
        assert result["poisoned"].found_inf
        assert result["poisoned"].skipped
        assert not math.isfinite(result["poisoned"].grad_norm)
        assert math.isfinite(result["poisoned"].loss)
        assert result["unchanged"]
        assert result["updates"] == (3, 3, 5)
        assert result["moved"]
        if precision == "fp16":
            high = result["scales"][0]
            assert result["scales"] == [high] * 4 + [high / 2] * 2
        else:
            assert result["scales"] == [None] * 6
    assert results[POISONED_RANK]["poisoned"].local_found_inf


def _vote(rank: int) -> list[int]:
    train_step = make_step(small_config(), Mesh(2, 2))
    config, mesh = train_step.config, train_step.mesh
    heard = [7 if rank != 1 else 3, 7]
    return [
        train_step.run(step, batches_at(step, rank, config, mesh), Ballot(seq)).agreed_command_seq
        for step, seq in enumerate(heard, start=1)
    ]


def test_a_command_is_agreed_when_the_last_rank_has_heard_of_it() -> None:
    assert run_ranks(_vote, 4) == [[3, 7]] * 4


def _record_phases(rank: int) -> list[Phase]:
    from midwatch.logbook.wire import Hyper

    phases: list[Phase] = []
    config, mesh = small_config(global_batch_size=4), Mesh(1, 1)
    train_step = TrainStep(config, mesh, Hyper(), CPU, phases.append)
    run_steps(train_step, rank, range(1, 2))
    return phases


def test_progress_is_noted_at_every_boundary() -> None:
    twice = [Phase.FORWARD, Phase.BACKWARD] * 2
    assert run_ranks(_record_phases, 1) == [[*twice, Phase.VOTE, Phase.OPTIMIZER]]
