"""One step of a small model on torch's fake process group, for the warm-up and nothing else.

torch keeps the results of DTensor operations in caches keyed by mesh, and two meshes of one shape
are equal to it whichever rank looks at them. A result cached here, as rank 0 of a fake group, would
make every forked worker take itself for rank 0: its shards would begin as those of another rank
and be saved in their place. So all these caches are emptied, and no mesh may be left alive.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import _lru_cache_wrapper
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor._redistribute import clear_redistribute_planner_cache
from torch.distributed.tensor.debug import _clear_sharding_prop_cache

from ..logbook.wire import Hyper, Mesh
from .config import TrainConfig
from .step import Ballot, TrainStep
from .worker import validated

_SMALL_MODEL = {"layers": 2, "heads": 4, "width": 32, "ffn_width": 64, "vocab": 512}


def rehearse(trainer_config: dict[str, Any]) -> None:
    """Make one step of a small model of the run's own kind; the random state stays as it was."""
    torch.set_num_threads(1)
    config = _small(validated(trainer_config))
    random_state = torch.random.get_rng_state()
    # On a GPU node a backward pass would start threads and the CUDA context, neither of which
    # survives a fork; there the imports have to do.
    if not torch.cuda.is_available():
        _make_one_step(config)
        forget_meshes()
    torch.random.set_rng_state(random_state)


def _small(config: TrainConfig) -> TrainConfig:
    """Return config with a model small enough to step through in milliseconds."""
    section = config.model_dump()
    section["preset"] = None
    section["model"] |= _SMALL_MODEL | {"max_positions": 16}
    section |= {"seq_len": 16, "micro_batch_size": 1, "grad_accum": 1, "global_batch_size": None}
    return validated(section)


def _make_one_step(config: TrainConfig) -> None:
    # Neither a usual mesh nor a usual size of one, should a cache ever escape.
    mesh = Mesh(dp_shard=3, tp=2)
    dist.init_process_group("fake", store=HashStore(), rank=0, world_size=mesh.world_size)
    try:
        train_step = TrainStep(config, mesh, Hyper(), torch.device("cpu"))
        tokens = torch.zeros((config.micro_batch_size, config.seq_len + 1), dtype=torch.int64)
        train_step.run(1, [tokens], Ballot())
    finally:
        dist.destroy_process_group()


def forget_meshes() -> None:
    """Empty every cache in which torch keeps a mesh. Raises: RuntimeError when one is left."""
    clear_sharding_cache: Callable[[], None] = _clear_sharding_prop_cache
    clear_sharding_cache()
    clear_redistribute_planner_cache()
    # isinstance would ask some lazy torch objects for their class, which warns.
    caches = [found for found in gc.get_objects() if type(found) is _lru_cache_wrapper]
    for cache in caches:
        if cache.__module__.startswith("torch.distributed"):
            cache.cache_clear()
    gc.collect()
    left = sum(type(found) is DeviceMesh for found in gc.get_objects())
    if left:
        raise RuntimeError(
            f"the preload left {left} device meshes in caches of torch {torch.__version__};"
            " forked workers would take themselves for rank 0"
        )
