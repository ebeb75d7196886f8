"""The sampler: which tokens a step trains on, as a pure function and nothing else.

There is no iterator to save or restore. The token stream is cut into samples of seq_len + 1
tokens (consecutive samples share one token, so that every token is predicted once). In each pass
over the data the samples are visited in a fresh pseudo-random order without replacement; the
order is a keyed permutation of sample numbers, computed on the spot for the few numbers asked.

    data step d of global batch B  ->  sample numbers [d * B, (d + 1) * B)
    sample number g of a stream with n samples  ->  pass g // n, position g % n
    (seed, pass, position)  ->  sample index, by a Feistel network with cycle walking

The global batch knows nothing of the mesh: data-parallel rank i of k takes the i-th of k equal
slices of it, so runs on 2 x 2 and 4 x 1 ranks see the same samples in every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...logbook.errors import ConfigError
from .shards import TokenStream

_ROUNDS = 4
_MASK_64 = (1 << 64) - 1


@dataclass(frozen=True)
class BatchShape:
    """What one data-parallel rank trains on in one step, and how many such ranks there are."""

    micro_batch: int
    grad_accum: int
    dp_size: int
    seq_len: int

    @property
    def samples_per_rank(self) -> int:
        return self.micro_batch * self.grad_accum

    @property
    def global_batch(self) -> int:
        """Samples per step over all ranks."""
        return self.samples_per_rank * self.dp_size


class Sampler:
    """Batches of one token stream, a pure function of (seed, data step, data-parallel rank)."""

    def __init__(self, stream: TokenStream, shape: BatchShape, seed: int) -> None:
        self._stream = stream
        self._shape = shape
        self._seed = seed
        self.num_samples = (stream.num_tokens - 1) // shape.seq_len
        if self.num_samples < shape.global_batch:
            raise ConfigError(
                "corpus-too-small",
                f"the corpus has {stream.num_tokens} tokens, {self.num_samples} samples of "
                f"seq_len {shape.seq_len}, fewer than the {shape.global_batch} of one step.",
                remedy="Build a larger corpus, or lower seq_len, micro_batch or grad_accum.",
            )

    def global_samples(self, data_step: int) -> npt.NDArray[np.int64]:
        """Return the sample indices of a step over all ranks.

        Shapes: (global_batch,) int64.
        """
        first = data_step * self._shape.global_batch
        return sample_indices(first, self._shape.global_batch, self.num_samples, self._seed)

    def batch(self, data_step: int, dp_rank: int) -> npt.NDArray[np.int64]:
        """Return the tokens that data-parallel rank dp_rank trains on in a step.

        Shapes: (grad_accum, micro_batch, seq_len + 1) int64; inputs are [..., :-1] and targets
                [..., 1:].
        """
        shape = self._shape
        count = shape.samples_per_rank
        mine = self.global_samples(data_step)[dp_rank * count : (dp_rank + 1) * count]
        rows = [self._stream.read(int(index) * shape.seq_len, shape.seq_len + 1) for index in mine]
        return np.stack(rows).reshape(shape.grad_accum, shape.micro_batch, shape.seq_len + 1)


def sample_indices(first: int, count: int, num_samples: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the sample indices of the sample numbers [first, first + count).

    Shapes: (count,) int64, each in [0, num_samples).
    """
    numbers = range(first, first + count)
    indices = np.empty(count, dtype=np.int64)
    for which in range(first // num_samples, (first + count - 1) // num_samples + 1):
        inside = [i for i, number in enumerate(numbers) if number // num_samples == which]
        positions = np.array([numbers[i] % num_samples for i in inside], dtype=np.uint64)
        indices[inside] = permute(positions, num_samples, seed, which)
    return indices


def permute(
    positions: npt.NDArray[np.uint64], size: int, seed: int, which: int
) -> npt.NDArray[np.int64]:
    """Return where a keyed permutation of range(size) sends each position.

    A balanced Feistel network permutes the next even power of two; a result outside the range is
    sent through again until it falls inside (cycle walking), which keeps it a bijection. The range
    of the network is below 4 * size, so fewer than four trips are expected.

    Shapes: positions (k,) uint64 -> (k,) int64.
    Source: Black and Rogaway, Ciphers with Arbitrary Finite Domains (CT-RSA 2002).
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = [_round_key(seed, which, number) for number in range(_ROUNDS)]
    result = _feistel(positions, half_bits, keys)
    outside = result >= size
    while outside.any():
        result[outside] = _feistel(result[outside], half_bits, keys)
        outside = result >= size
    return result.astype(np.int64)


def data_step_for(step: int, skipped: Sequence[tuple[int, int]]) -> int:
    """Return the data step that the update after step completed steps consumes.

    Every update, also one whose optimizer step was skipped for non-finite gradients, consumes one
    data step, in order, leaving out those in skipped (half-open ranges, in any order, overlapping
    or not).
    """
    data_step = step
    covered = 0
    for first, last in sorted(skipped):
        first = max(first, covered)
        if last <= first:
            continue
        if first > data_step:
            break
        data_step += last - first
        covered = last
    return data_step


def _feistel(
    values: npt.NDArray[np.uint64], half_bits: int, keys: Sequence[int]
) -> npt.NDArray[np.uint64]:
    shift = np.uint64(half_bits)
    mask = np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix_array(right ^ np.uint64(key)) & mask)
    return (left << shift) | right


def _mix_array(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _round_key(seed: int, which: int, number: int) -> int:
    key = _mix(seed & _MASK_64)
    key = _mix(key ^ (which & _MASK_64))
    return _mix(key ^ number)


def _mix(value: int) -> int:
    """Return splitmix64 of value (Steele, Lea and Flood, OOPSLA 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return value ^ (value >> 31)
