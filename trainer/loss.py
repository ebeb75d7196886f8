"""Cross entropy in float32 over a vocabulary that may be split across a tensor-parallel group.

Split, no rank ever holds a whole row of logits: the maximum, and then the sum of exponentials
together with the target's logit, are reduced over the group, two small collectives in all.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .collectives import TpGroup


class _SplitCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor, tp: TpGroup) -> Tensor:
        rows = logits_NV.shape[1]
        local_N = targets_N - tp.index * rows
        here_N = (local_N >= 0) & (local_N < rows)
        local_N = local_N.masked_fill(~here_N, 0)

        max_N = tp.all_reduce(logits_NV.amax(dim=1).float(), op=dist.ReduceOp.MAX)
        shifted_NV = logits_NV.float() - max_N[:, None]
        target_N = shifted_NV.gather(1, local_N[:, None])[:, 0].masked_fill(~here_N, 0.0)
        exp_NV = shifted_NV.exp_()
        sum_N, target_N = tp.all_reduce(torch.stack([exp_NV.sum(dim=1), target_N])).unbind()
        ctx.save_for_backward(exp_NV.div_(sum_N[:, None]), local_N, here_N)
        ctx.logits_dtype = logits_NV.dtype
        return sum_N.log() - target_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        probs_NV, local_N, here_N = ctx.saved_tensors
        grad_NV = probs_NV.clone()
        grad_NV.scatter_add_(1, local_N[:, None], -here_N[:, None].to(grad_NV.dtype))
        grad_NV *= grads[0][:, None]
        return grad_NV.to(ctx.logits_dtype), None, None


def token_losses(logits_NV: Tensor, targets_N: Tensor, tp: TpGroup | None) -> Tensor:
    """Return the cross entropy of each token in nats.

    Shapes:  logits_NV (N, V) with this rank's V columns of the vocabulary; targets_N (N,) int64,
             numbered over the whole vocabulary; result (N,) float32, equal on all tp ranks.
    """
    if tp is None:
        return F.cross_entropy(logits_NV.float(), targets_N, reduction="none")
    return cast(Tensor, _SplitCrossEntropy.apply(logits_NV, targets_N, tp))
