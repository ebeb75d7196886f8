"""Keeps the process that serves a run alive beside the controller, and never waits for it.

The process is no part of the controller: it outlives one that dies, and the next controller of
the same node takes it over as it is, its callers undisturbed. It ends by itself: a while after the
run has, with the Ray of its node, or when another server has taken its place (guard.py).
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from pathlib import Path

from ...logbook import events as ev
from ...logbook.errors import MidwatchError
from .endpoint import read_endpoint
from .order import ServeOrder
from .process import ServerProcess, start_server

FIRST_DELAY_S, MAX_DELAY_S = 0.5, 60.0
STEADY_S = 60.0
"""A server that has lived so long did not fail at once: the next one is started soon again."""
MAX_NEWS = 16
_log = logging.getLogger(__name__)


class Keeper:
    """Serves a run for as long as it is not closed, and tells what happens as events."""

    def __init__(self, order: ServeOrder) -> None:
        self._order = order
        self._run_dir = Path(order.run_dir)
        self._news: deque[ev.Event] = deque(maxlen=MAX_NEWS)
        self._trouble = ""
        self._closing = threading.Event()
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._work, name="api-keeper", daemon=True)
        self._thread.start()

    def news(self) -> list[ev.Event]:
        """Return what has happened since the last call, for the journal."""
        found: list[ev.Event] = []
        while self._news:
            found.append(self._news.popleft())
        return found

    def close(self) -> None:
        """Watch no more. The server stays, until its time is over or the next controller comes."""
        self._closing.set()
        os.write(self._wake_write, b"x")

    def _work(self) -> None:
        delay_s = FIRST_DELAY_S
        while not self._closing.is_set():
            begun_s = time.monotonic()
            try:
                self._serve()
            except MidwatchError as error:
                self._failed(error.code, f"{error.message} {error.remedy}".strip())
            except OSError as error:
                self._failed("api-not-started", f"{error}.")
            if time.monotonic() - begun_s > STEADY_S:
                delay_s = FIRST_DELAY_S
            self._closing.wait(delay_s)
            delay_s = min(2 * delay_s, MAX_DELAY_S)

    def _serve(self) -> None:
        """Have a server, and return when it is gone."""
        server = self._found()
        is_taken_over = server is not None
        if server is None:
            server = start_server(self._order, self._wake_read)
        self._trouble = ""
        endpoint = server.endpoint
        _log.info("the API is at %s", endpoint.url)
        self._news.append(ev.ApiServed(endpoint.url, endpoint.pid, is_taken_over))
        server.wait(self._wake_read)
        how = server.close()
        if not self._closing.is_set():
            self._failed("api-ended", f"process {endpoint.pid} has ended{how}.")

    def _found(self) -> ServerProcess | None:
        """Return the server that an earlier controller left, None where there is none to keep.

        One of another spec or version is ended: its port may be wanted now.
        """
        before = read_endpoint(self._run_dir)
        if before is None or not before.is_alive:
            return None
        with contextlib.suppress(ProcessLookupError):
            server = ServerProcess(before)
            if before.order == self._order.digest:
                return server
            server.end()
            server.close()
        return None

    def _failed(self, code: str, message: str) -> None:
        """Say what is wrong once, not at every try."""
        if message != self._trouble:
            self._trouble = message
            _log.warning("no API: %s [%s]", message, code)
            self._news.append(ev.ApiFailed(code, message))
