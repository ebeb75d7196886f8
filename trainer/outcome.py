"""What goes into the agreement of a step, and what comes out of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Ballot:
    """What a rank brings to the agreement besides its gradients.

    memory_level: as Saver.memory_level says of the end of this step.
    """

    highest_command_seq: int = 0
    memory_level: int = 0


@dataclass(frozen=True)
class StepOutcome:
    """One completed step as this rank saw it; all but local_* and *_s are equal on all ranks.

    Units: loss nats/token; norms unscaled, before clipping, NaN and inf allowed; *_s seconds.
    local_loss: mean over this rank's own sequences. local_grad_norm: of this rank's own shard.
    activation_norm: L2 of the final layer's output, mean over tokens.
    loss_scale: the one used in this step; None outside fp16.
    agreed_command_seq: highest command seq that every rank has received.
    agreed_memory_level: lowest memory_level of all ranks.
    forward_s, backward_s: without comm_s on CPU; on GPUs they contain the collectives that FSDP and
    tensor parallelism overlap with computation, and comm_s is the wait in the agreement alone.
    """

    step: int
    loss: float
    grad_norm: float
    activation_norm: float
    found_inf: bool
    skipped: bool
    loss_scale: float | None
    lr: float
    tokens: int
    agreed_command_seq: int
    agreed_memory_level: int
    local_loss: float
    local_grad_norm: float
    local_found_inf: bool
    forward_s: float
    backward_s: float
    comm_s: float
    optimizer_s: float


@dataclass(frozen=True)
class LocalResult:
    """What forward and backward gave on this rank; tensors, so that a GPU need not be waited for.

    squares: sums of squares of the scaled gradients, see ShardedAdamW.take_grads.
    """

    loss_sum: Tensor
    activation_norm_sum: Tensor
    squares: Tensor


class Vote(NamedTuple):
    """One rank's row of the agreement, sums over its tokens and over its shards of the gradients.

    split_squares: of weights split over tp; alike_squares: of those all ranks of a tp group hold.
    """

    loss_sum: float
    activation_norm_sum: float
    split_squares: float
    alike_squares: float
    command_seq: float
    memory_level: float

    @property
    def is_sound(self) -> bool:
        """Whether everything that this rank computed is finite."""
        return all(math.isfinite(value) for value in self)


@dataclass(frozen=True)
class Agreement:
    """What all ranks know after the vote; grad_norm is unscaled."""

    loss: float
    activation_norm: float
    grad_norm: float
    found_inf: bool
    command_seq: int
    memory_level: int
    local_loss: float
    local_grad_norm: float
    local_found_inf: bool


def conclude(
    votes: Sequence[Vote], rank: int, *, tp: int, rank_tokens: int, unscale: float
) -> Agreement:
    """Draw the agreement from the votes of all ranks, in the order of ranks.

    The ranks of a tp group share their sequences and hold some weights alike: those columns count
    once per group. unscale turns gradients at hand into those of the mean loss.
    """
    firsts = votes[::tp]
    tokens = rank_tokens * len(firsts)
    squares = sum(v.split_squares for v in votes) + sum(v.alike_squares for v in firsts)
    mine = votes[rank]
    return Agreement(
        loss=sum(v.loss_sum for v in firsts) / tokens,
        activation_norm=sum(v.activation_norm_sum for v in firsts) / tokens,
        grad_norm=math.sqrt(squares) * unscale,
        found_inf=not all(v.is_sound for v in votes),
        command_seq=int(min(v.command_seq for v in votes)),
        memory_level=int(min(v.memory_level for v in votes)),
        local_loss=mine.loss_sum / rank_tokens,
        local_grad_norm=math.sqrt(mine.split_squares + mine.alike_squares) * unscale,
        local_found_inf=not mine.is_sound,
    )
