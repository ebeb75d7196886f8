"""One training step on every rank: forward and backward, one agreement, then the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..logbook.wire import Hyper, Mesh, Phase
from .config import TrainConfig


@dataclass(frozen=True)
class Ballot:
    """What a rank brings to the agreement besides its gradients."""

    highest_command_seq: int = 0


@dataclass(frozen=True)
class StepOutcome:
    """One completed step as this rank saw it; all but local_* and *_s are equal on all ranks.

    Units: loss nats/token; norms unscaled, before clipping, NaN and inf allowed; *_s seconds.
    local_loss: mean over this rank's own sequences. local_grad_norm: of this rank's own shard.
    activation_norm: L2 of the final layer's output, mean over tokens.
    loss_scale: the one used in this step; None outside fp16.
    agreed_command_seq: highest command seq that every rank has received.
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
    local_loss: float
    local_grad_norm: float
    local_found_inf: bool
    forward_s: float
    backward_s: float
    comm_s: float
    optimizer_s: float


def ignore_phase(phase: Phase) -> None:
    """Note nothing: the default progress hook."""


class TrainStep:
    """Model, optimizer and loss scaler of one rank for one attempt.

    The default process group must exist. Weights are initialised from the seed, alike on every
    mesh. Steps count from 1.
    """

    def __init__(
        self,
        config: TrainConfig,
        mesh: Mesh,
        hyper: Hyper,
        device: torch.device,
        note: Callable[[Phase], None] = ignore_phase,
    ) -> None:
        raise NotImplementedError

    def run(self, step: int, batches: Sequence[Tensor], ballot: Ballot) -> StepOutcome:
        """Make step `step` and return what came of it; every rank must call it alike.

        Shapes:  batches: config.microbatches(mesh) tensors (micro_batch_size, seq_len + 1) int64;
                 the ranks of one tp group bring the same ones.
        """
        raise NotImplementedError

    def set_hyper(self, hyper: Hyper) -> None:
        """Use these LR changes and this clip from the next step on."""
        raise NotImplementedError

    def readback(self, step: int) -> dict[str, float]:
        """Return the values that step `step` will run under, read from the live objects."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the live state: a tree that torch.distributed.checkpoint saves and loads in place.

        "model", "exp_avg", "exp_avg_sq": parameter name -> float32 DTensor, sharing memory with the
        trainer. "scalars": JSON-ready plain values (Adam's step count, loss scaler).
        To load: state = state_dict(); dcp.load(state); load_state_dict(state).
        """
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state of any mesh, resharded to this one as by torch.distributed.checkpoint.

        Hyper.loss_scale, when given, then resets the scaler.
        """
        raise NotImplementedError
