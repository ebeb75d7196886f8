"""A serving process as its keeper holds it: started here, or found alive in the run's folder."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

import msgspec

from ...logbook.decoding import prepared
from ...logbook.errors import MidwatchError, Retryable
from .endpoint import Endpoint
from .order import ServeOrder
from .refusal import ErrorDocument

START_S = 60.0
END_S = 8.0
RETRY_S = 1.0
# Children that live on and are nobody's to wait for; subprocess would complain of dropped ones.
_left: list[subprocess.Popen[bytes]] = []


class ServerProcess:
    """One server; child is None where somebody else started it. Raises: ProcessLookupError."""

    def __init__(self, endpoint: Endpoint, child: subprocess.Popen[bytes] | None = None) -> None:
        self.endpoint = endpoint
        self._child = child
        self._pidfd = os.pidfd_open(endpoint.pid)

    def wait(self, wake_fd: int) -> None:
        """Return when it has ended, or when wake_fd can be read."""
        select.select([self._pidfd, wake_fd], [], [])

    def end(self) -> None:
        """Have it tell its callers what is left and leave; make it, when it does not."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)
            if select.select([self._pidfd], [], [], END_S)[0]:
                break

    def close(self) -> str:
        """Let go of it; return how it ended, "" where it has not, or that cannot be known."""
        os.close(self._pidfd)
        if self._child is None:
            return ""
        status = self._child.poll()
        if status is None:
            _left.append(self._child)
            return ""
        return f" with status {status}"


def start_server(order: ServeOrder, wake_fd: int) -> ServerProcess:
    """Start a server and return it once it listens; give up when wake_fd can be read.

    Raises: Retryable[api-not-started]; MidwatchError with the server's own code and words.
    """
    command = [sys.executable, "-m", "midwatch.operator.api.server"]
    try:
        # A session of its own: what is done to the starter's group is not meant for it.
        child = subprocess.Popen(
            [*command, msgspec.json.encode(order).decode()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise _not_started(f"its process cannot be started: {error.strerror}.") from error
    assert child.stdout is not None
    with child.stdout:
        line = _first_line(child.stdout.fileno(), wake_fd)
    with contextlib.suppress(ValueError, ProcessLookupError):
        return ServerProcess(msgspec.json.decode(line, type=prepared(Endpoint)), child)
    child.kill()
    status = child.wait()
    with contextlib.suppress(ValueError):
        said = msgspec.json.decode(line, type=prepared(ErrorDocument))
        raise MidwatchError(said.code, said.message, remedy=said.remedy)
    raise _not_started(f"its process said nothing and ended with status {status}.")


def _first_line(fd: int, wake_fd: int) -> bytes:
    """Return what a server says of its start, b"" or a part where it does not come to it."""
    until_s, line = time.monotonic() + START_S, b""
    while not line.endswith(b"\n"):
        left_s = max(until_s - time.monotonic(), 0.0)
        ready = select.select([fd, wake_fd], [], [], left_s)[0]
        if fd not in ready or not (piece := os.read(fd, 4096)):
            break
        line += piece
    return line


def _not_started(message: str) -> Retryable:
    return Retryable(
        "api-not-started", message, delay_s=RETRY_S, remedy="See logs/api.log in the run's folder."
    )
