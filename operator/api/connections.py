"""The open connections of the server: how many there are, and how long one may do nothing.

Slow callers are cut off here, in whichever state they are slow: before a request is whole, while an
answer waits for them to read it, or afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator

import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol

from .order import Bounds
from .refusal import ErrorDocument

Peer = tuple[str, int]
_STATUS_LINES = {400: b"400 Bad Request", 503: b"503 Service Unavailable"}


class _Link:
    """One connection. since_s: when its last request was over, or it was made."""

    def __init__(self, transport: asyncio.Transport, now_s: float) -> None:
        self.transport = transport
        self.since_s = now_s
        self.num_requests = 0


class Connections:
    """Every open connection by the address of its peer. Of one event loop."""

    def __init__(self, bounds: Bounds, clock: Callable[[], float] = time.monotonic) -> None:
        self._bounds = bounds
        self._clock = clock
        self._links: dict[Peer, _Link] = {}

    def __len__(self) -> int:
        return len(self._links)

    def add(self, peer: Peer, transport: asyncio.Transport) -> bool:
        """Take a connection in; return whether there is room for it."""
        if len(self._links) >= self._bounds.connections:
            return False
        self._links[peer] = _Link(transport, self._clock())
        return True

    def remove(self, peer: Peer) -> None:
        self._links.pop(peer, None)

    @contextlib.contextmanager
    def in_use(self, peer: Peer | None) -> Iterator[None]:
        """Hold that a request of this connection is being answered."""
        link = self._links.get(peer) if peer is not None else None
        if link is None:
            yield
            return
        link.num_requests += 1
        try:
            yield
        finally:
            link.num_requests -= 1
            link.since_s = self._clock()

    def cut(self, peer: Peer | None) -> None:
        """End a connection at once; what it has not read is dropped."""
        link = self._links.get(peer) if peer is not None else None
        if link is not None:
            link.transport.abort()

    def sweep(self) -> None:
        """End every connection that has had no request for too long, half a one included."""
        now_s = self._clock()
        for link in list(self._links.values()):
            if link.num_requests == 0 and now_s - link.since_s > self._bounds.idle_s:
                link.transport.abort()


def protocol_of(connections: Connections) -> type[H11Protocol]:
    """Return the protocol whose connections are counted, and whose own errors are ours in shape."""

    class Connection(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if self.client is not None and not connections.add(self.client, transport):
                transport.write(_answer(503, "too-busy", "too many connections are open."))
                transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            if self.client is not None:
                connections.remove(self.client)
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            if self.cycle is not None and not self.cycle.response_complete:
                # In the middle of an answer another one would only be taken for part of it.
                self.transport.abort()
                return
            self.transport.write(_answer(400, "request-malformed", "this is no HTTP request."))
            self.transport.close()

    return Connection


def _answer(status: int, code: str, message: str) -> bytes:
    """Return a whole answer for those whom no application sees."""
    body = msgspec.json.encode(ErrorDocument(code, message))
    return (
        b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
        b"connection: close\r\n\r\n%b" % (_STATUS_LINES[status], len(body), body)
    )
