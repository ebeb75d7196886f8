"""Model FLOPs: what the mathematics of a step needs, whatever the hardware recomputes."""

from __future__ import annotations

from .config import ModelConfig


def model_flops_per_token(model: ModelConfig, seq_len: int) -> float:
    """Return forward and backward FLOPs per trained token, recomputation not counted.

    Two per weight and token forward, four backward; attention scores and values come on top. The
    tied embedding counts once, as the output projection: the lookup is no product.

    Source: arXiv 2204.02311 appendix B (6 N + 12 L H Q T).
    """
    per_layer = 4 * model.width**2 + 2 * model.width * model.ffn_width
    embed_width = model.embed_width or model.width
    projections = 2 * model.width * embed_width if model.embed_width else 0
    weights = model.layers * per_layer + model.padded_vocab * embed_width + projections
    attention = 12 * model.layers * model.width * seq_len
    return float(6 * weights + attention)
