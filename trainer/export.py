"""To and from the Hugging Face OPT format: config.json and safetensors, read and written here.

The two formats hold the same numbers under other names. Ours keeps queries, keys and values in one
weight ordered by head, and rounds the vocabulary up; theirs keeps three weights and the vocabulary
as it is. The output layer is tied to the embedding and not stored.
Source: the OPT folder format as written by transformers' OPTForCausalLM.save_pretrained.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..logbook.errors import ConfigError, IntegrityError
from .config import ModelConfig
from .model import OptModel
from .precision import Native

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARD_BYTES_MAX = 5 * 10**9

_BLOCK_NAMES = {
    "attention_norm": "self_attn_layer_norm",
    "attention.out": "self_attn.out_proj",
    "ffn_norm": "final_layer_norm",
    "ffn.up": "fc1",
    "ffn.down": "fc2",
}
_OTHER_NAMES = {
    "embed": "embed_tokens",
    "positions": "embed_positions",
    "final_norm": "final_layer_norm",
    "project_in": "project_in",
    "project_out": "project_out",
}


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the whole shape of every parameter by name, without allocating any."""
    with torch.device("meta"):
        model = OptModel(config, Native(), recompute=False)
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def hf_config(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Return the content of config.json.

    It names no special tokens: which those are is for the tokenizer to say, and transformers would
    leave the gradient of a padding token's embedding out.
    """
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "activation_function": "relu",
        "attention_dropout": config.dropout,
        "bos_token_id": None,
        "do_layer_norm_before": config.pre_norm,
        "dropout": config.dropout,
        "enable_bias": True,
        "eos_token_id": None,
        "ffn_dim": config.ffn_width,
        "hidden_size": config.width,
        "init_std": config.init_std,
        "layer_norm_elementwise_affine": True,
        "max_position_embeddings": config.max_positions,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "pad_token_id": None,
        "tie_word_embeddings": True,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "vocab_size": config.vocab,
        "word_embed_proj_dim": config.embed_width or config.width,
    }


def model_config_from_hf(section: Mapping[str, Any]) -> ModelConfig:
    """Return our shape of a config.json.

    Raises: ConfigError[not-an-opt-model] when it describes something this trainer cannot be.
    """
    wanted = {
        "model_type": "opt",
        "activation_function": "relu",
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "tie_word_embeddings": True,
    }
    for field, value in wanted.items():
        if section.get(field, value) != value:
            raise ConfigError(
                "not-an-opt-model",
                f"config.json has {field} {section[field]!r}, this trainer knows {value!r} only.",
                remedy="Import an OPT model as released by its authors.",
            )
    width, embed_width = section["hidden_size"], section["word_embed_proj_dim"]
    return ModelConfig(
        layers=section["num_hidden_layers"],
        width=width,
        heads=section["num_attention_heads"],
        vocab=section["vocab_size"],
        ffn_width=section["ffn_dim"],
        max_positions=section["max_position_embeddings"],
        pre_norm=section["do_layer_norm_before"],
        embed_width=None if embed_width == width else embed_width,
        dropout=section["dropout"],
        init_std=section["init_std"],
    )


def to_hf(name: str, tensor: Tensor, config: ModelConfig) -> dict[str, Tensor]:
    """Return what one of our whole parameters is called and looks like there."""
    module, _, kind = name.rpartition(".")
    if not module.startswith("blocks."):
        rows = config.vocab if module == "embed" else tensor.shape[0]
        return {f"model.decoder.{_OTHER_NAMES[module]}.{kind}": tensor[:rows]}
    _, layer, inner = module.split(".", 2)
    prefix = f"model.decoder.layers.{layer}"
    if inner != "attention.qkv":
        return {f"{prefix}.{_BLOCK_NAMES[inner]}.{kind}": tensor}
    by_head = tensor.view(config.heads, 3, config.head_width, -1)
    shape = (config.width, *tensor.shape[1:])
    return {
        f"{prefix}.self_attn.{letter}_proj.{kind}": by_head[:, index].reshape(shape)
        for index, letter in enumerate("qkv")
    }


def from_hf(name: str, theirs: Mapping[str, Tensor], config: ModelConfig) -> Tensor:
    """Return one of our whole parameters in float32 from theirs; the inverse of to_hf.

    Raises: IntegrityError[hf-tensor-missing].
    """
    module, _, kind = name.rpartition(".")
    if not module.startswith("blocks."):
        tensor = _get(theirs, f"model.decoder.{_OTHER_NAMES[module]}.{kind}")
        padding = config.padded_vocab - config.vocab if module == "embed" else 0
        return F.pad(tensor, (0, 0, 0, padding)) if padding else tensor
    _, layer, inner = module.split(".", 2)
    prefix = f"model.decoder.layers.{layer}"
    if inner != "attention.qkv":
        return _get(theirs, f"{prefix}.{_BLOCK_NAMES[inner]}.{kind}")
    parts = [_get(theirs, f"{prefix}.self_attn.{letter}_proj.{kind}") for letter in "qkv"]
    by_head = [part.view(config.heads, config.head_width, -1) for part in parts]
    return torch.stack(by_head, dim=1).reshape(3 * config.width, *parts[0].shape[1:])


def export_hf(
    folder: Path,
    config: ModelConfig,
    parameters: Mapping[str, Tensor],
    *,
    dtype: torch.dtype = torch.float16,
    write: bool = True,
) -> None:
    """Write a model as a folder that transformers' from_pretrained loads.

    parameters may be DTensors of any mesh: then every rank of it must call, and one of them with
    write set. They are gathered one by one, so that no rank holds more than one file of at most
    5 GB. Each file appears complete or not at all, config.json last; an export that was there goes.
    Raises: ConfigError[missing-parameter] when parameters lack one of the model's.
    """
    shapes = parameter_shapes(config)
    missing = sorted(shapes.keys() - parameters.keys())
    if missing:
        raise ConfigError(
            "missing-parameter",
            f"the state lacks {len(missing)} parameters of the model, first of all {missing[0]}.",
            remedy="Export from a state of the same model.",
        )
    if write:
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
    files = _plan_files(shapes, dtype.itemsize)
    weight_map: dict[str, str] = {}
    for file, names in files.items():
        tensors: dict[str, Tensor] = {}
        for name in names:
            tensor = parameters[name].detach()
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if write:
                tensors |= to_hf(name, whole.to("cpu", dtype), config)
        if write:
            _write_tensors(folder / file, {n: t.contiguous() for n, t in tensors.items()})
            weight_map |= dict.fromkeys(tensors, file)
    if write:
        if len(files) > 1:
            _write_json(folder / _INDEX, {"metadata": {}, "weight_map": weight_map})
        _write_json(folder / "config.json", hf_config(config, dtype))


def _clear(folder: Path) -> None:
    """Remove an earlier export: readers would take its weights where they are named otherwise."""
    for pattern in ("config.json", _INDEX, "model.safetensors", "model-*-of-*.safetensors"):
        for path in folder.glob(pattern):
            path.unlink()


def import_hf(folder: Path) -> tuple[ModelConfig, Iterator[tuple[str, Tensor]]]:
    """Return the shape of a model and its whole float32 parameters, read one at a time.

    Raises: ConfigError[not-an-opt-model], IntegrityError[hf-tensor-missing],
            IntegrityError[hf-shape-mismatch]; the last two while iterating.
    """
    try:
        section = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise ConfigError(
            "not-an-opt-model",
            f"{folder} has no config.json.",
            remedy="Give a folder as written by save_pretrained.",
        ) from None
    config = model_config_from_hf(section)
    return config, _read_parameters(folder, config)


def _read_parameters(folder: Path, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    theirs = _LazyTensors(folder)
    for name, shape in parameter_shapes(config).items():
        tensor = from_hf(name, theirs, config)
        if tuple(tensor.shape) != shape:
            raise IntegrityError(
                "hf-shape-mismatch",
                f"{name} in {folder} has shape {tuple(tensor.shape)}, config.json says {shape}.",
                remedy="Fetch the model again; its files do not belong together.",
            )
        yield name, tensor


class _LazyTensors(Mapping[str, Tensor]):
    """The tensors of a folder by name, each read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        index = folder / _INDEX
        if index.exists():
            files = json.loads(index.read_text())["weight_map"]
            self._files = {name: folder / file for name, file in files.items()}
            return
        single = folder / _SINGLE
        if not single.exists():
            raise ConfigError(
                "not-an-opt-model",
                f"{folder} has neither {_SINGLE} nor {_INDEX}.",
                remedy="Convert the weights to safetensors first.",
            )
        with safe_open(str(single), framework="pt") as opened:
            self._files = dict.fromkeys(opened.keys(), single)

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(str(self._files[name]), framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
            return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _get(theirs: Mapping[str, Tensor], name: str) -> Tensor:
    """Return a tensor in float32 by its name, with or without the outer "model." """
    for candidate in (name, name.removeprefix("model.")):
        if candidate in theirs:
            return theirs[candidate].float()
    raise IntegrityError(
        "hf-tensor-missing",
        f"{name} is not among the {len(theirs)} tensors of the model.",
        remedy="Fetch the model again, or import one that is complete.",
    )


def _plan_files(shapes: Mapping[str, tuple[int, ...]], itemsize: int) -> dict[str, list[str]]:
    """Return file name -> our parameter names, in files of bounded size."""
    groups: list[list[str]] = [[]]
    size_bytes = 0
    for name, shape in shapes.items():
        bytes_more = itemsize * int(torch.Size(shape).numel())
        if groups[-1] and size_bytes + bytes_more > _SHARD_BYTES_MAX:
            groups.append([])
            size_bytes = 0
        groups[-1].append(name)
        size_bytes += bytes_more
    if len(groups) == 1:
        return {_SINGLE: groups[0]}
    total = len(groups)
    return {f"model-{i:05d}-of-{total:05d}.safetensors": g for i, g in enumerate(groups, 1)}


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, str(partial), metadata={"format": "pt"})
    os.replace(partial, path)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    os.replace(partial, path)
