"""Collects the stacks of this node's workers without ever waiting for one of them.

A worker that can run its signal handler writes its own Python stacks, even from inside a blocked
collective. One that is stopped or stuck in the kernel cannot; of that one the kernel's view is
reported instead. The collection is driven by the event loop, so a dead worker is noticed meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from .local_worker import LocalWorker
from .loop import EventLoop
from .process import process_facts, process_state

_LOOK_S = 0.02
_WAIT_S = 1.0
# A dump is many small writes; on a crowded machine its writer may pause between two of them.
_QUIET_LOOKS = 5
_STACK_BYTES_MAX = 32 << 10
_CANNOT_RUN = "TtDZX"


@dataclass
class _Dump:
    worker: LocalWorker
    state: str
    began_at: int
    size: int
    is_done: bool
    quiet_looks: int = 0


class StackCollection:
    """One round of stack dumps; calls on_done once with a text per rank, within about a second."""

    def __init__(
        self,
        loop: EventLoop,
        workers: list[LocalWorker],
        on_done: Callable[[dict[int, str]], None],
    ) -> None:
        self._loop = loop
        self._on_done = on_done
        self._looks_left = int(_WAIT_S / _LOOK_S)
        self._dumps = [self._request(worker) for worker in workers if worker.is_born]
        self._look_later()

    def _request(self, worker: LocalWorker) -> _Dump:
        state = process_state(worker.pid)
        size = _size(worker)
        can_run = state not in _CANNOT_RUN and not worker.is_over
        if can_run:
            worker.request_stack()
        return _Dump(worker, state, size, size, not can_run)

    def _look_later(self) -> None:
        self._loop.call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        for dump in self._dumps:
            if not dump.is_done:
                size = _size(dump.worker)
                # A dump carries no end mark: it is over when it has begun and stopped growing.
                is_quiet = size > dump.began_at and size == dump.size
                dump.quiet_looks = dump.quiet_looks + 1 if is_quiet else 0
                dump.is_done = dump.quiet_looks >= _QUIET_LOOKS
                dump.size = size
        self._looks_left -= 1
        if self._looks_left > 0 and not all(dump.is_done for dump in self._dumps):
            self._look_later()
            return
        self._on_done({dump.worker.rank: _text(dump) for dump in self._dumps})


def _size(worker: LocalWorker) -> int:
    try:
        return os.stat(worker.stack_path).st_size
    except OSError:
        return 0


def _text(dump: _Dump) -> str:
    state = process_state(dump.worker.pid)
    head = f"process {dump.worker.pid}, state {state}\n"
    if dump.size > dump.began_at:
        with dump.worker.stack_path.open("rb") as file:
            file.seek(dump.began_at)
            return head + file.read(_STACK_BYTES_MAX).decode(errors="replace")
    return f"{head}it did not dump its own stacks; the kernel's view:\n" + process_facts(
        dump.worker.pid
    )
