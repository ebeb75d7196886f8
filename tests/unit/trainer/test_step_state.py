"""State saved on one mesh is loaded on any other, and training goes on from there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch.distributed.checkpoint as dcp
from midwatch.logbook.wire import Hyper, LrChange, Mesh
from midwatch.trainer.step import TrainStep

from tests.support.ranks import run_ranks
from tests.support.training import full_tensors, make_step, run_steps, small_config

PARTS = ("model", "exp_avg", "exp_avg_sq")
SAVED_STEPS = 3


def _full_state(train_step: TrainStep) -> dict[str, dict[str, bytes]]:
    state = train_step.state_dict()
    return {
        part: {n: t.numpy().tobytes() for n, t in full_tensors(state[part]).items()}
        for part in PARTS
    }


def _train_and_save(rank: int, folder: str) -> dict[str, Any]:
    train_step = make_step(small_config(), Mesh(2, 2))
    run_steps(train_step, rank, range(1, SAVED_STEPS + 1))
    state = train_step.state_dict()
    dcp.save({part: state[part] for part in PARTS}, checkpoint_id=folder)
    saved = _full_state(train_step)
    scalars = json.dumps(state["scalars"])
    later = run_steps(train_step, rank, range(SAVED_STEPS + 1, SAVED_STEPS + 4))
    return {"state": saved if rank == 0 else {}, "scalars": scalars, "later": later}


def _load_and_train(rank: int, folder: str, mesh: Mesh, scalars: str) -> dict[str, Any]:
    # Another seed, so that nothing can be right by having been initialised so.
    train_step = make_step(small_config(seed=5), mesh)
    state = train_step.state_dict()
    dcp.load({part: state[part] for part in PARTS}, checkpoint_id=folder)
    state["scalars"] = json.loads(scalars)
    train_step.load_state_dict(state)
    loaded = _full_state(train_step)
    updates = train_step.optimizer.updates
    later = run_steps(train_step, rank, range(SAVED_STEPS + 1, SAVED_STEPS + 4))
    return {"state": loaded if rank == 0 else {}, "updates": updates, "later": later}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("state")
    return str(folder), run_ranks(_train_and_save, 4, str(folder))[0]


@pytest.mark.parametrize(
    "mesh", [Mesh(2, 2), Mesh(1, 2), Mesh(4, 1), Mesh(1, 4), Mesh(1, 1)], ids=str
)
def test_any_mesh_loads_the_state_bit_for_bit(
    mesh: Mesh, saved: tuple[str, dict[str, Any]]
) -> None:
    folder, before = saved
    after = run_ranks(_load_and_train, mesh.world_size, folder, mesh, before["scalars"])[0]
    assert after["state"] == before["state"]
    assert after["updates"] == SAVED_STEPS
    here = [o.loss for o in after["later"]]
    there = [o.loss for o in before["later"]]
    if mesh == Mesh(2, 2):
        assert here == there
    else:
        assert here == pytest.approx(there, rel=2e-3)


def _load_from_another_tree(rank: int) -> tuple[bool, list[float], list[float]]:
    mesh = Mesh(2, 1)
    trained = make_step(small_config(), mesh)
    run_steps(trained, rank, range(1, 4))
    fresh = make_step(small_config(seed=5), mesh)
    fresh.load_state_dict(trained.state_dict())
    is_same = _full_state(fresh) == _full_state(trained)
    first = [o.loss for o in run_steps(trained, rank, range(4, 6))]
    return is_same, first, [o.loss for o in run_steps(fresh, rank, range(4, 6))]


def test_a_tree_of_other_tensors_is_copied_and_shares_nothing() -> None:
    for is_same, first, second in run_ranks(_load_from_another_tree, 2):
        assert is_same
        assert first == second


def _scaler_after_load(rank: int) -> list[float | None]:
    trained = make_step(small_config(loss_scaler={"init": 32.0, "window": 2}), Mesh(1, 1))
    run_steps(trained, rank, range(1, 4))
    state = trained.state_dict()
    config = small_config(loss_scaler={"init": 4.0})
    kept = make_step(config, Mesh(1, 1))
    kept.load_state_dict(state)
    reset = make_step(config, Mesh(1, 1), Hyper(loss_scale=2.0))
    reset.load_state_dict(state)
    return [trained.loss_scale, kept.loss_scale, reset.loss_scale]


def test_the_scaler_is_restored_unless_a_reset_was_ordered() -> None:
    assert run_ranks(_scaler_after_load, 1) == [[64.0, 64.0, 2.0]]


def _hyper_in_force(rank: int) -> list[dict[str, float]]:
    train_step = make_step(small_config(), Mesh(1, 1))
    (first,) = run_steps(train_step, rank, range(1, 2))
    before = train_step.readback(2)
    train_step.set_hyper(Hyper(lr_changes=(LrChange(2, 0.5, "test"),), grad_clip=0.25))
    after = train_step.readback(2)
    (second,) = run_steps(train_step, rank, range(2, 3))
    return [{"first": first.lr, "second": second.lr}, before, after]


def test_changes_are_read_back_from_the_live_optimizer() -> None:
    ((rates, before, after),) = run_ranks(_hyper_in_force, 1)
    assert rates == {"first": 5e-4, "second": 5e-4}
    assert before["lr"] == 1e-3
    assert after["lr"] == 5e-4
    assert (before["grad_clip"], after["grad_clip"]) == (1.0, 0.25)
    assert after["loss_scale"] == 64.0
    assert (after["beta1"], after["beta2"], after["weight_decay"]) == (0.9, 0.95, 0.1)


def _clipped_update(rank: int, clip: float) -> float:
    overrides = {"optimizer": {"lr": 1e-3, "eps": 1.0, "weight_decay": 0.0, "grad_clip": clip}}
    train_step = make_step(small_config(precision="fp32", **overrides), Mesh(1, 1))
    before = full_tensors(train_step.state_dict()["model"])
    run_steps(train_step, rank, range(1, 2))
    after = full_tensors(train_step.state_dict()["model"])
    return float(sum((after[n] - before[n]).square().sum() for n in after)) ** 0.5


def test_clipping_scales_the_whole_update() -> None:
    # With eps far above the gradients an update is proportional to them.
    (free,) = run_ranks(_clipped_update, 1, 100.0)
    (clipped,) = run_ranks(_clipped_update, 1, 0.01)
    (more,) = run_ranks(_clipped_update, 1, 0.001)
    assert clipped < free / 10
    assert more == pytest.approx(clipped / 10, rel=1e-2)
