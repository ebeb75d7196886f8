"""Validation: the loss on held-out text, on all ranks and their mesh, and nothing else changed.

It runs between two steps and leaves no trace in the training: no gradient, no dropout, no random
number, nothing of the optimizer or the loss scaler. So losses are the same bit for bit with it,
without it, and after a restart in the middle of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from ..logbook.wire import Mesh, Validated, Validating
from .config import TrainConfig
from .data.held_out import HeldOut
from .mesh import coordinates
from .model import Forward
from .parallelize import fsdp_units
from .parts import Parts
from .step import TrainStep

TELL_EVERY_S = 5.0
"""A measurement that takes longer is told of so often while it lasts."""


def is_validation_due(step: int, config: TrainConfig) -> bool:
    """Whether the weights after step are to be measured: by interval, and at the end of the run.

    A function of the step alone, so that no rank measures alone.
    """
    interval_steps = config.validation.interval_steps
    if not interval_steps or step < 1:
        return False
    return step % interval_steps == 0 or step == config.steps


def validate(parts: Parts, held_out: HeldOut, step: int) -> None:
    """Measure the weights after step and report the result; every rank must call it alike."""
    begun_s = time.perf_counter()
    teller = _Teller(parts, step)
    loss = mean_loss(parts.train_step, parts.mesh, held_out, teller.told)
    if parts.rank == 0:
        parts.report.send(
            Validated(
                rank=parts.rank,
                step=step,
                loss=loss,
                sequences=held_out.sequences,
                tokens=held_out.tokens,
                ended_s=time.time(),
                spent_s=time.perf_counter() - begun_s,
            )
        )


def mean_loss(
    train_step: TrainStep, mesh: Mesh, held_out: HeldOut, told: Callable[[int, int], None]
) -> float:
    """Return the mean loss over the held-out sequences, the same on every rank.

    told is called with (rounds done, rounds in all), before the first and after each.
    Units: nats/token.
    """
    rows = train_step.config.micro_batch_size
    dp_rank, _ = coordinates(mesh, dist.get_rank())
    num_rounds = held_out.num_rounds(mesh.dp_shard, rows)
    model = train_step.model
    loss_sum = 0.0
    told(0, num_rounds)
    model.eval()
    try:
        with torch.no_grad():
            rounds = held_out.rounds(dp_rank, mesh.dp_shard, rows)
            for number, (batch, counts) in enumerate(rounds, start=1):
                tokens = torch.from_numpy(batch).to(train_step.device)
                out = model(tokens[:, :-1], tokens[:, 1:])
                assert isinstance(out, Forward)
                # The host waits for each round: what it tells is then true of the device as well.
                loss_sum += out.loss_sum.item() if counts else 0.0
                told(number, num_rounds)
    finally:
        model.train()
        # Units that keep their weights gathered for a backward pass wait for one in vain.
        for unit in fsdp_units(model):
            unit.reshard()
    return _sum_over_ranks(loss_sum, mesh, train_step.device) / held_out.tokens


def _sum_over_ranks(value: float, mesh: Mesh, device: torch.device) -> float:
    """Sum one value per data-parallel rank in the order of ranks: the same bits everywhere."""
    mine = torch.tensor([value], dtype=torch.float64).to(device)
    gathered = mine.new_zeros(mesh.world_size)
    dist.all_gather_single(gathered, mine)
    values: list[float] = gathered.tolist()
    # The ranks of a tp group share their sequences.
    return sum(values[:: mesh.tp])


class _Teller:
    """Notes every round where the agent sees it, and tells of a long measurement now and then."""

    def __init__(self, parts: Parts, step: int) -> None:
        self._parts = parts
        self._step = step
        self._told_s = time.monotonic()

    def told(self, done: int, total: int) -> None:
        self._parts.progress.note_round(done)
        now_s = time.monotonic()
        is_time = done == 0 or (done < total and now_s - self._told_s >= TELL_EVERY_S)
        if self._parts.rank == 0 and is_time:
            self._told_s = now_s
            self._parts.report.send(Validating(self._parts.rank, self._step, done, total))
