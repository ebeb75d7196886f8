"""The OPT decoder.

Shape suffixes: B sequences, T positions, W width, H heads of this rank, D head width,
V vocabulary rows of this rank, N = B * T tokens.
Each module knows its tensor-parallel group (tp), None when its weights are whole; `parallelize`
sets it together with the split of the weights. Weights are stored in float32 and reach forward() in
the compute type, gathered by FSDP.
Source: arXiv 2205.01068 section 2.1; facebook/opt-* for the position offset and the 350M quirk.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .collectives import TpGroup, spread_over_tp, sum_over_tp
from .config import ModelConfig
from .dtensors import part_of
from .loss import token_losses
from .precision import Arithmetic

POSITION_OFFSET = 2
"""OPT's position table has two rows before that of the first position, never used here."""


class Forward(NamedTuple):
    """What one microbatch gives: the summed loss to differentiate, and the final layer's norm."""

    loss_sum: Tensor
    activation_norm_sum: Tensor


class Linear(nn.Module):
    """x @ weight.T + bias. When its input is split over tp (sums), the products are summed."""

    def __init__(self, wide: tuple[int, int], arithmetic: Arithmetic, bias: bool = True) -> None:
        super().__init__()
        self.arithmetic = arithmetic
        self.weight = nn.Parameter(torch.empty(*wide))
        self.bias = nn.Parameter(torch.empty(wide[0])) if bias else None
        self.sums: TpGroup | None = None

    def forward(self, x: Tensor) -> Tensor:
        weight = part_of(self.weight)
        bias = None if self.bias is None else part_of(self.bias)
        if self.sums is None:
            return self.arithmetic.linear(x, weight, bias)
        product = sum_over_tp(self.arithmetic.linear(x, weight, None), self.sums)
        return product if bias is None else product + bias


class LayerNorm(nn.Module):
    """Layer norm with OPT's epsilon; computed in float32 whatever the type of its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = part_of(self.weight), part_of(self.bias)
        return F.layer_norm(x, weight.shape, weight, bias, eps=1e-5)


class Embedding(nn.Module):
    """Rows of a table; split over tp, each rank looks up the rows it holds and the rest is zero."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))
        self.tp: TpGroup | None = None

    def forward(self, tokens_BT: Tensor) -> Tensor:
        weight_VW = part_of(self.weight)
        if self.tp is None:
            return F.embedding(tokens_BT, weight_VW)
        rows = weight_VW.shape[0]
        local_BT = tokens_BT - self.tp.index * rows
        elsewhere_BT = (local_BT < 0) | (local_BT >= rows)
        found_BTW = F.embedding(local_BT.masked_fill(elsewhere_BT, 0), weight_VW)
        return sum_over_tp(found_BTW.masked_fill(elsewhere_BT.unsqueeze(-1), 0.0), self.tp)


