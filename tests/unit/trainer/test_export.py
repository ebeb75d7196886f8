"""Our model is transformers' OPT: equal logits with equal weights, and folders either can read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from midwatch.checkpoints.dcp import Fingerprint, SaveHeader, Saver, SaverConfig
from midwatch.logbook.errors import ConfigError, IntegrityError
from midwatch.logbook.wire import CheckpointTags, Hyper, Mesh
from midwatch.trainer import export, export_checkpoint
from midwatch.trainer.config import ModelConfig
from midwatch.trainer.export import export_hf, import_hf, parameter_shapes
from midwatch.trainer.model import OptModel
from midwatch.trainer.precision import Native
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM

from tests.support.ranks import run_ranks
from tests.support.training import full_tensors, make_step, run_steps, small_config

# 125M's width and heads, cut in depth and vocabulary.
PRE_NORM = ModelConfig(layers=3, width=768, heads=12, vocab=1000, max_positions=64)
POST_NORM = ModelConfig(
    layers=3, width=256, heads=16, vocab=997, max_positions=64, pre_norm=False, embed_width=128
)
BOTH = pytest.mark.parametrize("config", [PRE_NORM, POST_NORM], ids=["pre-norm", "post-norm"])


def _random_weights(config: ModelConfig) -> dict[str, Tensor]:
    """Return weights with no structure left to hide an error: norms and biases are random too."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(shape, generator=generator) * 0.05
        for name, shape in parameter_shapes(config).items()
    }
    for name, tensor in weights.items():
        if name.endswith("norm.weight"):
            tensor += 1.0
    # Rows beyond the vocabulary belong to no token; importing makes them zero.
    weights["embed.weight"][config.vocab :] = 0.0
    return weights


def _ours(config: ModelConfig, weights: dict[str, Tensor]) -> OptModel:
    model = OptModel(config, Native(), recompute=False)
    model.load_state_dict(weights)
    return model.eval()


def _tokens(config: ModelConfig) -> Tensor:
    return torch.randint(0, config.vocab, (2, 64), generator=torch.Generator().manual_seed(1))


@BOTH
def test_logits_equal_those_of_transformers(config: ModelConfig, tmp_path: Path) -> None:
    weights = _random_weights(config)
    export_hf(tmp_path, config, weights, dtype=torch.float32)
    theirs, report = OPTForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = _tokens(config)
    with torch.no_grad():
        ours = _ours(config, weights)(tokens)[..., : config.vocab]
        expected = theirs.eval()(tokens).logits
    assert expected.std() > 0.1
    assert torch.max((ours - expected).abs()) <= 1e-5


@BOTH
def test_a_folder_by_transformers_is_imported(config: ModelConfig, tmp_path: Path) -> None:
    torch.manual_seed(3)
    theirs = OPTForCausalLM(OPTConfig(**export.hf_config(config, torch.float32)))
    theirs.save_pretrained(tmp_path)
    found, parameters = import_hf(tmp_path)
    assert found == config
    tokens = _tokens(config)
    with torch.no_grad():
        ours = _ours(found, dict(parameters))(tokens)[..., : config.vocab]
        expected = theirs.eval()(tokens).logits
    assert torch.max((ours - expected).abs()) <= 1e-5


@BOTH
@pytest.mark.parametrize("bytes_max", [10**9, 10**6], ids=["one file", "many files"])
def test_export_and_import_are_inverse(
    config: ModelConfig, bytes_max: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_SHARD_BYTES_MAX", bytes_max)
    weights = _random_weights(config)
    export_hf(tmp_path, config, weights, dtype=torch.float32)
    assert (tmp_path / "model.safetensors.index.json").exists() == (bytes_max == 10**6)
    found, parameters = import_hf(tmp_path)
    loaded = dict(parameters)
    assert found == config
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_many_files_are_read_by_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_SHARD_BYTES_MAX", 10**6)
    export_hf(tmp_path, POST_NORM, _random_weights(POST_NORM))
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    theirs, report = OPTForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert theirs.dtype == torch.float16


@pytest.mark.parametrize("max_bytes", [(5 * 10**9, 10**6), (10**6, 5 * 10**9)])
def test_an_export_that_was_there_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_bytes: tuple[int, int]
) -> None:
    weights = _random_weights(POST_NORM)
    for size, factor in zip(max_bytes, (0.0, 1.0), strict=True):
        monkeypatch.setattr(export, "_SHARD_BYTES_MAX", size)
        scaled = {name: factor * tensor for name, tensor in weights.items()}
        export_hf(tmp_path, POST_NORM, scaled, dtype=torch.float32)
    ours = dict(import_hf(tmp_path)[1])
    assert all(torch.equal(ours[name], weights[name]) for name in weights)
    theirs = OPTForCausalLM.from_pretrained(tmp_path).get_input_embeddings().weight
    assert theirs.abs().sum() > 0.0


