"""Entry points of preflight workers on a run in which one node's memory does not hold."""

from __future__ import annotations

from midwatch.logbook.wire import WorkerStart
from midwatch.trainer import preflight
from midwatch.trainer.preflight_checks import LocalChecks
from torch import Tensor

SICK_NODE = "node-1"


def _leak(self: LocalChecks, words: Tensor) -> None:
    words[4711] ^= 1 << 40


def main(start: WorkerStart) -> None:
    """Be a preflight worker; on SICK_NODE one bit of memory turns by itself."""
    # Every worker is a process of its own, so this changes nothing for anybody else.
    if start.node == SICK_NODE:
        LocalChecks.settle = _leak  # type: ignore[method-assign]  # the fault of this test
    preflight.main(start)


def broken(start: WorkerStart) -> None:
    """Be a preflight worker that cannot work anywhere."""
    raise RuntimeError("this machine has no preflight")
