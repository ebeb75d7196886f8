"""The named models: every OPT size with its batch and learning rate, and three sizes for CPUs.

A preset is a set of defaults under a trainer section: whatever the user writes wins. No torch here,
so that a spec can be checked before anything heavy is imported.
Source: arXiv 2205.01068 Table 1 (layers, heads, width, LR, batch) and section 2.2 (schedule).
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

OPT_VOCAB = 50_272
OPT_SEQ_LEN = 2048
_TOTAL_TOKENS = 300_000_000_000
_WARMUP_TOKENS = 375_000_000
_175B_WARMUP_STEPS = 2000


class _Opt(NamedTuple):
    layers: int
    heads: int
    width: int
    lr: float
    batch_tokens: int


_MI = 1 << 20

# 175B: 2M tokens are 8 sequences on each of 124 data-parallel ranks, that is 992 sequences.
_OPT = {
    "125M": _Opt(12, 12, 768, 6.0e-4, _MI // 2),
    "350M": _Opt(24, 16, 1024, 3.0e-4, _MI // 2),
    "1.3B": _Opt(24, 32, 2048, 2.0e-4, _MI),
    "2.7B": _Opt(32, 32, 2560, 1.6e-4, _MI),
    "6.7B": _Opt(32, 32, 4096, 1.2e-4, 2 * _MI),
    "13B": _Opt(40, 40, 5120, 1.0e-4, 4 * _MI),
    "30B": _Opt(48, 56, 7168, 1.0e-4, 4 * _MI),
    "66B": _Opt(64, 72, 9216, 0.8e-4, 2 * _MI),
    "175B": _Opt(96, 96, 12288, 1.2e-4, 992 * OPT_SEQ_LEN),
}


def _paper(name: str, row: _Opt) -> dict[str, Any]:
    steps = _TOTAL_TOKENS // row.batch_tokens
    warmup_steps = _WARMUP_TOKENS // row.batch_tokens
    if name == "175B":
        warmup_steps = _175B_WARMUP_STEPS
    model: dict[str, Any] = {
        "layers": row.layers,
        "heads": row.heads,
        "width": row.width,
        "vocab": OPT_VOCAB,
        "max_positions": OPT_SEQ_LEN,
        "dropout": 0.1,
    }
    if name == "350M":
        # The released 350M model alone normalises after each residual sum, has no final layer
        # norm, and projects 512-wide embeddings up to its width and back.
        model |= {"pre_norm": False, "embed_width": 512}
    return {
        "model": model,
        "precision": "fp16",
        "seq_len": OPT_SEQ_LEN,
        "micro_batch_size": 8 if name == "175B" else 4,
        "global_batch_size": row.batch_tokens // OPT_SEQ_LEN,
        "activation_checkpointing": row.width >= 4096,
        "steps": steps,
        "optimizer": {"lr": row.lr},
        "schedule": {"warmup_steps": warmup_steps, "decay_steps": steps},
    }


def _cpu(
    *, layers: int, heads: int, width: int, vocab: int, seq_len: int, lr: float
) -> dict[str, Any]:
    return {
        "model": {
            "layers": layers,
            "heads": heads,
            "width": width,
            "vocab": vocab,
            "max_positions": seq_len,
        },
        "precision": "fp16",
        "seq_len": seq_len,
        "micro_batch_size": 4,
        "blocks_per_unit": layers,
        "reshard_after_forward": False,
        "steps": 400,
        "optimizer": {"lr": lr},
        "schedule": {"warmup_steps": 20},
        # These overflow at 128 and above in their first steps; OPT's 4 would be as safe, and 64
        # leaves more to see when a run goes wrong.
        "loss_scaler": {"init": 64.0},
    }


_PRESETS: dict[str, dict[str, Any]] = {name: _paper(name, row) for name, row in _OPT.items()} | {
    "nano": _cpu(layers=2, heads=2, width=32, vocab=512, seq_len=32, lr=2e-3),
    "tiny": _cpu(layers=4, heads=4, width=128, vocab=2048, seq_len=128, lr=1e-3),
}


def preset_names() -> list[str]:
    """Return the names of all presets, smallest models first."""
    return sorted(_PRESETS, key=lambda name: _size(_PRESETS[name]["model"]))


def preset_defaults(name: str) -> dict[str, Any]:
    """Return a fresh copy of the trainer section a preset stands for.

    Raises: KeyError when there is no such preset; TrainConfig checks the name before it asks.
    """
    return copy.deepcopy(_PRESETS[name])


def _size(model: dict[str, Any]) -> int:
    return int(model["layers"]) * int(model["width"]) ** 2
