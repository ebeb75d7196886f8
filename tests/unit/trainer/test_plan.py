"""The plan's bytes are those that real ranks hold, and the 175B is laid out on its 992 ranks."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.distributed as dist
from midwatch.logbook.errors import ConfigError
from midwatch.logbook.wire import Mesh
from midwatch.trainer.config import ModelConfig, TrainConfig
from midwatch.trainer.flops import model_flops_per_token
from midwatch.trainer.model import OptModel
from midwatch.trainer.plan import Plan, main, plan
from midwatch.trainer.precision import Native
from torch import Tensor

from tests.support.ranks import run_ranks
from tests.support.training import make_step, run_steps, small_config


@pytest.fixture(scope="module")
def opt_175b() -> Plan:
    return plan(TrainConfig.model_validate({"preset": "175B"}), Mesh(124, 8))


def test_the_175b_is_laid_out_on_992_ranks(opt_175b: Plan) -> None:
    assert opt_175b.parameters == pytest.approx(175e9, rel=0.01)
    assert opt_175b.mesh.world_size == 992
    assert opt_175b.tokens_per_step == pytest.approx(2e6, rel=0.05)
    # 16 bytes a weight over 992 ranks for float32 weights, gradients and moments.
    sharded = opt_175b.master_bytes + opt_175b.optimizer_bytes + 4 * opt_175b.fullest_shard
    assert sharded == pytest.approx(16 * 174.6e9 / 992, rel=0.02)
    # Uneven: 12288 rows over 124 ranks are 100 on the fullest, 99.1 on average.
    assert opt_175b.fullest_shard > opt_175b.even_shard
    assert opt_175b.total_bytes < 80e9


def test_activations_follow_the_published_formula(opt_175b: Plan) -> None:
    # sbh (10 + 24/t) of arXiv 2205.05198 for GeLU; ReLU saves 8/t of it.
    sbh = 2048 * 8 * 12288
    published = 96 * sbh * (10 + 24 / 8)
    kept_for_gelu = 96 * sbh * 8 / 8
    loss = 2048 * 8 * 10 * 50272 / 8 + 4 * sbh
    assert opt_175b.activation_bytes == pytest.approx(published - kept_for_gelu + loss)
    assert opt_175b.recomputed_bytes < opt_175b.activation_bytes / 5


@pytest.mark.parametrize("recompute", [False, True])
def test_the_formula_counts_what_autograd_really_keeps(recompute: bool) -> None:
    section = {
        "preset": "tiny",
        "model": {"vocab": 512, "layers": 3},
        "activation_checkpointing": recompute,
    }
    config = TrainConfig.model_validate(section)
    made = plan(config, Mesh(1, 1))
    kept = _bytes_kept(config)
    # The loss's gradients (6 of the 10 bytes per logit) and, with recomputation, the block that is
    # computed again are not there yet when forward ends.
    tokens = config.seq_len * config.micro_batch_size
    later = 6 * tokens * 512
    if recompute:
        later += tokens * config.model.width * 24
    planned = made.recomputed_bytes if recompute else made.activation_bytes
    assert kept == pytest.approx(planned - later, rel=0.02)


def _bytes_kept(config: TrainConfig) -> int:
    """Return the bytes of distinct memory that one forward pass in fp16 saves for backward."""
    model = OptModel(config.model, Native(), config.activation_checkpointing).to(torch.float16)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights and tensor.is_floating_point():
            kept[place] = tensor
        return tensor

    tokens = torch.zeros(config.micro_batch_size, config.seq_len + 1, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(tokens[:, :-1], tokens[:, 1:])
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _held(rank: int, overrides: dict[str, Any], mesh: Mesh) -> dict[str, int]:
    train_step = make_step(small_config(**overrides), mesh)
    run_steps(train_step, rank, range(1, 2))
    state = train_step.state_dict()

    def size(*parts: str) -> int:
        return sum(t.to_local().nbytes for part in parts for t in state[part].values())

    return {"master": size("model"), "optimizer": size("exp_avg", "exp_avg_sq")}


@pytest.mark.parametrize("mesh", [Mesh(2, 2), Mesh(3, 1)], ids=str)
def test_planned_bytes_are_held_by_the_fullest_real_rank(mesh: Mesh) -> None:
    overrides = {"global_batch_size": 24}
    made = plan(small_config(**overrides), mesh)
    held = run_ranks(_held, mesh.world_size, overrides, mesh)
    assert max(h["master"] for h in held) == made.master_bytes
    assert max(h["optimizer"] for h in held) == made.optimizer_bytes


def test_a_mesh_that_does_not_fit_is_refused_before_anything_is_laid_out() -> None:
    with pytest.raises(ConfigError) as caught:
        plan(TrainConfig.model_validate({"preset": "175B"}), Mesh(124, 7))
    assert caught.value.code == "mesh-does-not-fit"
    assert not dist.is_initialized()


def test_the_command_prints_a_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--preset", "tiny", "--dp-shard", "2", "--tp", "2"]) == 0
    table = capsys.readouterr().out
    for word in ("parameters", "gradients", "optimizer", "activations", "4 ranks"):
        assert word in table
    assert main(["--preset", "tiny", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == 1_072_128
    assert main(["--preset", "huge"]) == 2
    assert "175B" in capsys.readouterr().err
    assert main(["--preset", "tiny", "--tp", "3"]) == 2
    assert "mesh-does-not-fit" in capsys.readouterr().err


def test_flops_are_six_per_weight_and_token_and_attention_on_top() -> None:
    model = TrainConfig.model_validate({"preset": "175B"}).model
    flops = model_flops_per_token(model, 2048)
    assert flops == pytest.approx(6 * 174.6e9 + 12 * 96 * 12288 * 2048, rel=0.01)
    small = ModelConfig(layers=1, width=8, heads=1, vocab=8)
    assert model_flops_per_token(small, 4) == 6 * (12 * 64 + 64) + 12 * 8 * 4