def _train_and_export(rank: int, folder: str) -> float:
    config = small_config(precision="fp32")
    train_step = make_step(config, Mesh(2, 2))
    run_steps(train_step, rank, range(1, 4))
    export_hf(
        Path(folder),
        config.model,
        train_step.parameters,
        dtype=torch.float32,
        write=rank == 0,
    )
    return run_steps(train_step, rank, range(4, 5))[0].loss


def _start_from(rank: int, folder: str) -> tuple[float, bool]:
    train_step = make_step(small_config(precision="fp32", seed=9, init_from=folder), Mesh(1, 2))
    whole = full_tensors(train_step.state_dict()["model"])
    is_equal = all(torch.equal(whole[name], t) for name, t in import_hf(Path(folder))[1])
    return run_steps(train_step, rank, range(4, 5))[0].loss, is_equal


def test_a_sharded_run_is_exported_and_its_export_starts_another(tmp_path: Path) -> None:
    loss = run_ranks(_train_and_export, 4, str(tmp_path))[0]
    for imported_loss, is_equal in run_ranks(_start_from, 2, str(tmp_path)):
        assert is_equal
        assert imported_loss == pytest.approx(loss, rel=1e-5)


def _start_from_another_model(rank: int, folder: str) -> str:
    try:
        make_step(small_config(init_from=folder), Mesh(1, 1))
    except IntegrityError as error:
        return error.code
    return "accepted"


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    export_hf(tmp_path, POST_NORM, _random_weights(POST_NORM))
    assert run_ranks(_start_from_another_model, 1, str(tmp_path)) == ["parameter-mismatch"]


def _train_and_save(rank: int, run_dir: str) -> dict[str, bytes]:
    train_step = make_step(small_config(), Mesh(2, 2))
    run_steps(train_step, rank, range(1, 3))
    fingerprint = Fingerprint(
        python="", torch="", midwatch="", platform="", config_digest="", gpu=None
    )
    saver = Saver(
        SaverConfig(
            run="test",
            run_dir=run_dir,
            attempt=1,
            rank=rank,
            world_size=4,
            mesh=train_step.mesh,
            fingerprint=fingerprint,
        )
    )
    tags = CheckpointTags(0.0, 0.0, 0.0, None, 0.0)
    header = SaveHeader(step=2, data_step=2, hyper=Hyper(), tags=tags)
    assert saver.save(train_step.state_dict(), header, sync=True).result().stage == "committed"
    whole = full_tensors(train_step.state_dict()["model"])
    return {name: t.numpy().tobytes() for name, t in whole.items()} if rank == 0 else {}


def test_a_checkpoint_is_exported_without_its_ranks(tmp_path: Path) -> None:
    weights = run_ranks(_train_and_save, 4, str(tmp_path))[0]
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    spec = tmp_path / "spec.yaml"
    section = small_config().model_dump(mode="json")
    spec.write_text(json.dumps({"name": "test", "mesh": {"dp_shard": 2}, "trainer": section}))
    out = tmp_path / "out"
    arguments = [str(spec), str(checkpoint), str(out), "--dtype", "float32"]
    assert export_checkpoint.main(arguments) == 0
    found, parameters = import_hf(out)
    assert found == small_config().model
    assert {name: t.numpy().tobytes() for name, t in parameters} == weights


def _spoil(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_models_this_trainer_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        import_hf(tmp_path)
    assert caught.value.code == "not-an-opt-model"
    export_hf(tmp_path, POST_NORM, _random_weights(POST_NORM))
    _spoil(tmp_path, activation_function="gelu")
    with pytest.raises(ConfigError) as caught:
        import_hf(tmp_path)
    assert caught.value.code == "not-an-opt-model"


def test_files_that_do_not_belong_together_are_noticed(tmp_path: Path) -> None:
    export_hf(tmp_path, POST_NORM, _random_weights(POST_NORM))
    _spoil(tmp_path, max_position_embeddings=128)
    with pytest.raises(IntegrityError) as caught:
        dict(import_hf(tmp_path)[1])
    assert caught.value.code == "hf-shape-mismatch"
    _spoil(tmp_path, max_position_embeddings=64, num_hidden_layers=4)
    with pytest.raises(IntegrityError) as caught:
        dict(import_hf(tmp_path)[1])
    assert caught.value.code == "hf-tensor-missing"


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    weights = _random_weights(POST_NORM)
    del weights["embed.weight"]
    with pytest.raises(ConfigError) as caught:
        export_hf(tmp_path / "out", POST_NORM, weights)
    assert caught.value.code == "missing-parameter"
    assert not (tmp_path / "out").exists()
