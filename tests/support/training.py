"""Small trainings for tests: configs, batches, and what a run of them leaves behind."""

from __future__ import annotations

from typing import Any

import torch
from midwatch.logbook.wire import Hyper, Mesh
from midwatch.trainer.config import TrainConfig
from midwatch.trainer.mesh import coordinates
from midwatch.trainer.step import Ballot, StepOutcome, TrainStep
from torch import Tensor
from torch.distributed.tensor import DTensor

CPU = torch.device("cpu")


def small_config(**overrides: Any) -> TrainConfig:
    """Return a model that four ranks can split either way, trained for seconds."""
    section: dict[str, Any] = {
        "preset": "nano",
        "model": {"heads": 4, "vocab": 200},
        "micro_batch_size": 2,
        "global_batch_size": 8,
        "steps": 100,
        "optimizer": {"lr": 1e-3},
        "schedule": {"warmup_steps": 2},
    }
    model = section["model"] | overrides.pop("model", {})
    return TrainConfig.model_validate(section | overrides | {"model": model})


def batches_at(step: int, rank: int, config: TrainConfig, mesh: Mesh) -> list[Tensor]:
    """Return this rank's microbatches: the same sequences in all, however the mesh deals them."""
    generator = torch.Generator().manual_seed(step)
    shape = (config.sequences_per_step(mesh), config.seq_len + 1)
    # Tokens that follow a pattern, so that there is something to learn.
    first = torch.randint(0, config.model.vocab, (shape[0], 1), generator=generator)
    sequences = (first + torch.arange(shape[1]) * 3) % config.model.vocab
    dp_index, _ = coordinates(mesh, rank)
    mine = sequences.chunk(mesh.dp_shard)[dp_index]
    return list(mine.split(config.micro_batch_size))


def make_step(config: TrainConfig, mesh: Mesh, hyper: Hyper | None = None) -> TrainStep:
    """Return a training step on the CPU of this rank."""
    return TrainStep(config, mesh, hyper or Hyper(), CPU)


def run_steps(
    train_step: TrainStep, rank: int, steps: range, command_seq: int = 0
) -> list[StepOutcome]:
    """Run the steps on their batches and return what each gave."""
    config, mesh = train_step.config, train_step.mesh
    return [
        train_step.run(step, batches_at(step, rank, config, mesh), Ballot(command_seq))
        for step in steps
    ]


def full_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gather whole copies of sharded tensors; every rank must call it."""
    return {
        name: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone()
        for name, t in tensors.items()
    }
