"""How a training state is seen by save and load: dotted keys, and the box each rank holds."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.tensor import DTensor

from ..logbook.errors import ConfigError, IntegrityError
from .index import Box

# A replica up to this size is written by every rank that holds it, so that a rank which comes back
# on the same mesh finds all it needs in its own file.
SMALL_REPLICA_BYTES = 1 << 20

_PLAIN = (bool, int, float, str, bytes, type(None))


def rank_file(rank: int) -> str:
    """Return the name of a rank's file, as stock DCP would name it."""
    return f"__{rank}_0.distcp"


def flatten(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return ({dotted key: leaf}, {dotted key: path in the nested state}), as DCP names them."""
    planner = DefaultSavePlanner()
    planner.set_up_planner(state)
    return dict(planner.state_dict), dict(planner.mappings)


def local_part(leaf: torch.Tensor) -> torch.Tensor:
    """Return this rank's own memory of a tensor, detached; writing to it writes the tensor."""
    with torch.no_grad():
        return (leaf.to_local() if isinstance(leaf, DTensor) else leaf).detach()


def layout_of(leaf: Any) -> Any:
    """Return a value that is equal for leaves which lie in a file in the same way."""
    if isinstance(leaf, DTensor):
        return leaf.dtype, leaf.shape, leaf.placements
    return (leaf.dtype, leaf.shape) if isinstance(leaf, torch.Tensor) else None


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name under which dtype_of finds it again, e.g. "float32"."""
    return str(dtype).removeprefix("torch.")


def dtype_of(name: str) -> torch.dtype:
    """Return the tensor type of that name. Raises: IntegrityError[index-corrupt]."""
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise IntegrityError("index-corrupt", f"{name!r} is no tensor type.")
    return found


class Boxes:
    """The box of each tensor that this rank holds; equal placements are worked out once."""

    def __init__(self) -> None:
        self._known: dict[Any, Box] = {}

    def of(self, leaf: torch.Tensor) -> Box:
        """Return (origin, shape) of the local part within the whole tensor, in elements."""
        if not isinstance(leaf, DTensor):
            return (0,) * leaf.dim(), tuple(leaf.shape)
        key = (leaf.shape, leaf.placements, id(leaf.device_mesh))
        if key not in self._known:
            holder: Any = leaf
            chunk = holder.__create_chunk_list__()[0]
            self._known[key] = tuple(chunk.offsets), tuple(chunk.sizes)
        return self._known[key]


def is_written_here(leaf: torch.Tensor, box: Box) -> bool:
    """Whether this rank writes its part of a tensor: all shards, small replicas, first replicas."""
    if not isinstance(leaf, DTensor):
        return True
    coordinate = leaf.device_mesh.get_coordinate()
    if coordinate is None or not math.prod(box[1]):
        return False
    is_first = all(
        at == 0
        for at, placement in zip(coordinate, leaf.placements, strict=True)
        if placement.is_replicate()
    )
    return is_first or math.prod(box[1]) * leaf.element_size() <= SMALL_REPLICA_BYTES


def check_plain(key: str, value: Any) -> None:
    """Refuse what could only be read back by running a pickle.

    Raises: ConfigError[state-not-plain].
    """
    if isinstance(value, _PLAIN):
        return
    if type(value) in (list, tuple):
        for item in value:
            check_plain(key, item)
    elif type(value) is dict:
        for name, item in value.items():
            check_plain(key, name)
            check_plain(key, item)
    else:
        raise ConfigError(
            "state-not-plain",
            f"{key} holds a {type(value).__name__}; only tensors and plain values can be saved.",
            remedy="Turn it into tensors, numbers, strings, lists or dicts.",
        )
