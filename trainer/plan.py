"""What a model costs on a mesh, before any GPU is asked for: bytes per rank, by kind.

The model is really laid out, on the meta device and a process group that only pretends to have its
ranks, so the shapes are those that FSDP and tensor parallelism will hold. Activations follow the
formulas of Plan's fields.

    python -m midwatch.trainer.plan --preset 175B --dp-shard 124 --tp 8
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import nn
from torch._C._distributed_c10d import HashStore

from ..logbook.errors import MidwatchError
from ..logbook.wire import Mesh
from .collectives import CommClock
from .config import TrainConfig, check_mesh
from .dtensors import is_split_over_tp, local
from .flops import model_flops_per_token
from .mesh import build_mesh
from .parallelize import lay_out_model
from .precision import compute_dtype


@dataclass(frozen=True)
class Plan:
    """Bytes of the fullest rank; s seq_len, b micro_batch_size, h width, t tp, V padded vocab.

    master_bytes:      float32 shards of the weights.
    gathered_bytes:    weights gathered in the compute type: embedding, positions and final norm all
                       the time, and two FSDP units, the one at work and the one fetched ahead (all
                       units without reshard_after_forward).
    gradient_bytes:    float32 shards, and while they are reduced one unit's and the embedding's
                       gradients in the compute type with their float32 copy.
    optimizer_bytes:   Adam's two float32 moments.
    activation_bytes:  layers x sbh (8 + 16/t), + 2 sbh with dropout, in bytes at 16 bits: per block
                       two norm inputs and outputs whole, q, k, v, attention's output and the
                       feed-forward layer split. It is sbh (10 + 24/t) of arXiv 2205.05198 section 4
                       with a fused attention that stores no scores, less what ReLU need not keep
                       (8/t) and, without dropout, the masks. On top, 4 sbh for the final norm and
                       10 sbV/t for the loss.
    recomputed_bytes:  the same with activation checkpointing: 2 sbh per block, its input, and one
                       block in full.
    """

    mesh: Mesh
    parameters: int
    tokens_per_step: int
    microbatches: int
    micro_batch_size: int
    seq_len: int
    flops_per_token: float
    fullest_shard: int
    even_shard: float
    is_recomputing: bool
    master_bytes: int
    gathered_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    recomputed_bytes: int

    @property
    def state_bytes(self) -> int:
        """Everything but activations."""
        weights = self.master_bytes + self.gathered_bytes
        return weights + self.gradient_bytes + self.optimizer_bytes

    @property
    def total_bytes(self) -> int:
        """Everything, with activation checkpointing as configured."""
        activations = self.recomputed_bytes if self.is_recomputing else self.activation_bytes
        return self.state_bytes + activations

    def render(self) -> str:
        """Return the plan as a table for a terminal."""
        chosen, other = "activations, checkpointed", "activations, all kept"
        chosen_bytes, other_bytes = self.recomputed_bytes, self.activation_bytes
        if not self.is_recomputing:
            chosen, other = other, chosen
            chosen_bytes, other_bytes = other_bytes, chosen_bytes
        rows = [
            ("parameters, float32 shard", self.master_bytes),
            ("parameters, gathered", self.gathered_bytes),
            ("gradients", self.gradient_bytes),
            ("optimizer", self.optimizer_bytes),
            (chosen, chosen_bytes),
            ("total", self.total_bytes),
            (f"({other})", other_bytes),
        ]
        table = [f"{name:<28}{size:>18,}{_readable(size):>14}" for name, size in rows]
        return "\n".join([*self._head(), "", f"{'bytes per rank':<28}", *table])

    def _head(self) -> list[str]:
        mesh = self.mesh
        surplus_frac = self.fullest_shard / self.even_shard - 1.0
        ranks = f"{mesh.world_size} ranks: dp_shard {mesh.dp_shard} x tp {mesh.tp}"
        batch = f"{self.microbatches} x {self.micro_batch_size} x {self.seq_len}"
        return [
            f"{self.parameters:,} parameters on {ranks}",
            f"{self.tokens_per_step:,} tokens per step: {batch} on each of {mesh.dp_shard} groups",
            f"{self.flops_per_token:.3e} model FLOPs per token",
            f"{self.fullest_shard:,} weights on the fullest rank, {surplus_frac:.1%} above even",
        ]


def plan(config: TrainConfig, mesh: Mesh) -> Plan:
    """Return what the configured training costs per rank of a mesh.

    Must run where no process group exists, since it makes one that pretends.
    Raises: ConfigError[mesh-does-not-fit].
    """
    check_mesh(config, mesh)
    with _pretended_ranks(mesh.world_size):
        device_mesh = build_mesh(mesh, torch.device("cpu"))
        # Fused attention and native fp16 are a GPU's; nothing is computed here.
        model = lay_out_model(config, device_mesh, "cuda", CommClock())
        in_blocks = list(model.blocks.parameters())
        in_root = [p for n, p in model.named_parameters() if not n.startswith("blocks.")]
        fullest_shard = sum(local(p.detach()).numel() for p in (*in_blocks, *in_root))
        blocks_gathered = _gathered(in_blocks, mesh)
        root_gathered = _gathered(in_root, mesh)
        parameters = sum(p.numel() for p in (*in_blocks, *in_root))
    unit = blocks_gathered // config.model.layers * config.blocks_per_unit
    unit = min(unit, blocks_gathered)
    itemsize = compute_dtype(config).itemsize
    held_units = min(2 * unit, blocks_gathered) if config.reshard_after_forward else blocks_gathered
    in_flight = max((itemsize + 4) * unit, 4 * root_gathered)
    microbatches = config.microbatches(mesh)
    return Plan(
        mesh=mesh,
        parameters=parameters,
        tokens_per_step=config.sequences_per_step(mesh) * config.seq_len,
        microbatches=microbatches,
        micro_batch_size=config.micro_batch_size,
        seq_len=config.seq_len,
        flops_per_token=model_flops_per_token(config.model, config.seq_len),
        fullest_shard=fullest_shard,
        even_shard=(blocks_gathered + root_gathered) / mesh.dp_shard,
        is_recomputing=config.activation_checkpointing,
        master_bytes=4 * fullest_shard,
        gathered_bytes=itemsize * (root_gathered + held_units),
        gradient_bytes=4 * fullest_shard + itemsize * root_gathered + in_flight,
        optimizer_bytes=8 * fullest_shard,
        activation_bytes=_activation_bytes(config, mesh, recompute=False),
        recomputed_bytes=_activation_bytes(config, mesh, recompute=True),
    )


def _gathered(parameters: list[nn.Parameter], mesh: Mesh) -> int:
    """Return the weights that one rank holds of these when FSDP has gathered them."""
    return sum(p.numel() // (mesh.tp if is_split_over_tp(p) else 1) for p in parameters)


def _activation_bytes(config: TrainConfig, mesh: Mesh, *, recompute: bool) -> int:
    """Return what one microbatch keeps for its backward; see Plan for the formula."""
    model = config.model
    # The formulas count 16-bit values; in fp32 each takes twice that.
    width_factor = compute_dtype(config).itemsize / 2
    tokens = config.seq_len * config.micro_batch_size
    sbh = tokens * model.width
    block = sbh * (8 + 16 / mesh.tp + (2 if model.dropout > 0.0 else 0))
    blocks = model.layers * 2 * sbh + block if recompute else model.layers * block
    output = 4 * sbh + 10 * tokens * model.padded_vocab / mesh.tp
    return round(width_factor * (blocks + output))


def _readable(size_bytes: int) -> str:
    gib = size_bytes / 2**30
    return f"{gib:.2f} GiB" if gib >= 0.1 else f"{size_bytes / 2**20:.2f} MiB"


@contextmanager
def _pretended_ranks(world_size: int) -> Iterator[None]:
    """Provide a default process group in which this rank 0 is alone with names of the others."""
    dist.init_process_group("fake", store=HashStore(), rank=0, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def main(arguments: list[str] | None = None) -> int:
    """Print the plan of a preset on a mesh. Returns: the exit status, 2 for a wrong argument."""
    parser = argparse.ArgumentParser(
        prog="python -m midwatch.trainer.plan", description=main.__doc__
    )
    parser.add_argument("--preset", required=True)
    parser.add_argument("--dp-shard", type=int, default=1)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--micro-batch-size", type=int)
    parser.add_argument("-o", "--output", choices=["text", "json"], default="text")
    args = parser.parse_args(arguments)
    section: dict[str, Any] = {"preset": args.preset}
    if args.micro_batch_size is not None:
        section["micro_batch_size"] = args.micro_batch_size
    try:
        made = plan(TrainConfig.model_validate(section), Mesh(args.dp_shard, args.tp))
    except MidwatchError as error:
        print(error, file=sys.stderr)
        return 2
    except ValidationError as error:
        for wrong in error.errors():
            print(f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}", file=sys.stderr)
        return 2
    if args.output == "json":
        mesh = {"dp_shard": args.dp_shard, "tp": args.tp}
        totals = {"state_bytes": made.state_bytes, "total_bytes": made.total_bytes}
        print(json.dumps({**asdict(made), "mesh": mesh, **totals}))
    else:
        print(made.render())
    return 0


if __name__ == "__main__":
    sys.exit(main())
