"""Initial weights that depend on the seed and the parameter's name alone, not on the mesh.

Each parameter is drawn in blocks of rows, each block from a counter-based generator keyed by (seed,
name, block). A rank draws only the blocks that its shard touches, so nothing is sent and no rank
ever holds a whole parameter.
Source: arXiv 2205.01068 section 2.1 for the distribution.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..logbook.errors import IntegrityError
from .config import ModelConfig
from .dtensors import local, offset_of

_ROWS_PER_BLOCK = 64


def initialize(parameters: Mapping[str, nn.Parameter], config: ModelConfig, seed: int) -> None:
    """Fill every parameter's shard in place.

    Matrices are normal with init_std, those that end a residual branch divided by sqrt(2 layers);
    layer norms start as the identity, biases at zero.
    """
    with torch.no_grad():
        for name, parameter in parameters.items():
            shard = local(parameter)
            if parameter.ndim == 1:
                shard.fill_(1.0 if name.endswith("norm.weight") else 0.0)
            elif shard.numel():
                _fill_normal(shard, name, parameter, _std(name, config), seed)


def load_whole(parameters: Mapping[str, nn.Parameter], whole: Iterable[tuple[str, Tensor]]) -> None:
    """Copy whole parameters, given one after another, into the shards of this rank.

    Raises: IntegrityError[parameter-mismatch] when a name or shape is not the model's, or one is
            left without a value.
    """
    left = dict(parameters)
    with torch.no_grad():
        for name, tensor in whole:
            parameter = left.pop(name, None)
            if parameter is None or parameter.shape != tensor.shape:
                raise _mismatch(f"{name} of shape {tuple(tensor.shape)} is not one of the model's.")
            shard, offset = local(parameter), offset_of(parameter)
            for dim, size in enumerate(shard.shape):
                # The offset of an empty shard may lie beyond the end.
                tensor = tensor.narrow(dim, min(offset[dim], tensor.shape[dim] - size), size)
            shard.copy_(tensor)
    if left:
        raise _mismatch(f"{len(left)} parameters have no value, the first is {min(left)}.")


def _mismatch(message: str) -> IntegrityError:
    return IntegrityError(
        "parameter-mismatch", message, remedy="Load weights of a model of the same shape."
    )


def _std(name: str, config: ModelConfig) -> float:
    ends_branch = name.endswith(("attention.out.weight", "ffn.down.weight"))
    return config.init_std / math.sqrt(2 * config.layers) if ends_branch else config.init_std


def _fill_normal(shard: Tensor, name: str, parameter: Tensor, std: float, seed: int) -> None:
    first_row, first_column = offset_of(parameter)
    rows, columns = shard.shape
    for start, block in _blocks(first_row, rows, parameter.shape[1], name, seed):
        part = torch.from_numpy(block[:, first_column : first_column + columns] * std)
        shard[start : start + part.shape[0]].copy_(part)


def _blocks(
    first_row: int, rows: int, columns: int, name: str, seed: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield (row within the shard, rows of standard normals) until the shard is covered."""
    last_row = first_row + rows
    for index in range(first_row // _ROWS_PER_BLOCK, -(-last_row // _ROWS_PER_BLOCK)):
        key = hashlib.blake2b(f"{seed}/{name}/{index}".encode(), digest_size=16).digest()
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
        block = generator.standard_normal((_ROWS_PER_BLOCK, columns), dtype=np.float32)
        top = index * _ROWS_PER_BLOCK
        begin, end = max(first_row, top), min(last_row, top + _ROWS_PER_BLOCK)
        yield begin - first_row, block[begin - top : end - top]
