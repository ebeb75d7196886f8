"""The sampler is a pure function: a permutation per pass, alike on every mesh, exact on resume."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from midwatch.logbook.errors import ConfigError
from midwatch.trainer.data.sampler import (
    BatchShape,
    Sampler,
    data_step_for,
    permute,
    sample_indices,
)
from midwatch.trainer.data.shards import Manifest, ShardWriter, Split, TokenStream

SEEDS = st.integers(min_value=0, max_value=2**63 - 1)


def stream_of(folder: Path, num_tokens: int, shard_tokens: int = 50) -> TokenStream:
    """Return a stream whose token at position p is p, cut into several shards."""
    writer = ShardWriter(folder, "train", "<u4", shard_tokens)
    writer.add([list(range(num_tokens))])
    manifest = Manifest(1, "key", 70_000, "<u4", "hash", 0, writer.finish(), Split(0, 0, ()))
    return TokenStream(folder, manifest)


@given(size=st.integers(1, 3000), seed=SEEDS, which=st.integers(0, 1 << 40))
@settings(max_examples=150, deadline=None)
def test_every_pass_is_a_permutation_of_the_samples(size: int, seed: int, which: int) -> None:
    positions = np.arange(size, dtype=np.uint64)
    assert sorted(permute(positions, size, seed, which).tolist()) == list(range(size))


@given(
    num_samples=st.integers(1, 200),
    batch=st.integers(1, 60),
    seed=SEEDS,
    first_step=st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None)
def test_no_sample_repeats_within_a_pass_whatever_the_batch(
    num_samples: int, batch: int, seed: int, first_step: int
) -> None:
    steps = range(first_step, first_step + 2 * num_samples // batch + 2)
    per_pass: dict[int, list[int]] = {}
    for step in steps:
        for offset, index in enumerate(sample_indices(step * batch, batch, num_samples, seed)):
            per_pass.setdefault((step * batch + offset) // num_samples, []).append(int(index))
    assert all(len(set(seen)) == len(seen) for seen in per_pass.values())
    whole = sorted(per_pass)[1:-1]
    assert all(sorted(per_pass[number]) == list(range(num_samples)) for number in whole)


def test_passes_and_seeds_visit_in_different_orders() -> None:
    orders = {
        tuple(permute(np.arange(500, dtype=np.uint64), 500, seed, which).tolist())
        for seed in (0, 1)
        for which in (0, 1)
    }
    assert len(orders) == 4


def test_order_shows_no_trace_of_the_corpus_order() -> None:
    order = permute(np.arange(4096, dtype=np.uint64), 4096, seed=7, which=0)
    correlation = float(np.corrcoef(np.arange(4096), order)[0, 1])
    # The standard deviation of a random permutation's correlation is 1/64 here.
    assert abs(correlation) < 4 / 64
    assert int((np.diff(order) == 1).sum()) < 12


@pytest.mark.parametrize(
    ("micro_batch", "grad_accum", "dp_size"), [(1, 2, 4), (2, 2, 2), (8, 1, 1)]
)
def test_every_mesh_sees_the_same_samples_in_a_step(
    tmp_path: Path, micro_batch: int, grad_accum: int, dp_size: int
) -> None:
    stream = stream_of(tmp_path, 1000)
    sampler = Sampler(stream, BatchShape(micro_batch, grad_accum, dp_size, seq_len=9), seed=3)
    for data_step in (0, 5, 13, 40):
        rows = np.concatenate(
            [sampler.batch(data_step, rank).reshape(-1, 10) for rank in range(dp_size)]
        )
        expected = sample_indices(data_step * 8, 8, (1000 - 1) // 9, seed=3)
        assert rows[:, 0].tolist() == (expected * 9).tolist()


def test_a_batch_has_the_asked_shape_and_reads_across_shards(tmp_path: Path) -> None:
    sampler = Sampler(stream_of(tmp_path, 1000), BatchShape(2, 3, 1, seq_len=70), seed=0)
    batch = sampler.batch(data_step=1, dp_rank=0)
    assert batch.shape == (3, 2, 71)
    assert batch.dtype == np.int64
    assert (np.diff(batch, axis=-1) == 1).all()


def test_any_step_is_had_without_the_ones_before(tmp_path: Path) -> None:
    shape = BatchShape(2, 1, 2, seq_len=9)
    stream = stream_of(tmp_path, 1000)
    from_the_start = Sampler(stream, shape, seed=5)
    walked = [from_the_start.batch(step, 1) for step in range(30)]
    resumed = Sampler(stream, shape, seed=5)
    assert all((resumed.batch(step, 1) == walked[step]).all() for step in (29, 17, 0))


def test_a_corpus_smaller_than_one_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Sampler(stream_of(tmp_path, 100), BatchShape(2, 3, 2, seq_len=9), seed=0)
    assert caught.value.code == "corpus-too-small"


RANGES = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 20)).map(lambda pair: (pair[0], sum(pair))),
    max_size=6,
)


@given(skipped=RANGES)
@settings(max_examples=300, deadline=None)
def test_data_steps_are_all_those_outside_the_skipped_ranges_in_order(
    skipped: list[tuple[int, int]],
) -> None:
    kept = [d for d in range(300) if not any(first <= d < last for first, last in skipped)]
    assert [data_step_for(step, skipped) for step in range(100)] == kept[:100]
