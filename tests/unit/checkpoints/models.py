"""A small real model on any mesh, with the state a trainer would save, and digests to compare."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import torch.distributed as dist
from midwatch.checkpoints.manifest import Fingerprint, SaveHeader, SaverConfig
from midwatch.logbook.wire import CheckpointTags, Hyper, Mesh
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

WIDTH = 24


class Block(nn.Module):
    """One MLP with a norm; an inner width of 22 and a width of 24 make some shards uneven."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, inner)
        self.down = nn.Linear(inner, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Model(nn.Module):
    def __init__(self, inner: int = 22) -> None:
        super().__init__()
        self.embed = nn.Embedding(37, WIDTH)
        self.blocks = nn.ModuleList(Block(inner) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return x


def sharded_state(mesh: Mesh, seed: int, inner: int = 22) -> dict[str, Any]:
    """Return a training state with values that depend on seed alone, sharded FSDP2 x TP."""
    torch.manual_seed(seed)
    model = Model(inner)
    device_mesh = init_device_mesh(
        "cpu", (mesh.dp_shard, mesh.tp), mesh_dim_names=("dp_shard", "tp")
    )
    for block in model.blocks:
        plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        if mesh.tp > 1:
            parallelize_module(block, device_mesh["tp"], plan)
        fully_shard(block, mesh=device_mesh["dp_shard"])
    fully_shard(model, mesh=device_mesh["dp_shard"])
    generator = torch.Generator().manual_seed(seed)
    optimizer: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        moments = {}
        for moment in ("exp_avg", "exp_avg_sq"):
            whole = torch.randn(parameter.shape, generator=generator)
            moments[moment] = _sharded_like(parameter, whole)
        optimizer[name] = {**moments, "step": torch.tensor(float(seed))}
    return {
        "model": {name: p.detach() for name, p in model.named_parameters()},
        "optimizer": optimizer,
        "half": torch.arange(10, dtype=torch.float16) + seed,
        "scaler": {"scale": 2.0**-5 * seed, "good_steps": seed, "skips": [seed, seed + 1]},
        "rng": generator.get_state(),
        "step": seed,
    }


def _sharded_like(like: DTensor, whole: torch.Tensor) -> torch.Tensor:
    from torch.distributed.tensor import distribute_tensor

    result = torch.zeros_like(like)
    # Row ranges of a strided shard are the model's business: take them from the same code path.
    sharded = distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
    result.to_local().copy_(sharded.to_local())
    return result


def wipe(state: Any) -> Any:
    """Overwrite everything in a state, so that a load has to bring it back."""
    if isinstance(state, dict):
        for key, value in state.items():
            state[key] = wipe(value)
        return state
    if isinstance(state, torch.Tensor):
        local = state.to_local() if isinstance(state, DTensor) else state
        local.zero_()
        return state
    return None


def digest(state: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return {key: digest of the whole value}; collective, equal on every rank and mesh."""
    found: dict[str, str] = {}
    for key, value in state.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            found |= digest(value, f"{name}.")
        elif isinstance(value, torch.Tensor):
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            content = (
                whole.contiguous().view(torch.uint8).numpy().tobytes()
                if whole.dim()
                else (whole.reshape(1).view(torch.uint8).numpy().tobytes())
            )
            found[name] = hashlib.sha256(content).hexdigest()[:12]
        else:
            found[name] = repr(value)
    return found


FINGERPRINT = Fingerprint("3.11", str(torch.__version__), "0", "Linux", "d1")


def saver_config(run_dir: str, rank: int, mesh: Mesh, attempt: int = 1) -> SaverConfig:
    return SaverConfig(
        run="r",
        run_dir=run_dir,
        attempt=attempt,
        rank=rank,
        world_size=mesh.world_size,
        mesh=mesh,
        fingerprint=FINGERPRINT,
        timeout_s=60.0,
    )


def header(step: int, loss: float = 2.5) -> SaveHeader:
    return SaveHeader(
        step=step,
        data_step=step + 1,
        hyper=Hyper(skipped=((3, 5),)),
        tags=CheckpointTags(loss, 0.5, 30.0, 4.0, 1e-3),
        rng="seed 1",
    )


def is_first() -> bool:
    return dist.get_rank() == 0
