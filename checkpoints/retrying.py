"""Trying again: how long to wait, for how long, and how fast bytes may flow meanwhile."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from ..logbook.errors import Retryable

R = TypeVar("R")


class Backoff:
    """Waits that double up to a limit, each shortened by chance so that nodes do not try in step.

    rng: a seeded one makes the waits repeatable.
    """

    def __init__(self, first_s: float, max_s: float, rng: random.Random | None = None) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._rng = rng or random.Random()
        self._tries = 0

    def next_s(self, at_least_s: float = 0.0) -> float:
        """Return how long to wait before the next try; at_least_s is what the other side asks."""
        # Past some doublings the limit holds anyway, and a float must not overflow.
        whole_s = min(self._first_s * 2 ** min(self._tries, 32), self._max_s)
        self._tries += 1
        return max(whole_s * self._rng.uniform(0.5, 1.0), min(at_least_s, self._max_s))

    def reset(self) -> None:
        """Something went well: the next wait is short again."""
        self._tries = 0


def persist(
    call: Callable[[], R],
    backoff: Backoff,
    patience_s: float,
    sleep: Callable[[float], None] = time.sleep,
) -> R:
    """Return what call returns, trying again while it raises Retryable and patience lasts.

    Raises: the last Retryable when patience_s have passed; anything else at once.
    """
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            return call()
        except Retryable as error:
            wait_s = backoff.next_s(error.delay_s)
            if time.monotonic() + wait_s > deadline_s:
                raise
            sleep(wait_s)


class Bandwidth:
    """A token bucket shared by everything that one node sends; None lets all pass at once.

    A taker waits until what was taken before it has been paid off, so the rate holds on average,
    and one taker's bytes (a part of an upload at most) go out in one burst.
    """

    def __init__(
        self,
        bytes_per_s: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._sleep = sleep
        self._free_s = clock()
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Wait until count more bytes may be sent."""
        if self._bytes_per_s is None:
            return
        with self._lock:
            now_s = self._clock()
            begin_s = max(self._free_s, now_s)
            self._free_s = begin_s + count / self._bytes_per_s
        if begin_s > now_s:
            self._sleep(begin_s - now_s)
