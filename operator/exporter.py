"""Serves the metrics of a run over HTTP, beside the controller and never in its way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server

from ..logbook.errors import ConfigError
from ..logbook.metrics import StateCollector
from ..logbook.state import RunState


class Exporter:
    """Answers every request with the state of that moment. port: where it really listens.

    Raises: ConfigError[metrics-port-taken].
    """

    def __init__(self, host: str, port: int, state_of: Callable[[], RunState]) -> None:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(StateCollector(state_of, time.time))
        self._server: WSGIServer
        self._thread: threading.Thread
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except (OSError, UnicodeError) as error:
            raise ConfigError(
                "metrics-port-taken",
                f"cannot serve metrics at {host}:{port}: {error}.",
                remedy="Set observe.metrics_host and observe.metrics_port to what is free, or 0.",
            ) from error
        self.port = int(self._server.server_port)

    def close(self) -> None:
        """Stop serving: the run's series end here."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)
