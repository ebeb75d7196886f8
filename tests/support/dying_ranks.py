"""Entry points of preflight workers of which one dies of SIGKILL when it is to send something."""

from __future__ import annotations

import os
import signal

from midwatch.logbook.wire import WorkerStart
from midwatch.trainer import preflight
from midwatch.trainer.preflight_groups import GroupChecks


def _die(self: GroupChecks) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def rank_0(start: WorkerStart) -> None:
    """Be a preflight worker, but die as rank 0, which serves the store to all others."""
    _run(start, 0)


def rank_2(start: WorkerStart) -> None:
    """Be a preflight worker, but die as rank 2."""
    _run(start, 2)


def _run(start: WorkerStart, dies: int) -> None:
    # Every worker is a process of its own, so this changes nothing for anybody else.
    if start.rank == dies:
        GroupChecks.before_sending = _die  # type: ignore[method-assign]  # the fault of this test
    preflight.main(start)
