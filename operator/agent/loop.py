"""One thread's event loop: descriptors, timers, and calls posted by other threads."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE


class Timer:
    """A call due at a monotonic time; cancel() makes it never happen."""

    def __init__(self, when_s: float, call: Callable[[], None]) -> None:
        self.when_s = when_s
        self.call = call
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class EventLoop:
    """Runs callbacks one at a time on its own thread.

    An exception in a callback is handed to on_error and the loop goes on: a fault in one worker's
    bookkeeping must not leave all others unwatched.
    """

    def __init__(self, name: str, on_error: Callable[[BaseException], None]) -> None:
        self._on_error = on_error
        self._selector = selectors.DefaultSelector()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._posted: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._is_running = True
        self._wake_lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.watch(self._wake_fd, READ, self._on_wake)

    def begin(self) -> None:
        """Start the thread."""
        self._thread.start()

    def post(self, call: Callable[[], None]) -> None:
        """Have the loop run call soon. Safe from any thread; ignored once the loop has ended."""
        self._posted.append(call)
        with self._wake_lock:
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    def end(self) -> None:
        """Leave the loop after the present callback. Only from the loop's thread."""
        self._is_running = False

    def join(self, timeout_s: float) -> bool:
        """Wait until the thread has ended; return whether it has."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def watch(self, fd: int, events: int, call: Callable[[], None]) -> None:
        """Run call whenever fd is ready. Only from the loop's thread (or before begin)."""
        self._selector.register(fd, events, call)

    def unwatch(self, fd: int) -> None:
        """Forget fd; it need not be watched. Call before closing it."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(fd)

    def call_later(self, delay_s: float, call: Callable[[], None]) -> Timer:
        """Run call once, delay_s from now. Only from the loop's thread (or before begin)."""
        timer = Timer(time.monotonic() + delay_s, call)
        heapq.heappush(self._timers, (timer.when_s, next(self._order), timer))
        return timer

    def call_every(self, period_s: float, call: Callable[[], None]) -> None:
        """Run call periodically for the life of the loop; a late call delays the following."""

        def tick() -> None:
            self.call_later(period_s, tick)
            call()

        self.call_later(period_s, tick)

    def _run(self) -> None:
        while self._is_running:
            for key, _ in self._selector.select(self._timeout_s()):
                # An earlier callback of this round may have closed the descriptor, or its number
                # may already belong to something new.
                if self._selector.get_map().get(key.fd) is key:
                    self._guard(key.data)
            self._run_timers()
        with self._wake_lock:
            self._selector.close()
            os.close(self._wake_fd)
            self._wake_fd = -1

    def _timeout_s(self) -> float | None:
        if not self._timers:
            return None
        return max(self._timers[0][0] - time.monotonic(), 0.0)

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)
        for _ in range(len(self._posted)):
            self._guard(self._posted.popleft())

    def _run_timers(self) -> None:
        now_s = time.monotonic()
        while self._timers and self._timers[0][0] <= now_s:
            timer = heapq.heappop(self._timers)[2]
            if not timer.is_cancelled:
                self._guard(timer.call)

    def _guard(self, call: Callable[[], None]) -> None:
        if not self._is_running:
            return
        try:
            call()
        except Exception as error:
            self._on_error(error)
