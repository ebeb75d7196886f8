"""Entry point of workers of which one gets stuck in its own code, once, and calls no collective."""

from __future__ import annotations

import threading

from midwatch.logbook.wire import WorkerStart
from midwatch.trainer import worker
from midwatch.trainer.step import TrainStep

STUCK_RANK = 1
STUCK_AT_STEP = 12
_forward_backward = TrainStep.forward_backward


def _get_stuck(self: TrainStep, step: int, batches: object) -> object:
    if step == STUCK_AT_STEP:
        threading.Event().wait()
    return _forward_backward(self, step, batches)  # type: ignore[arg-type]


def main(start: WorkerStart) -> None:
    """Be a worker; in the first attempt one rank stops before a forward pass and stays there."""
    # Every worker is a process of its own, so this changes nothing for anybody else.
    if start.rank == STUCK_RANK and start.attempt == 1:
        TrainStep.forward_backward = _get_stuck  # type: ignore[assignment,method-assign]
    worker.main(start)
