"""The loss on held-out text is one number, whatever the mesh, and measuring changes no weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from midwatch.logbook.errors import ConfigError
from midwatch.logbook.wire import Mesh
from midwatch.trainer.config import TrainConfig
from midwatch.trainer.data.held_out import HeldOut
from midwatch.trainer.data.shards import Manifest, ShardWriter, TokenStream

from tests.support.ranks import run_ranks
from tests.support.training import full_tensors, make_step, run_steps, small_config

SEQ_LEN = 32
SEQUENCES = 11
"""Of no mesh a multiple: some ranks have fewer rows in the last round, and some none."""


def corpus(folder: Path, tokens: int = SEQ_LEN * SEQUENCES + 20) -> TokenStream:
    """Write held-out tokens that follow a pattern, in shards that cut through sequences."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(folder, "valid", "<u2", 100)
    writer.add([[(7 * n + n // 13) % 200 for n in range(tokens)]])
    valid = writer.finish()
    nothing = ShardWriter(folder, "train", "<u2", 100).finish()
    manifest = Manifest(1, "key", 200, "<u2", "", 0, train=nothing, valid=valid)
    return TokenStream(folder, manifest, "valid")


def measure(rank: int, folder: str, mesh: Mesh, overrides: dict[str, Any]) -> dict[str, Any]:
    from midwatch.trainer.validation import mean_loss

    train_step = make_step(small_config(**overrides), mesh)
    held_out = HeldOut(corpus(Path(folder) / str(rank)), SEQ_LEN, 1000)
    told: list[tuple[int, int]] = []

    def note(done: int, total: int) -> None:
        told.append((done, total))

    first = mean_loss(train_step, mesh, held_out, note)
    outcomes = run_steps(train_step, rank, range(1, 4))
    later = [mean_loss(train_step, mesh, held_out, note) for _ in range(2)]
    outcomes += run_steps(train_step, rank, range(4, 6))
    weights = full_tensors(train_step.state_dict()["model"])
    return {
        "measured": [first, *later],
        "told": told,
        "losses": [(o.loss, o.grad_norm, o.loss_scale) for o in outcomes],
        "weights": {name: t.numpy().tobytes() for name, t in weights.items()},
    }


def train_alone(rank: int, mesh: Mesh, overrides: dict[str, Any]) -> dict[str, Any]:
    train_step = make_step(small_config(**overrides), mesh)
    outcomes = run_steps(train_step, rank, range(1, 6))
    weights = full_tensors(train_step.state_dict()["model"])
    return {
        "losses": [(o.loss, o.grad_norm, o.loss_scale) for o in outcomes],
        "weights": {name: t.numpy().tobytes() for name, t in weights.items()},
    }


FP32 = {"precision": "fp32"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    folder = tmp_path_factory.mktemp("alone")
    (result,) = run_ranks(measure, 1, str(folder), Mesh(1, 1), FP32)
    measured: list[float] = result["measured"]
    return measured


@pytest.mark.parametrize("mesh", [Mesh(2, 2), Mesh(4, 1), Mesh(1, 4)], ids=str)
def test_every_mesh_measures_the_same(mesh: Mesh, alone: list[float], tmp_path: Path) -> None:
    results = run_ranks(measure, 4, str(tmp_path), mesh, FP32)
    for result in results:
        assert result["measured"] == results[0]["measured"]
        assert result["measured"] == pytest.approx(alone, rel=1e-5)
        # The same weights give the same bits.
        assert result["measured"][1] == result["measured"][2] < result["measured"][0]
    rounds = -(-SEQUENCES // (2 * mesh.dp_shard))
    assert results[0]["told"] == [(done, rounds) for done in range(rounds + 1)] * 3


KINDS: list[dict[str, Any]] = [
    {"model": {"dropout": 0.1}, "blocks_per_unit": 1, "reshard_after_forward": True},
    {"model": {"dropout": 0.1}, "blocks_per_unit": 2, "reshard_after_forward": False},
    {"precision": "bf16", "blocks_per_unit": 1, "activation_checkpointing": True},
]


@pytest.mark.parametrize("overrides", KINDS, ids=["resharded", "kept", "recomputed"])
def test_training_goes_on_as_if_nothing_had_been_measured(
    overrides: dict[str, Any], tmp_path: Path
) -> None:
    """Losses, norms, the scaler and every weight, bit for bit; also measured before any step."""
    with_it = run_ranks(measure, 4, str(tmp_path), Mesh(2, 2), overrides)[0]
    without = run_ranks(train_alone, 4, Mesh(2, 2), overrides)[0]
    assert {key: with_it[key] for key in without} == without


def test_sequences_are_dealt_once_each(tmp_path: Path) -> None:
    held_out = HeldOut(corpus(tmp_path), SEQ_LEN, 1000)
    assert held_out.sequences == SEQUENCES
    assert held_out.tokens == SEQUENCES * SEQ_LEN
    for dp_size, rows in ((1, 1), (2, 2), (4, 3), (7, 1), (16, 4)):
        seen: list[bytes] = []
        lengths = set()
        for dp_rank in range(dp_size):
            dealt = list(held_out.rounds(dp_rank, dp_size, rows))
            lengths.add(len(dealt))
            for batch, counts in dealt:
                assert batch.shape[1] == SEQ_LEN + 1
                assert 1 <= len(batch) <= rows
                seen += [row.tobytes() for row in batch] if counts else []
        assert lengths == {held_out.num_rounds(dp_size, rows)}
        assert len(seen) == len(set(seen)) == SEQUENCES


def test_fewer_sequences_than_there_are(tmp_path: Path) -> None:
    stream = corpus(tmp_path)
    few = HeldOut(stream, SEQ_LEN, 3)
    assert few.sequences == 3
    (batch, _), *_ = few.rounds(0, 1, 3)
    whole, *_ = HeldOut(stream, SEQ_LEN, 1000).rounds(0, 1, 3)
    assert (batch == whole[0]).all()


@pytest.mark.parametrize("tokens", [0, 1, SEQ_LEN])
def test_text_too_short_for_one_sequence_is_refused(tmp_path: Path, tokens: int) -> None:
    with pytest.raises(ConfigError) as refused:
        HeldOut(corpus(tmp_path, tokens), SEQ_LEN, 8)
    assert refused.value.code == "no-held-out-text"
    assert str(SEQ_LEN + 1) in refused.value.message


def test_a_run_that_trains_on_the_held_out_text_is_not_measured_on_it() -> None:
    section = {
        "preset": "nano",
        "data": {"split": "valid"},
        "validation": {"interval_steps": 10},
    }
    with pytest.raises(ValueError, match=r"data\.split valid cannot be measured"):
        TrainConfig.model_validate(section)
    section["validation"] = {"interval_steps": 0}
    assert TrainConfig.model_validate(section).validation.interval_steps == 0
