"""A trainer section is checked whole, without torch, and every complaint names its field."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from midwatch.logbook.errors import ConfigError
from midwatch.logbook.wire import Mesh
from midwatch.trainer.config import TrainConfig, check_mesh
from midwatch.trainer.presets import preset_names
from pydantic import BaseModel, ValidationError

PAPER = {
    # layers, heads, width, LR, sequences of 2048 per batch: arXiv 2205.01068 Table 1.
    "125M": (12, 12, 768, 6.0e-4, 256),
    "350M": (24, 16, 1024, 3.0e-4, 256),
    "1.3B": (24, 32, 2048, 2.0e-4, 512),
    "2.7B": (32, 32, 2560, 1.6e-4, 512),
    "6.7B": (32, 32, 4096, 1.2e-4, 1024),
    "13B": (40, 40, 5120, 1.0e-4, 2048),
    "30B": (48, 56, 7168, 1.0e-4, 2048),
    "66B": (64, 72, 9216, 0.8e-4, 1024),
    "175B": (96, 96, 12288, 1.2e-4, 992),
}


@pytest.mark.parametrize("name", PAPER)
def test_presets_are_the_papers(name: str) -> None:
    config = TrainConfig.model_validate({"preset": name})
    model = config.model
    row = (model.layers, model.heads, model.width, config.optimizer.lr, config.global_batch_size)
    assert row == PAPER[name]
    assert model.ffn_width == 4 * model.width
    assert (model.vocab, config.seq_len, config.precision) == (50_272, 2048, "fp16")
    assert (config.optimizer.beta1, config.optimizer.beta2) == (0.9, 0.95)
    assert (config.optimizer.weight_decay, config.optimizer.grad_clip) == (0.1, 1.0)
    assert config.schedule.end_lr_frac == 0.1
    assert (model.pre_norm, model.embed_width) == ((False, 512) if name == "350M" else (True, None))


@pytest.mark.parametrize("name", preset_names())
def test_a_valid_config_survives_being_dumped(name: str) -> None:
    config = TrainConfig.model_validate({"preset": name, "seed": 3})
    assert TrainConfig.model_validate(config.model_dump()) == config
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config


def test_what_is_written_wins_over_the_preset() -> None:
    config = TrainConfig.model_validate(
        {"preset": "tiny", "model": {"vocab": 512}, "optimizer": {"lr": 0.5}, "steps": 30}
    )
    assert (config.model.vocab, config.model.width) == (512, 128)
    assert (config.optimizer.lr, config.optimizer.beta2) == (0.5, 0.95)
    assert (config.schedule.decay_steps, config.schedule.warmup_steps) == (30, 15)


def test_a_model_can_be_given_without_a_preset() -> None:
    section = {
        "model": {"layers": 1, "width": 16, "heads": 2, "vocab": 50},
        "seq_len": 8,
        "optimizer": {"lr": 1e-3},
        "steps": 10,
    }
    config = TrainConfig.model_validate(section)
    assert (config.model.ffn_width, config.model.padded_vocab) == (64, 56)
    assert config.schedule.decay_steps == 10


@pytest.mark.parametrize(
    ("section", "field", "said"),
    [
        ({"preset": "125m"}, ("preset",), "125M, 350M"),
        ({"preset": "tiny", "model": {"heads": 3}}, ("model", "heads"), "[1, 2, 4, 8, 16]"),
        ({"preset": "350M", "model": {"pre_norm": True}}, ("model",), "embed_width"),
        ({"preset": "tiny", "model": {"embed_width": 64}}, ("model",), "pre_norm"),
        ({"preset": "tiny", "seq_len": 4096}, ("seq_len",), "128"),
        ({"preset": "tiny", "schedule": {"warmup_steps": 900}}, ("schedule",), "400"),
        ({"preset": "tiny", "loss_scaler": {"init": 2.0**20}}, ("loss_scaler",), "max"),
        ({"preset": "tiny", "global_batch_size": 7}, ("global_batch_size",), "4"),
        ({"preset": "tiny", "precision": "fp8"}, ("precision",), "fp16"),
        ({"preset": "tiny", "optimizer": {"lr": -1}}, ("optimizer", "lr"), "greater than 0"),
        ({"preset": "tiny", "learning_rate": 1}, ("learning_rate",), "not permitted"),
        ({"preset": "tiny", "model": {"depth": 1}}, ("model", "depth"), "not permitted"),
        ({}, ("model",), "required"),
        ({"preset": "tiny", "model": 3}, ("model",), "dictionary"),
        ({"preset": ["tiny"]}, ("preset",), "string"),
    ],
)
def test_a_wrong_field_is_named_with_what_is_allowed(
    section: dict[str, Any], field: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainConfig.model_validate(section)
    complaint = {error["loc"]: error["msg"] for error in caught.value.errors()}
    assert said in complaint[field]


def test_every_field_says_what_it_is() -> None:
    def missing(model: type[BaseModel]) -> list[str]:
        found = []
        for name, field in model.model_fields.items():
            if not field.description:
                found.append(f"{model.__name__}.{name}")
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                found += missing(inner)
        return found

    assert missing(TrainConfig) == []


def test_the_global_batch_decides_the_microbatches() -> None:
    config = TrainConfig.model_validate({"preset": "tiny", "global_batch_size": 16})
    assert [config.microbatches(Mesh(dp, 2)) for dp in (1, 2, 4)] == [4, 2, 1]
    assert {config.sequences_per_step(Mesh(dp, 2)) for dp in (1, 2, 4)} == {16}
    with pytest.raises(ConfigError) as caught:
        check_mesh(config, Mesh(3, 1))
    assert caught.value.code == "mesh-does-not-fit"


def test_grad_accum_written_replaces_the_presets_global_batch() -> None:
    config = TrainConfig.model_validate({"preset": "125M", "grad_accum": 3})
    assert config.global_batch_size is None
    assert config.microbatches(Mesh(8, 1)) == 3


def test_the_papers_mesh_fits_the_175b() -> None:
    config = TrainConfig.model_validate({"preset": "175B"})
    check_mesh(config, Mesh(124, 8), 992)
    assert config.microbatches(Mesh(124, 8)) == 1


def test_importing_the_config_does_not_import_torch() -> None:
    code = "import midwatch.trainer.config, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
