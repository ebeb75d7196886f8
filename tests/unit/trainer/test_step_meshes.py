"""The same training on every mesh: equal weights at the start, equal losses up to rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from midwatch.logbook.errors import ConfigError
from midwatch.logbook.wire import Mesh
from midwatch.trainer.config import check_mesh

from tests.support.ranks import run_ranks
from tests.support.training import full_tensors, make_step, run_steps, small_config

MESHES = [Mesh(2, 2), Mesh(4, 1), Mesh(1, 4), Mesh(3, 1)]


def _train(rank: int, mesh: Mesh, overrides: dict[str, Any], steps: int) -> dict[str, Any]:
    train_step = make_step(small_config(**overrides), mesh)
    weights = full_tensors(train_step.state_dict()["model"])
    outcomes = run_steps(train_step, rank, range(1, steps + 1))
    result: dict[str, Any] = {"outcomes": outcomes}
    if rank == 0:
        # Bytes, because a tensor would travel through shared memory of a process about to end.
        result["weights"] = {name: t.numpy().tobytes() for name, t in weights.items()}
    return result


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    (result,) = run_ranks(_train, 1, Mesh(1, 1), {"precision": "fp32", "global_batch_size": 24}, 4)
    return dict(result)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_weights_start_alike_and_losses_agree(mesh: Mesh, alone: dict[str, Any]) -> None:
    overrides = {"precision": "fp32", "global_batch_size": 24}
    results = run_ranks(_train, mesh.world_size, mesh, overrides, 4)
    assert results[0]["weights"] == alone["weights"]
    for here, there in zip(results[0]["outcomes"], alone["outcomes"], strict=True):
        assert here.loss == pytest.approx(there.loss, rel=1e-5)
        assert here.grad_norm == pytest.approx(there.grad_norm, rel=1e-4)
        assert here.activation_norm == pytest.approx(there.activation_norm, rel=1e-5)
        assert here.tokens == there.tokens
    for other in results[1:]:
        shared = ("loss", "grad_norm", "activation_norm", "found_inf", "lr", "tokens")
        for name in shared:
            theirs = [getattr(o, name) for o in other["outcomes"]]
            assert theirs == [getattr(o, name) for o in results[0]["outcomes"]]


def test_ranks_that_hold_nothing_of_a_weight_train_along() -> None:
    # Eight rows over five ranks: two each on four of them, and none on the last.
    narrow = {
        "precision": "fp32",
        "model": {"width": 8, "heads": 1},
        "micro_batch_size": 1,
        "global_batch_size": 5,
    }
    (alone,) = run_ranks(_train, 1, Mesh(1, 1), narrow, 3)
    results = run_ranks(_train, 5, Mesh(5, 1), narrow, 3)
    assert results[0]["weights"] == alone["weights"]
    for here, there in zip(results[4]["outcomes"], alone["outcomes"], strict=True):
        assert here.loss == pytest.approx(there.loss, rel=1e-5)
        assert here.grad_norm == pytest.approx(there.grad_norm, rel=1e-4)


@pytest.mark.parametrize(
    "quirk",
    [
        {"model": {"pre_norm": False, "embed_width": 16}},
        {"activation_checkpointing": True, "blocks_per_unit": 1, "reshard_after_forward": True},
    ],
    ids=["post-norm", "recompute"],
)
def test_variants_agree_across_meshes_in_fp16(quirk: dict[str, Any]) -> None:
    (alone,) = run_ranks(_train, 1, Mesh(1, 1), quirk, 3)
    split = run_ranks(_train, 4, Mesh(2, 2), quirk, 3)[0]
    for here, there in zip(split["outcomes"], alone["outcomes"], strict=True):
        assert here.loss == pytest.approx(there.loss, rel=2e-3)


def _recompute_both_ways(rank: int) -> tuple[list[float], list[float]]:
    def norms(overrides: dict[str, Any]) -> list[float]:
        train_step = make_step(small_config(**overrides), Mesh(1, 1))
        return [o.grad_norm for o in run_steps(train_step, rank, range(1, 4))]

    dropout = {"model": {"dropout": 0.1}}
    return norms(dropout), norms(dropout | {"activation_checkpointing": True})


def test_recomputation_changes_nothing_even_with_dropout() -> None:
    ((kept, recomputed),) = run_ranks(_recompute_both_ways, 1)
    assert kept == recomputed


def test_weight_statistics_follow_the_paper(alone: dict[str, Any]) -> None:
    def std(name: str) -> float:
        values = torch.frombuffer(bytearray(alone["weights"][name]), dtype=torch.float32)
        return float(values.std())

    config = small_config().model
    assert std("embed.weight") == pytest.approx(0.006, rel=0.05)
    assert std("blocks.0.attention.qkv.weight") == pytest.approx(0.006, rel=0.05)
    scaled = 0.006 / (2 * config.layers) ** 0.5
    assert std("blocks.1.ffn.down.weight") == pytest.approx(scaled, rel=0.05)
    assert std("blocks.0.attention.out.weight") == pytest.approx(scaled, rel=0.07)
    assert alone["weights"]["blocks.0.ffn.up.weight"] != alone["weights"]["blocks.1.ffn.up.weight"]


@pytest.mark.parametrize(
    ("mesh", "world_size", "overrides", "reason"),
    [
        (Mesh(1, 3), 3, {}, "heads 4"),
        (Mesh(1, 8), 8, {}, "heads 4"),
        (Mesh(1, 4), 4, {"model": {"ffn_width": 66}}, "ffn_width 66"),
        (Mesh(2, 2), 8, {}, "8"),
        (Mesh(3, 1), 3, {}, "global_batch_size 8"),
        (Mesh(0, 1), 0, {}, "at least 1"),
    ],
)
def test_mesh_that_does_not_fit_is_refused(
    mesh: Mesh, world_size: int, overrides: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_mesh(small_config(**overrides), mesh, world_size)
    assert caught.value.code == "mesh-does-not-fit"
    assert reason in caught.value.message
    assert caught.value.remedy
