"""A run saved on one mesh goes on on any other as if it had never moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from midwatch.checkpoints.dcp import load_first
from midwatch.checkpoints.source import in_run_folder
from midwatch.logbook.wire import Hyper, LrChange, Mesh, Resumed, StepSample
from midwatch.tests.support.crew import Crew, Nursery, starts_for
from midwatch.tests.support.ranks import run_ranks
from midwatch.tests.support.training import full_tensors, make_step
from midwatch.trainer.config import TrainConfig

ORIGIN = Mesh(2, 2)
TARGETS = [Mesh(1, 2), Mesh(4, 1), Mesh(1, 4), Mesh(2, 1), Mesh(1, 1)]
SAVED_STEP, LAST_STEP = 4, 11
HYPER = Hyper(
    lr_changes=(LrChange(3, 0.5, "before"), LrChange(8, 0.8, "after")),
    grad_clip=0.7,
    skipped=((2, 3), (6, 8)),
)
# Another mesh adds the same numbers in another order. fp32 keeps that to its last digits; in fp16
# the activations of every layer round differently, to ten bits of fraction.
TOLERANCE = {"fp32": 2e-5, "fp16": 4e-3}


def section(trainer: dict[str, Any], precision: str) -> dict[str, Any]:
    """A model that every mesh can split; its loss scale grows at step 4 and again at step 10."""
    return {
        **trainer,
        "precision": precision,
        "model": {"vocab": 512, "heads": 4},
        "micro_batch_size": 2,
        "global_batch_size": 16,
        "loss_scaler": {"init": 4.0, "window": 3},
    }


def attempt(nursery: Nursery, run_dir: Path, config: dict[str, Any], **start: Any) -> Crew:
    mesh = start.pop("mesh", ORIGIN)
    crew = Crew(nursery, starts_for(run_dir, config, mesh, hyper=HYPER, **start))
    crew.watch()
    assert crew.failures() == []
    assert crew.exit_codes() == [0] * len(crew.workers)
    return crew


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def origin(
    request: pytest.FixtureRequest,
    nursery: Nursery,
    trainer: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Any], Path, tuple[str, ...], list[StepSample]]:
    """(trainer section, run folder, its checkpoint, what the undisturbed run reported)."""
    config = section(trainer, request.param)
    folder = tmp_path_factory.mktemp(f"origin-{request.param}")
    whole = attempt(nursery, folder / "whole", config, until_step=LAST_STEP)
    first = attempt(nursery, folder / "parts", config, until_step=SAVED_STEP)
    return config, folder / "parts", tuple(first.committed()), whole.steps()


@pytest.mark.parametrize("mesh", TARGETS, ids=str)
def test_training_goes_on_on_another_mesh(origin: Any, nursery: Nursery, mesh: Mesh) -> None:
    config, run_dir, checkpoints, whole = origin
    number = 2 + TARGETS.index(mesh)
    crew = attempt(
        nursery,
        run_dir,
        config,
        mesh=mesh,
        attempt=number,
        until_step=LAST_STEP,
        checkpoints=checkpoints,
    )
    undisturbed, resumed = whole[SAVED_STEP:], crew.steps()
    exact = [
        [(s.step, s.data_step, s.lr, s.loss_scale, s.skipped, s.tokens) for s in samples]
        for samples in (undisturbed, resumed)
    ]
    assert exact[0] == exact[1]
    if config["precision"] == "fp16":
        scales = [s.loss_scale for s in resumed]
        assert scales[-3:] == [8.0, 16.0, 16.0], "clean steps before the save must count"
    tolerance = TOLERANCE[config["precision"]]
    assert crew.losses() == pytest.approx([s.loss for s in undisturbed], rel=tolerance)
    norms = [s.grad_norm for s in undisturbed]
    assert [s.grad_norm for s in resumed] == pytest.approx(norms, rel=20 * tolerance)
    said: list[Resumed] = crew.said(Resumed, rank=0)
    assert said[0].tier == "disk"
    assert said[0].differs == (f"mesh: saved 2 x 2, now {mesh.dp_shard} x {mesh.tp}",)


def _whole_state(
    rank: int, run_dir: str, checkpoint: str, config: dict[str, Any], mesh: Mesh
) -> tuple[dict[str, bytes], Any, float | None]:
    """Return every tensor of the loaded state as bytes, its plain values, and the loss scale."""
    train_step = make_step(TrainConfig.model_validate(config), mesh)
    state = train_step.state_dict()
    load_first(in_run_folder(run_dir, [checkpoint]), state, rank=rank)
    train_step.load_state_dict(state)
    found: dict[str, bytes] = {}
    live = train_step.state_dict()
    for part in ("model", "exp_avg", "exp_avg_sq"):
        for name, tensor in full_tensors(live[part]).items():
            found[f"{part}.{name}"] = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    return found, live["scalars"], train_step.loss_scale


def test_every_mesh_holds_the_same_state_bit_for_bit(origin: Any) -> None:
    config, run_dir, (checkpoint,), _ = origin
    held = [
        run_ranks(_whole_state, mesh.world_size, str(run_dir), checkpoint, config, mesh)[0]
        for mesh in (ORIGIN, *TARGETS)
    ]
    tensors, values, scale = held[0]
    assert tensors["exp_avg_sq.embed.weight"].strip(b"\0"), "moments of trained weights"
    assert values["updates"] == SAVED_STEP
    assert scale == (8.0 if config["precision"] == "fp16" else None)
    assert all(other == held[0] for other in held)
