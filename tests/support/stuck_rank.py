"""Entry points of workers that get stuck in their own code, once, and call no collective."""

from __future__ import annotations

import threading

from midwatch.logbook.wire import WorkerStart
from midwatch.trainer import worker
from midwatch.trainer.step import TrainStep

STUCK_RANK = 1
STUCK_AT_STEP = 12
HELD_AT_STEP = 20
_forward_backward = TrainStep.forward_backward


def main(start: WorkerStart) -> None:
    """Be a worker; in the first attempt one rank stops before a forward pass and stays there."""
    if start.rank == STUCK_RANK and start.attempt == 1:
        _stop_at(STUCK_AT_STEP)
    worker.main(start)


def held(start: WorkerStart) -> None:
    """Be a worker; in the first attempt all ranks stay at one step until a fault ends them."""
    if start.attempt == 1:
        _stop_at(HELD_AT_STEP)
    worker.main(start)


def _stop_at(stuck_step: int) -> None:
    def forward_backward(self: TrainStep, step: int, batches: object) -> object:
        if step == stuck_step:
            threading.Event().wait()
        return _forward_backward(self, step, batches)  # type: ignore[arg-type]

    # Every worker is a process of its own, so this changes nothing for anybody else.
    TrainStep.forward_backward = forward_backward  # type: ignore[assignment,method-assign]
