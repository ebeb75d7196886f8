"""Serves the metrics of a run over HTTP, beside the controller and never in its way.

Whoever reaches the port may open connections and say nothing. So there are never more than
CONNECTIONS_MAX at a time, each over within CONNECTION_S, and one too many is told to come again.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from ..logbook.errors import ConfigError
from ..logbook.metrics import StateCollector
from ..logbook.state import RunState

CONNECTIONS_MAX = 16
CONNECTION_S = 10.0
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"


class Exporter:
    """Answers every request with the state of that moment. port: where it really listens.

    Raises: ConfigError[metrics-port-taken].
    """

    def __init__(
        self,
        host: str,
        port: int,
        state_of: Callable[[], RunState],
        connection_s: float = CONNECTION_S,
    ) -> None:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(StateCollector(state_of, time.time))
        try:
            self._server = _Server(host, port, connection_s)
        except (OSError, UnicodeError, OverflowError) as error:
            raise ConfigError(
                "metrics-port-taken",
                f"cannot serve metrics at {host}:{port}: {error}.",
                remedy="Set observe.metrics_host and observe.metrics_port to what is free, or 0.",
            ) from error
        self._server.set_app(make_wsgi_app(registry))
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="exporter", daemon=True
        )
        self._thread.start()
        self.port = int(self._server.server_port)

    def close(self) -> None:
        """Stop serving: the run's series end here."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """A scrape every few seconds is no news."""


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each connection, as many as there may be."""

    daemon_threads = True
    request_queue_size = 4 * CONNECTIONS_MAX
    # Who says nothing must not keep the end of a run waiting.
    block_on_close = False

    def __init__(self, host: str, port: int, connection_s: float) -> None:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, address = found[0][0], found[0][4]
        self._connection_s = connection_s
        self._free = threading.BoundedSemaphore(CONNECTIONS_MAX)
        super().__init__(address[:2], _Quiet)  # type: ignore[arg-type]  # a pair in every family

    def server_bind(self) -> None:
        # Not HTTPServer's own, which looks up the name of the host: that may take seconds.
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        with contextlib.suppress(OSError):
            request.settimeout(0.0)
            request.sendall(_BUSY)
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        def cut() -> None:
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

        clock = threading.Timer(self._connection_s, cut)
        clock.daemon = True
        clock.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            clock.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is the other side's affair."""
