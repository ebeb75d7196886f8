"""What a copy to memory costs the loop, and how long a restore takes from each place.

Four gloo ranks (FSDP2 x TP) on two pretended nodes hold an OPT-like state with float32 master
weights and Adam moments. Copies go to the own node and over loopback to the other, with the samples
of the RECENT_STEPS last steps; level_s is what the loop pays at every step to know whether to
copy. A restore is of fresh processes: from memory, from memory with one node lost, and from disk,
whose bytes come from the page cache.
Run: python -m tests.bench.memory [--width 256] [--layers 4] [--copies 15]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
from midwatch.checkpoints.manifest import RECENT_STEPS
from midwatch.logbook.wire import StepSample

from tests.support.memory_nodes import Nodes
from tests.support.ranks import run_ranks

PER_NODE = 2
ASKS = 2000
SHM = Path("/dev/shm")
HOMES = {rank: f"node-{rank // PER_NODE}" for rank in range(4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--copies", type=int, default=15)
    parser.add_argument("--restores", type=int, default=5)
    args = parser.parse_args()
    shape = (args.width, args.layers)
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory(dir=SHM if SHM.is_dir() else None) as memory,
    ):
        result = run_ranks(copy, 4, folder, memory, shape, args.copies)[0]
        spare = {rank: "spare" if home == "node-1" else home for rank, home in HOMES.items()}
        places = {"memory": HOMES, "memory_node_lost": spare}
        for name, homes in places.items():
            times = [
                run_ranks(from_memory, 4, folder, memory, shape, homes)
                for _ in range(args.restores)
            ]
            result[f"restore_{name}_s"] = statistics.median(max(row) for row in times)
        disk = [run_ranks(from_disk, 4, folder, shape) for _ in range(args.restores)]
        result["restore_disk_s"] = statistics.median(max(row) for row in disk)
    for name, value in result.items():
        print(f"{name:28} {value:.6g}")
    print(
        json.dumps({name: round(value, 6) for name, value in result.items() if name != "state_mib"})
    )


def copy(
    rank: int, folder: str, memory: str, shape: tuple[int, int], copies: int
) -> dict[str, float]:
    from midwatch.checkpoints.dcp import Saver

    from tests.bench.stall import adam_state
    from tests.unit.checkpoints import models

    mesh = models.Mesh(2, 2)
    state = adam_state(mesh, *shape)
    order = Nodes(Path(memory), PER_NODE).order(HOMES[rank])
    saver = Saver(models.saver_config(folder, rank, mesh), memory=order)
    saver.prepare(state)
    assert saver.save(state, models.header(1), to_memory=True).result(120.0).stage == "committed"
    recent = tuple(_sample(step) for step in range(RECENT_STEPS)) if rank == 0 else ()
    blocked_s: list[float] = []
    took_s: list[float] = []
    for step in range(2, copies + 4):
        begun_s = time.perf_counter()
        header = msgspec.structs.replace(models.header(step), recent=recent)
        handle = saver.keep(state, header)
        assert handle.result(120.0).stage == "kept"
        if step > 3:  # The first two lay the two buffers out.
            blocked_s.append(handle.blocked_s)
            took_s.append(time.perf_counter() - begun_s)
    begun_s = time.perf_counter()
    for step in range(ASKS):
        assert saver.memory_level(copies + 4 + step, 100)
    level_s = (time.perf_counter() - begun_s) / ASKS
    return {
        "state_mib": sum(tensor.nbytes for tensor in _tensors(state)) / 2**20,
        "level_s": level_s,
        "copy_blocked_s": statistics.median(blocked_s),
        "copy_s": statistics.median(took_s),
    }


def _sample(step: int) -> StepSample:
    return StepSample(
        step=step,
        time_s=1.7e9 + step,
        loss=3.0 + 1e-3 * step,
        grad_norm=0.7,
        lr=1e-4,
        activation_norm=11.0,
        found_inf=False,
        skipped=False,
        loss_scale=64.0,
        tokens=1 << 20,
        data_step=step,
        step_s=0.005,
        tokens_per_s=2e8,
        model_tflops_per_device=0.1,
        memory_step=step,
    )


def _tensors(state: Any) -> list[Any]:
    import torch

    if isinstance(state, dict):
        return [found for value in state.values() for found in _tensors(value)]
    return [state] if isinstance(state, torch.Tensor) else []


def from_memory(
    rank: int, folder: str, memory: str, shape: tuple[int, int], homes: dict[int, str]
) -> float:
    import torch.distributed as dist
    from midwatch.checkpoints.dcp import Saver, load_first
    from midwatch.checkpoints.dcp_memory import MemorySource

    from tests.bench.stall import adam_state
    from tests.unit.checkpoints import models

    mesh = models.Mesh(2, 2)
    state = adam_state(mesh, *shape)
    order = Nodes(Path(memory), PER_NODE).order(homes[rank])
    saver = Saver(models.saver_config(folder, rank, mesh, attempt=2), memory=order)
    assert saver.memory is not None
    dist.barrier()
    begun_s = time.perf_counter()
    found = saver.memory.find(state, 0)
    assert isinstance(found, MemorySource), found
    report = load_first([(found.manifest.id, found.opened)], state, rank=rank)
    assert report.tier == "memory"
    return time.perf_counter() - begun_s


def from_disk(rank: int, folder: str, shape: tuple[int, int]) -> float:
    from tests.bench.stall import load_cold

    return load_cold(rank, folder, *shape)


if __name__ == "__main__":
    main()