class Attention(nn.Module):
    """Causal self-attention. The rows of qkv are ordered (head, q|k|v, D), so tp splits by head."""

    def __init__(self, config: ModelConfig, arithmetic: Arithmetic) -> None:
        super().__init__()
        self.arithmetic = arithmetic
        self.head_width = config.head_width
        self.dropout = config.dropout
        self.qkv = Linear((3 * config.width, config.width), arithmetic)
        self.out = Linear((config.width, config.width), arithmetic)
        self.tp: TpGroup | None = None

    def forward(self, x_BTW: Tensor) -> Tensor:
        batch, positions, _ = x_BTW.shape
        qkv = self.qkv(spread_over_tp(x_BTW, self.tp))
        q, k, v = qkv.view(batch, positions, -1, 3, self.head_width).permute(3, 0, 2, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed_BHTD = self.arithmetic.attention(q, k, v, dropout)
        result: Tensor = self.out(mixed_BHTD.transpose(1, 2).reshape(batch, positions, -1))
        return result


class FeedForward(nn.Module):
    """Two linear layers around a ReLU; tp splits the layer between them."""

    def __init__(self, config: ModelConfig, arithmetic: Arithmetic) -> None:
        super().__init__()
        self.up = Linear((config.ffn_width, config.width), arithmetic)
        self.down = Linear((config.width, config.ffn_width), arithmetic)
        self.tp: TpGroup | None = None

    def forward(self, x_BTW: Tensor) -> Tensor:
        result: Tensor = self.down(F.relu(self.up(spread_over_tp(x_BTW, self.tp))))
        return result


class Block(nn.Module):
    """Attention and feed-forward, each on a residual branch."""

    def __init__(self, config: ModelConfig, arithmetic: Arithmetic, recompute: bool) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.dropout = config.dropout
        self.recompute = recompute
        self.attention_norm = LayerNorm(config.width)
        self.attention = Attention(config, arithmetic)
        self.ffn_norm = LayerNorm(config.width)
        self.ffn = FeedForward(config, arithmetic)

    def forward(self, x_BTW: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            # Inside FSDP's hooks, so the second forward finds the weights gathered already.
            result: Tensor = checkpoint(
                self._forward, x_BTW, use_reentrant=False, preserve_rng_state=self.dropout > 0.0
            )
            return result
        return self._forward(x_BTW)

    def _forward(self, x_BTW: Tensor) -> Tensor:
        x_BTW = self._branch(x_BTW, self.attention_norm, self.attention)
        return self._branch(x_BTW, self.ffn_norm, self.ffn)

    def _branch(self, x_BTW: Tensor, norm: nn.Module, layer: nn.Module) -> Tensor:
        out_BTW = layer(norm(x_BTW) if self.pre_norm else x_BTW)
        if self.dropout > 0.0:
            out_BTW = F.dropout(out_BTW, self.dropout, self.training)
        x_BTW = x_BTW + out_BTW
        return x_BTW if self.pre_norm else norm(x_BTW)


class OptModel(nn.Module):
    """The decoder with its tied embedding and its loss."""

    def __init__(self, config: ModelConfig, arithmetic: Arithmetic, recompute: bool) -> None:
        super().__init__()
        self.config = config
        self.arithmetic = arithmetic
        embed_width = config.embed_width or config.width
        self.embed = Embedding(config.padded_vocab, embed_width)
        self.positions = Embedding(config.max_positions + POSITION_OFFSET, config.width)
        self.blocks = nn.ModuleList(
            Block(config, arithmetic, recompute) for _ in range(config.layers)
        )
        self.final_norm = LayerNorm(config.width) if config.pre_norm else None
        self.project_in: Linear | None = None
        self.project_out: Linear | None = None
        if config.embed_width is not None:
            self.project_in = Linear((config.width, embed_width), arithmetic, bias=False)
            self.project_out = Linear((embed_width, config.width), arithmetic, bias=False)

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor | None = None) -> Forward | Tensor:
        """Return the loss and activation norm over targets, or this rank's logits without them.

        Shapes: tokens_BT, targets_BT int64. Logits (B, T, V) in the compute type.
        """
        hidden_BTW = self._hidden(tokens_BT)
        logits_BTV = self._logits(hidden_BTW)
        if targets_BT is None:
            return logits_BTV
        losses_N = token_losses(logits_BTV.flatten(0, 1), targets_BT.flatten(), self.embed.tp)
        with torch.no_grad():
            norm_sum = torch.linalg.vector_norm(hidden_BTW, dim=-1, dtype=torch.float32).sum()
        return Forward(losses_N.sum(), norm_sum)

    def _hidden(self, tokens_BT: Tensor) -> Tensor:
        x_BTW: Tensor = self.embed(tokens_BT)
        if self.project_in is not None:
            x_BTW = self.project_in(x_BTW)
        first, last = POSITION_OFFSET, POSITION_OFFSET + tokens_BT.shape[1]
        x_BTW = x_BTW + self.positions(torch.arange(first, last, device=tokens_BT.device))
        for block in self.blocks:
            x_BTW = block(x_BTW)
        return x_BTW if self.final_norm is None else self.final_norm(x_BTW)

    def _logits(self, hidden_BTW: Tensor) -> Tensor:
        if self.project_out is not None:
            hidden_BTW = self.project_out(hidden_BTW)
        spread = spread_over_tp(hidden_BTW, self.embed.tp)
        return self.arithmetic.linear(spread, part_of(self.embed.weight), None)
