"""Split a model over the mesh: over tp by heads, columns and rows, then over dp_shard by FSDP.

Every parameter ends as a float32 DTensor on the mesh, so checkpoints know its global shape. Inside
a tp group activations are whole (the sequence is not split): one sum per sub-layer in forward, one
in backward. Layer norms, position table and the biases of row-split layers are held by all ranks of
a tp group alike and get equal gradients there.
Source: arXiv 1909.08053 section 3; torch.distributed.fsdp.fully_shard for FSDP2.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module

from .collectives import CommClock, TpGroup, time_collectives
from .config import TrainConfig
from .mesh import DP_AXIS, TP_AXIS
from .model import Attention, FeedForward, OptModel
from .precision import arithmetic_for, compute_dtype


class SplitWeights(ParallelStyle):
    """Split the named weights of a module along a dimension; hold its other weights whole."""

    def __init__(self, **dims: int) -> None:
        self._dims = dims

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        for name, parameter in list(module.named_parameters(recurse=False)):
            placement = Shard(self._dims[name]) if name in self._dims else Replicate()
            # The weights are still on the meta device: there is nothing to send (None).
            split = distribute_tensor(parameter, device_mesh, [placement], src_data_rank=None)
            module.register_parameter(name, nn.Parameter(split))
        return module


def build_model(
    config: TrainConfig, mesh: DeviceMesh, device: torch.device, clock: CommClock
) -> OptModel:
    """Return the model on the mesh with memory for its shards, their values still arbitrary.

    No rank ever holds more than its shards.
    """
    model = lay_out_model(config, mesh, device.type, clock)
    if device.type == "cpu":
        for unit in fsdp_units(model):
            time_collectives(unit, clock)
    model.to_empty(device=device)
    return model


def lay_out_model(
    config: TrainConfig, mesh: DeviceMesh, device_type: str, clock: CommClock
) -> OptModel:
    """Return the model split over the mesh on the meta device, its shards without memory."""
    with torch.device("meta"):
        arithmetic = arithmetic_for(config, device_type)
        model = OptModel(config.model, arithmetic, config.activation_checkpointing)
    if mesh[TP_AXIS].size() > 1:
        _split_over_tp(model, mesh[TP_AXIS], clock)
    _shard_over_dp(model, config, mesh[DP_AXIS])
    return model


def fsdp_units(model: OptModel) -> list[FSDPModule]:
    """Return the modules of a model whose weights FSDP gathers together."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _split_over_tp(model: OptModel, mesh: DeviceMesh, clock: CommClock) -> None:
    columns = SplitWeights(weight=0, bias=0)
    rows = SplitWeights(weight=1)
    held_whole = SplitWeights()
    plan: dict[str, ParallelStyle] = {
        "embed": SplitWeights(weight=0),
        "positions": held_whole,
        "blocks.*.attention_norm": held_whole,
        "blocks.*.attention.qkv": columns,
        "blocks.*.attention.out": rows,
        "blocks.*.ffn_norm": held_whole,
        "blocks.*.ffn.up": columns,
        "blocks.*.ffn.down": rows,
    }
    if model.final_norm is not None:
        plan["final_norm"] = held_whole
    if model.project_in is not None:
        plan |= {"project_in": held_whole, "project_out": held_whole}
    parallelize_module(model, mesh, plan)

    tp = TpGroup(mesh.get_group(), mesh.get_local_rank(), mesh.size(), clock)
    model.embed.tp = tp
    for module in model.modules():
        if isinstance(module, Attention):
            module.tp = module.out.sums = tp
        elif isinstance(module, FeedForward):
            module.tp = module.down.sums = tp


def _shard_over_dp(model: OptModel, config: TrainConfig, mesh: DeviceMesh) -> None:
    """Make every few blocks an FSDP unit, and embedding, positions and final norm another.

    Weights are gathered in the compute type. Gradients are summed in float32, because a sum over
    many ranks in fp16 would overflow where no single gradient did.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=compute_dtype(config), reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    blocks = list(model.blocks)
    for first in range(0, len(blocks), config.blocks_per_unit):
        fully_shard(
            blocks[first : first + config.blocks_per_unit],
            mesh=mesh,
            mp_policy=policy,
            reshard_after_forward=config.reshard_after_forward,
        )
    # The tied embedding is used first and last, so this unit stays gathered in between.
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
