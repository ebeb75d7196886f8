"""How long a checkpoint keeps the training loop, against a synchronous DCP save of the same state.

Four gloo ranks (FSDP2 x TP) hold an OPT-like state with float32 master weights and Adam moments.
Also measured: what a save in flight costs the steps that run beside it, a verified load, and the
throughput of a full verification. Run: python -m tests.bench.stall [--width 256] [--saves 9]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from typing import Any

from tests.support.ranks import run_ranks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--saves", type=int, default=9)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run_ranks(measure, 4, folder, args.width, args.layers, args.saves)[0]
        cold = [run_ranks(load_cold, 4, folder, args.width, args.layers) for _ in range(3)]
        result["cold_load_s"] = statistics.median(max(seconds) for seconds in cold)
    for name, value in result.items():
        print(f"{name:28} {value:.6g}")
    print(json.dumps({"stall_frac": result["stall_frac"]}))


def measure(rank: int, folder: str, width: int, layers: int, saves: int) -> dict[str, float]:
    import warnings

    warnings.simplefilter("ignore")
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from midwatch.checkpoints.dcp import Saver, load
    from midwatch.checkpoints.manifest import checkpoint_dir
    from midwatch.checkpoints.verify import verify

    from tests.unit.checkpoints import models

    mesh = models.Mesh(2, 2)
    state = adam_state(mesh, width, layers)
    saver = Saver(models.saver_config(folder, rank, mesh))
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    saver.prepare(state)
    steps(40)
    first = saver.save(state, models.header(1))
    first.result()
    steps(40)
    for index in range(saves):
        dist.barrier()
        begun_s = time.perf_counter()
        dcp.save(state, checkpoint_id=f"{folder}/stock/{index}")
        note("sync_dcp_save_s", time.perf_counter() - begun_s)

        dist.barrier()
        alone_s = steps(40)
        dist.barrier()
        begun_s = time.perf_counter()
        handle = saver.save(state, models.header(10 + index))
        beside_s = steps(40)
        outcome = handle.result()
        note("until_commit_s", time.perf_counter() - begun_s)
        note("blocked_s", handle.blocked_s)
        note("cost_to_steps_s", beside_s - alone_s)

        dist.barrier()
        note("load_s", load(checkpoint_dir(folder, outcome.checkpoint), state, rank=rank).load_s)
        dist.barrier()
        if rank == 0:
            begun_s = time.perf_counter()
            manifest = verify(checkpoint_dir(folder, outcome.checkpoint))
            note("verify_s", time.perf_counter() - begun_s)
            note("verify_bytes_per_s", manifest.total_bytes / found["verify_s"][-1])
            note("bytes", manifest.total_bytes)
    result = {name: statistics.median(values) for name, values in found.items()}
    result["first_blocked_s"] = first.blocked_s
    result["stall_frac"] = result["blocked_s"] / result["sync_dcp_save_s"]
    result["cost_to_steps_frac"] = result["cost_to_steps_s"] / result["sync_dcp_save_s"]
    return result


def load_cold(rank: int, folder: str, width: int, layers: int) -> float:
    """Return the seconds of the first load of a fresh process, as after a crash; slowest rank."""
    import torch.distributed as dist
    from midwatch.checkpoints.dcp import load_first
    from midwatch.checkpoints.manifest import checkpoint_id
    from midwatch.checkpoints.source import in_run_folder

    from tests.unit.checkpoints import models

    state = adam_state(models.Mesh(2, 2), width, layers)
    dist.barrier()
    return load_first(in_run_folder(folder, [checkpoint_id(1, 1)]), state, rank=rank).load_s


def adam_state(mesh: Any, width: int, layers: int) -> dict[str, Any]:
    """Return master weights and moments of a decoder with separate q, k, v, o as OPT has them."""
    import torch
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    device_mesh = init_device_mesh(
        "cpu", (mesh.dp_shard, mesh.tp), mesh_dim_names=("dp_shard", "tp")
    )
    by_row, by_column, norm = (Shard(0), Shard(1)), (Shard(0), Shard(0)), (Shard(0), Replicate())
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "embed": ((4096, width), by_column),
        "positions": ((258, width), norm),
    }
    for layer in range(layers):
        for name in "qkv":
            shapes[f"{layer}.{name}.weight"] = ((width, width), by_column)
            shapes[f"{layer}.{name}.bias"] = ((width,), by_column)
        shapes[f"{layer}.o.weight"] = ((width, width), by_row)
        shapes[f"{layer}.up.weight"] = ((4 * width, width), by_column)
        shapes[f"{layer}.down.weight"] = ((width, 4 * width), by_row)
        shapes[f"{layer}.up.bias"] = ((4 * width,), by_column)
        for name in ("o.bias", "down.bias", "n1.w", "n1.b", "n2.w", "n2.b"):
            shapes[f"{layer}.{name}"] = ((width,), norm)
    torch.manual_seed(0)
    state: dict[str, Any] = {"scaler": {"scale": 4096.0, "good_steps": 3}, "step": 7}
    for kind in ("master", "exp_avg", "exp_avg_sq"):
        state[kind] = {
            name: nn.Parameter(distribute_tensor(torch.randn(shape), device_mesh, placements))
            for name, (shape, placements) in shapes.items()
        }
    return state


def steps(count: int) -> float:
    """Run something like training steps, a collective in each; return the seconds taken."""
    import torch
    import torch.distributed as dist

    weight = torch.ones(192, 192)
    x = torch.ones(128, 192)
    begun_s = time.perf_counter()
    for _ in range(count):
        for _ in range(8):
            x = torch.tanh(x @ weight)
        dist.all_reduce(x)
    return time.perf_counter() - begun_s


if __name__ == "__main__":
    main()
