"""The dead-man signal: somebody else's clock is wound as long as the controller turns.

It says that ticks go by, not that a process exists: a controller that is stuck falls silent, and
whoever listens raises the alarm. Nothing here can make up for a machine that has lost its power.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from ..logbook.errors import MidwatchError
from .secret_value import read_secret
from .spec_outward import NotifySpec
from .web_call import call

FIRST_RETRY_S = 1.0
_log = logging.getLogger(__name__)


class Heartbeat:
    """Asks for the heartbeat URL every so often while is_turning says so."""

    def __init__(self, spec: NotifySpec, is_turning: Callable[[], bool]) -> None:
        self._spec = spec
        self._is_turning = is_turning
        self._failure = ""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="heartbeat", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Fall silent."""
        self._closing.set()

    def _work(self) -> None:
        retry_s = wait_s = 0.0
        while not self._closing.wait(wait_s):
            failure = self._beat()
            if failure and failure != self._failure:
                _log.warning("no heartbeat: %s", failure)
            self._failure = failure
            every_s = self._spec.heartbeat_every_s
            retry_s = min(max(2 * retry_s, FIRST_RETRY_S), every_s) if failure else 0.0
            wait_s = retry_s or every_s

    def _beat(self) -> str:
        """Give one sign of life; return why it could not be given, "" when it was."""
        if not self._is_turning():
            return "the controller does not turn"
        name = self._spec.heartbeat
        assert name is not None
        try:
            call(read_secret(name), None, {"User-Agent": "midwatch"}, self._spec.timeout_s)
        except MidwatchError as error:
            return str(error)
        except Exception as error:
            return type(error).__name__
        return ""
