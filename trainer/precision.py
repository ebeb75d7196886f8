"""How matrix products are made: in the type of their inputs, or in float32 and then rounded.

CPUs have no fast fp16 product. `Float32Product` makes it in float32 and rounds the result to fp16.
It differs from an fp16 tensor core in nothing that matters to training: those accumulate in float32
as well and round once at the end. The rounding runs in both directions, because autograd turns the
casts around: every gradient of an activation or a weight is rounded to fp16 too, so it overflows
above 65504 and underflows below 6e-8 as it would on a GPU. What is stored between products
(activations, gathered weights, their gradients) is fp16 in both arithmetics.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..logbook.errors import ConfigError
from .config import TrainConfig

_COMPUTE = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class Arithmetic(Protocol):
    """The two products of a transformer. Shapes: B batch, H heads, T positions, D head width."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return x @ weight.T + bias in the type of x."""
        ...

    def attention(self, q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, dropout: float) -> Tensor:
        """Return causal attention (B, H, T, D) in the type of q."""
        ...


class Native:
    """Products in the type of their inputs."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def attention(self, q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, dropout: float) -> Tensor:
        return F.scaled_dot_product_attention(
            q_BHTD, k_BHTD, v_BHTD, dropout_p=dropout, is_causal=True
        )


class Float32Product:
    """Products in float32, their results and gradients rounded to the type of the inputs."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wide_bias = None if bias is None else bias.float()
        return F.linear(x.float(), weight.float(), wide_bias).to(x.dtype)

    def attention(self, q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, dropout: float) -> Tensor:
        out = F.scaled_dot_product_attention(
            q_BHTD.float(), k_BHTD.float(), v_BHTD.float(), dropout_p=dropout, is_causal=True
        )
        return out.to(q_BHTD.dtype)


def compute_dtype(config: TrainConfig) -> torch.dtype:
    """Return the type of gathered weights, activations and their gradients."""
    return _COMPUTE[config.precision]


def arithmetic_for(config: TrainConfig, device_type: str) -> Arithmetic:
    """Return the arithmetic that the configuration asks for on this kind of device.

    Raises: ConfigError[fp16-emulation-without-fp16] when emulation is asked for another type.
    """
    emulation = config.fp16_emulation
    if config.precision != "fp16":
        if emulation == "float32-product":
            raise ConfigError(
                "fp16-emulation-without-fp16",
                f"fp16_emulation float32-product has no meaning in precision {config.precision}.",
                remedy="Set precision to fp16, or fp16_emulation to auto.",
            )
        return Native()
    if emulation == "auto":
        emulation = "native" if device_type == "cuda" else "float32-product"
    return Native() if emulation == "native" else Float32Product()
