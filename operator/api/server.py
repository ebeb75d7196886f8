"""The process that serves one run over HTTP: python -m midwatch.operator.api.server ORDER

It reads the run's folder as anybody does and lays requests on its desk. Nothing it does, and
nothing that is done to it, reaches the controller: they share neither a process nor a lock.

ORDER is an order.ServeOrder as JSON. The first line on standard output says what came of it: an
Endpoint, or an ErrorDocument where the run cannot be served.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import sys
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import FrameType

import msgspec
import uvicorn

from ...logbook.decoding import prepared
from ...logbook.errors import ConfigError, MidwatchError
from .app import make_app
from .connections import protocol_of
from .endpoint import (
    Endpoint,
    endpoint_of_this_process,
    read_endpoint,
    remove_endpoint,
    write_endpoint,
)
from .guard import renew_certificate, watch_time
from .order import ServeOrder
from .refusal import document_of
from .service import Service, is_loopback

BACKLOG = 128
SEND_BYTES = 256 << 10
"""What the kernel holds for one reader; left to itself it holds megabytes."""
FAREWELL_S = 3
LOG_BYTES = 4 << 20
# By its name in the package: as a program the module is called __main__.
_log = logging.getLogger("midwatch.operator.api.server")


def serve(order: ServeOrder, tell: Callable[[Endpoint], None]) -> None:
    """Serve a run until told to end by SIGTERM or SIGINT; tell where once it listens.

    Raises: ConfigError[api-port-taken, tls-invalid, no-such-run]; as Tokens.
    """
    if not (Path(order.run_dir) / "journal").is_dir():
        raise ConfigError("no-such-run", f"{order.run_dir} is not the folder of a run.")
    service = Service(order)
    config = _config(service)
    with _listen(order) as listener:
        scheme = "https" if config.ssl is not None else "http"
        port = int(listener.getsockname()[1])
        endpoint = endpoint_of_this_process(order, scheme, service.spec.host, port)
        server = _Server(config, service)
        if order.is_own:
            write_endpoint(service.run_dir, endpoint)
        _warn(service)
        tell(endpoint)
        if order.is_own:
            watch_time(order, endpoint, service.view, server.leave)
        try:
            server.run([listener])
        finally:
            if order.is_own:
                remove_endpoint(service.run_dir, endpoint)


class _Server(uvicorn.Server):
    """Lets every stream end by itself when it is told to leave."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._renewing: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        tls, context = self._service.spec.tls, self.config.ssl
        if tls is not None and context is not None:
            self._renewing = asyncio.create_task(renew_certificate(tls, context))

    def leave(self, why: str) -> None:
        """End soon; may be called from any thread."""
        _log.info("leaving: %s", why)
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
        await self._service.pulse.close()
        await super().shutdown(sockets)


def _config(service: Service) -> uvicorn.Config:
    """Return how uvicorn is to serve. Raises: ConfigError[tls-invalid]."""
    tls = service.spec.tls
    config = uvicorn.Config(
        make_app(service),
        http=protocol_of(service.connections),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=int(service.bounds.idle_s) + 1,
        timeout_graceful_shutdown=FAREWELL_S,
        h11_max_incomplete_event_size=service.bounds.header_bytes,
        ssl_certfile=tls.cert if tls is not None else None,
        ssl_keyfile=tls.key if tls is not None else None,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            "tls-invalid",
            f"the certificate or key of api.tls cannot be used: {error}.",
            remedy="Name a PEM certificate with its chain, and its key without a passphrase.",
        ) from error
    return config


def _listen(order: ServeOrder) -> socket.socket:
    """Return a socket that listens where the spec says; at any port, at the last server's first.

    Raises: ConfigError[api-port-taken].
    """
    spec = order.spec
    before = read_endpoint(Path(order.run_dir)) if order.is_own and spec.port == 0 else None
    wanted = (before.port, 0) if before is not None else (spec.port,)
    failure: Exception | None = None
    for port in wanted:
        try:
            return _bound(spec.host, port)
        except (OSError, UnicodeError) as error:
            failure = error
    raise ConfigError(
        "api-port-taken",
        f"the API cannot listen at {spec.host}:{spec.port}: {failure}.",
        remedy="Set api.host and api.port to what is free, or port 0.",
    ) from failure


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol named, or asyncio leaves small answers waiting for each other.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _warn(service: Service) -> None:
    spec = service.spec
    if spec.auth == "off":
        _log.warning("the API asks for no token: whoever reaches %s can steer the run", spec.host)
    if spec.tls is None and not is_loopback(spec.host):
        _log.warning("the API at %s has no TLS: tokens can be read on the way", spec.host)


def main(arguments: list[str]) -> int:
    """Serve the run of an order; return the exit status."""
    order = msgspec.json.decode(arguments[0], type=prepared(ServeOrder))
    _log_to_file(Path(order.run_dir))
    try:
        serve(order, lambda endpoint: _say(msgspec.json.encode(endpoint)))
    except MidwatchError as error:
        _log.error("not served: %s", error)
        _say(msgspec.json.encode(document_of(error)))
        return 1
    return 0


def _say(line: bytes) -> None:
    """Write the one line that whoever started this process waits for."""
    with contextlib.suppress(BrokenPipeError):
        os.write(1, line + b"\n")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _log_to_file(run_dir: Path) -> None:
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    # Bounded: a stranger at the door must not be able to fill the disk of the run.
    handler = RotatingFileHandler(run_dir / "logs" / "api.log", maxBytes=LOG_BYTES, backupCount=1)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("midwatch", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO if name == "midwatch" else logging.WARNING)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    logging.shutdown()
    # Threads that wait for a dead disk must not hold the process.
    os._exit(status)
