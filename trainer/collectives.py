"""The collectives of a step, and how long this rank stood in them.

Tensor parallelism needs two functions that are each other's gradient: one hands an activation to
all ranks of the group and sums its gradient over them, the other sums an activation and hands its
gradient to all. FSDP's own all-gather and reduce-scatter go through wrappers that only time them.
On CPU a collective blocks its caller, so the time is that of the call; on GPUs calls return at once
and nothing is timed here.
Source: arXiv 1909.08053 section 3 for the pair of functions, named f and g there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_api import AllGather, ReduceScatter


class CommClock:
    """Seconds spent in blocking collectives since the last reset."""

    def __init__(self) -> None:
        self.spent_s = 0.0

    def since(self, started_s: float) -> None:
        """Add the time from started_s, a perf_counter value, to now."""
        self.spent_s += time.perf_counter() - started_s

    def take(self) -> float:
        """Return the seconds so far and start again at zero."""
        spent_s, self.spent_s = self.spent_s, 0.0
        return spent_s


@dataclass(frozen=True)
class TpGroup:
    """This rank's tensor-parallel group."""

    group: dist.ProcessGroup
    index: int
    size: int
    clock: CommClock

    def all_reduce(self, x: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
        """Reduce x in place over the group and return it."""
        started_s = time.perf_counter()
        dist.all_reduce(x, op=op, group=self.group)
        self.clock.since(started_s)
        return x


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tp: TpGroup) -> Tensor:
        ctx.tp = tp
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # Autograd may still hold the incoming gradient elsewhere, so it is not summed in place.
        tp: TpGroup = ctx.tp
        return tp.all_reduce(grads[0].clone(memory_format=torch.contiguous_format)), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tp: TpGroup) -> Tensor:
        ctx.mark_dirty(x)
        return tp.all_reduce(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def spread_over_tp(x: Tensor, tp: TpGroup | None) -> Tensor:
    """Return x as the input of split weights; its gradient is summed over the group."""
    return x if tp is None else cast(Tensor, _Spread.apply(x, tp))


def sum_over_tp(x: Tensor, tp: TpGroup | None) -> Tensor:
    """Return the sum of x over the group (x itself is overwritten); its gradient passes through."""
    return x if tp is None else cast(Tensor, _Sum.apply(x, tp))


class _Buffers:
    def allocate(
        self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)


class _TimedAllGather(_Buffers, AllGather):
    def __init__(self, clock: CommClock) -> None:
        self._clock = clock

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        async_op: bool = False,
    ) -> dist.Work | None:
        started_s = time.perf_counter()
        dist.all_gather_single(output_tensor, input_tensor, group=group)
        self._clock.since(started_s)
        return None


class _TimedReduceScatter(_Buffers, ReduceScatter):
    def __init__(self, clock: CommClock) -> None:
        self._clock = clock

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> dist.Work | None:
        started_s = time.perf_counter()
        dist.reduce_scatter_single(output_tensor, input_tensor, op=op, group=group)
        self._clock.since(started_s)
        return None


def time_collectives(unit: FSDPModule, clock: CommClock) -> None:
    """Make one FSDP unit on CPU report the time it stands in its collectives."""
    unit.set_custom_all_gather(_TimedAllGather(clock))
    unit.set_custom_reduce_scatter(_TimedReduceScatter(clock))
