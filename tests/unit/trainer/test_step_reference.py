"""Our step against a plain loop over transformers' model, and ranks against each other."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from midwatch.logbook.wire import Mesh
from midwatch.trainer.config import TrainConfig
from midwatch.trainer.export import hf_config, to_hf
from midwatch.trainer.schedule import lr_at
from midwatch.trainer.step import Ballot, StepOutcome
from torch import Tensor

from tests.support.ranks import run_ranks
from tests.support.training import batches_at, full_tensors, make_step, run_steps, small_config

REFERENCE = {
    "precision": "fp32",
    "optimizer": {"lr": 3e-3, "weight_decay": 0.1, "grad_clip": 0.5},
    "schedule": {"warmup_steps": 3},
    "micro_batch_size": 4,
}
STEPS = 8


def _plain_losses(config: TrainConfig, weights: dict[str, Tensor]) -> list[float]:
    """Train transformers' model with torch's own AdamW and clipping, on whole batches."""
    from transformers import OPTConfig, OPTForCausalLM

    model = OPTForCausalLM(OPTConfig(**hf_config(config.model, torch.float32)))
    theirs = {k: v for n, t in weights.items() for k, v in to_hf(n, t, config.model).items()}
    missing = model.load_state_dict(theirs, strict=False).missing_keys
    assert missing == ["lm_head.weight"]
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), weight_decay=0.1)
    losses = []
    for step in range(1, STEPS + 1):
        batch = torch.cat(batches_at(step, 0, config, Mesh(1, 1)))
        logits = model(batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, config.optimizer, config.schedule)
        optimizer.step()
        losses.append(loss.item())
    return losses


def _train_both(rank: int) -> tuple[list[float], list[float]]:
    config = small_config(**REFERENCE)
    train_step = make_step(config, Mesh(1, 1))
    weights = full_tensors(train_step.state_dict()["model"])
    ours = [o.loss for o in run_steps(train_step, rank, range(1, STEPS + 1))]
    return ours, _plain_losses(config, weights)


def test_training_follows_a_plain_loop_over_transformers() -> None:
    ((ours, plain),) = run_ranks(_train_both, 1)
    assert ours == pytest.approx(plain, rel=2e-5)
    assert ours[-1] < 0.96 * ours[0]


def _shards_held_alike(rank: int) -> dict[str, bytes]:
    train_step = make_step(small_config(), Mesh(1, 2))
    run_steps(train_step, rank, range(1, 11))
    state = train_step.state_dict()
    alike = ("norm.weight", "norm.bias", "positions.weight", "out.bias", "down.bias")
    return {
        f"{part}/{name}": tensor.to_local().numpy().tobytes()
        for part in ("model", "exp_avg", "exp_avg_sq")
        for name, tensor in state[part].items()
        if name.endswith(alike)
    }


def test_weights_that_tp_ranks_hold_alike_stay_equal_bit_for_bit() -> None:
    first, second = run_ranks(_shards_held_alike, 2)
    assert len(first) > 20
    assert first == second


def _time_one(rank: int) -> tuple[StepOutcome, float]:
    train_step = make_step(small_config(), Mesh(2, 2))
    batches = batches_at(1, rank, train_step.config, train_step.mesh)
    begun_s = time.perf_counter()
    outcome = train_step.run(1, batches, Ballot())
    return outcome, time.perf_counter() - begun_s


def test_the_parts_of_a_step_do_not_overlap() -> None:
    for outcome, step_s in run_ranks(_time_one, 4):
        parts_s = [outcome.forward_s, outcome.backward_s, outcome.comm_s, outcome.optimizer_s]
        assert all(part_s > 0.0 for part_s in parts_s)
        assert sum(parts_s) <= step_s


def _local_losses(rank: int) -> list[dict[str, Any]]:
    train_step = make_step(small_config(precision="fp32"), Mesh(2, 2))
    outcomes = run_steps(train_step, rank, range(1, 3))
    return [
        {"loss": o.loss, "local": o.local_loss, "norm": o.grad_norm, "part": o.local_grad_norm}
        for o in outcomes
    ]


def test_local_values_make_up_the_global_ones() -> None:
    by_rank = run_ranks(_local_losses, 4)
    for step in range(2):
        rows = [ranks[step] for ranks in by_rank]
        # Ranks 0 and 1 are one tp group and share their sequences; so do 2 and 3.
        assert rows[0]["local"] == rows[1]["local"] != rows[2]["local"] == rows[3]["local"]
        mean = (rows[0]["local"] + rows[2]["local"]) / 2
        assert rows[0]["loss"] == pytest.approx(mean, rel=1e-6)
        # What tp ranks hold alike is in both their parts, so the parts sum to a little more.
        whole = sum(row["part"] ** 2 for row in rows) ** 0.5
        assert rows[0]["norm"] <= whole < 1.5 * rows[0]["norm"]
