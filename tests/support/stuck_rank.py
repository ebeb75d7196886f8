"""Entry points of workers that get stuck in their own code, once, and call no collective."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from midwatch.logbook.wire import WorkerStart
from midwatch.trainer import worker
from midwatch.trainer.step import TrainStep

STUCK_RANK = 1
STUCK_AT_STEP = 12
HELD_AT_STEP = 20
PRUNED_BY_STEP = 60
_FOR_EVER = threading.Event().wait
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


def until_pruned(start: WorkerStart) -> None:
    """Be a worker; all ranks stay at one step until a second controller is there and one pruned."""
    journal = Path(start.run_dir, "journal")

    def has_pruned() -> bool:
        written = [path.read_bytes() for path in journal.glob("*.jsonl")]
        return len(written) > 1 and b'"checkpoints-pruned"' in b"".join(written)

    def wait() -> None:
        while not has_pruned():
            time.sleep(0.1)

    _stop_at(PRUNED_BY_STEP, wait)
    worker.main(start)


def _stop_at(stuck_step: int, wait: Callable[[], object] = _FOR_EVER) -> None:
    def forward_backward(self: TrainStep, step: int, batches: object) -> object:
        if step == stuck_step:
            wait()
        return _forward_backward(self, step, batches)  # type: ignore[arg-type]

    # Every worker is a process of its own, so this changes nothing for anybody else.
    TrainStep.forward_backward = forward_backward  # type: ignore[assignment,method-assign]
