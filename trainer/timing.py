"""Where the time of a step goes."""

from __future__ import annotations

import time
from collections import defaultdict

import torch

from .collectives import CommClock

COMM = "comm"


class Laps:
    """Seconds spent in each part of a step, waiting for other ranks counted apart on CPUs.

    A GPU runs behind the host, so there a mark is an event in the stream and costs no waiting; what
    FSDP and tensor parallelism exchange stays in the lap that it overlaps with.
    """

    def __init__(self, device: torch.device, comm: CommClock) -> None:
        self._on_gpu = device.type == "cuda"
        self._comm = comm
        self._events: list[tuple[str, torch.cuda.Event]] = []
        self._spent_s: defaultdict[str, float] = defaultdict(float)
        self._begun_s = 0.0

    def start(self) -> None:
        """Forget earlier laps; the first lap begins now."""
        self._spent_s.clear()
        self._events.clear()
        self._comm.take()
        if self._on_gpu:
            self._mark("")
        self._begun_s = time.perf_counter()

    def end(self, lap: str) -> None:
        """End the lap of that name here; a name may recur, and its laps add up."""
        if self._on_gpu:
            self._mark(lap)
            return
        now_s = time.perf_counter()
        comm_s = self._comm.take()
        self._spent_s[lap] += now_s - self._begun_s - comm_s
        self._spent_s[COMM] += comm_s
        self._begun_s = now_s

    def seconds(self) -> dict[str, float]:
        """Return lap name -> seconds, with those of collectives under COMM."""
        if self._events:
            self._events[-1][1].synchronize()
            for (_, begin), (lap, end) in zip(self._events, self._events[1:], strict=False):
                self._spent_s[lap] += begin.elapsed_time(end) / 1000.0
            self._events.clear()
        return dict(self._spent_s)

    def _mark(self, lap: str) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append((lap, event))
