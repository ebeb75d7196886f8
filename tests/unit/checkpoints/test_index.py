"""Boxes saved by any mesh fill boxes wanted by any other, each element once."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from midwatch.checkpoints.index import (
    Index,
    RankPart,
    TensorEntry,
    TensorPart,
    ValuePart,
    decode_index,
    encode_index,
    merge_parts,
    plan_reads,
)
from midwatch.logbook.errors import ConfigError, IntegrityError


def cut(length: int, rng: random.Random) -> list[tuple[int, int]]:
    """Return [start, stop) ranges that fill a length, cut at random."""
    inner = rng.sample(range(1, length), k=min(length - 1, rng.randrange(4)))
    edges = [0, *sorted(inner), length]
    return list(itertools.pairwise(edges))


def parts_of(shape: tuple[int, ...], rng: random.Random) -> list[RankPart]:
    grid = itertools.product(*(cut(length, rng) for length in shape))
    return [
        part(
            f"file{number}",
            shape,
            tuple(start for start, _ in box),
            tuple(stop - start for start, stop in box),
        )
        for number, box in enumerate(grid)
    ]


def part(
    name: str, shape: tuple[int, ...], origin: tuple[int, ...], size: tuple[int, ...]
) -> RankPart:
    return RankPart(name, {"w": TensorPart("float32", shape, origin, size, 64, 0, 999)}, {}, {})


@pytest.mark.parametrize("seed", range(20))
def test_every_wanted_element_is_read_once_from_its_place(seed: int) -> None:
    rng = random.Random(seed)
    shape = tuple(rng.randrange(1, 9) for _ in range(rng.randrange(0, 4)))
    whole = np.arange(math.prod(shape)).reshape(shape)
    entry = merge_parts(parts_of(shape, rng)).tensors["w"]
    for wanted in parts_of(shape, rng):
        head = wanted.tensors["w"]
        box = (head.piece_origin, head.piece_shape)
        found = np.full(head.piece_shape, -1)
        for read in plan_reads("w", entry, box, preferred=0):
            piece = whole[region(read.piece.origin, read.piece.shape)]
            target = region(read.target_start, read.shape)
            assert (found[target] == -1).all()
            found[target] = piece[region(read.source_start, read.shape)]
        assert (found == whole[region(*box)]).all()


def region(start: tuple[int, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(a, a + b) for a, b in zip(start, shape, strict=True))


def test_a_copy_in_the_preferred_file_is_taken() -> None:
    parts = [part(f"file{n}", (4,), (0,), (4,)) for n in range(3)]
    entry = merge_parts(parts).tensors["w"]
    for preferred, expected in ((-1, 0), (0, 0), (2, 2)):
        (read,) = plan_reads("w", entry, ((0,), (4,)), preferred)
        assert read.piece.file == expected


def test_the_nearest_copy_of_a_value_is_taken() -> None:
    parts = [RankPart(f"file{n}", {}, {"v": ValuePart(n, 10)}, {"v": ("v",)}) for n in (0, 1, 2)]
    entry = merge_parts(parts).values["v"]
    assert entry.nearest(1) == (1, ValuePart(1, 10))
    assert entry.nearest(7) == (0, ValuePart(0, 10))


def test_a_shard_that_nobody_saved_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        merge_parts([part("file0", (4,), (0,), (2,))])
    assert caught.value.code == "state-incomplete"
    entry = TensorEntry(
        "float32", (4,), merge_parts([part("f", (2,), (0,), (2,))]).tensors["w"].pieces
    )
    with pytest.raises(IntegrityError) as lost:
        plan_reads("w", entry, ((1,), (3,)), preferred=0)
    assert lost.value.code == "shard-missing"


def test_ranks_that_disagree_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        merge_parts([part("file0", (4,), (0,), (4,)), part("file1", (5,), (0,), (5,))])
    assert caught.value.code == "state-differs"


def test_an_index_survives_its_encoding() -> None:
    parts = [RankPart("f", {}, {"a.0": ValuePart(1, 2)}, {"a.0": ("a", 0)})]
    index = merge_parts([*parts, part("g", (4, 2), (0, 0), (4, 2))])
    back = decode_index(memoryview(encode_index(index)))
    assert isinstance(back, Index)
    assert back == index
