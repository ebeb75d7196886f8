"""What every request passes: bounds on how many, how large and how long, whatever is asked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .connections import Connections
from .order import Bounds
from .refusal import Refusal, document_of

SLICE_BYTES = 64 << 10
_HEADERS = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
_log = logging.getLogger(__name__)


class Stalled(Exception):
    """The caller takes no more of its answer."""


class Gate:
    """Answers at most so many requests at once, each within its time; cuts off who will not read.

    A large answer goes out in slices, each when the one before is taken: what a slow reader makes
    the server hold is one slice, not the answer.
    """

    def __init__(self, app: ASGIApp, bounds: Bounds, connections: Connections) -> None:
        self._app = app
        self._bounds = bounds
        self._connections = connections
        self._num_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send, self._bounds)
        if self._num_requests >= self._bounds.requests + self._bounds.streams:
            await answer.refuse(Refusal(503, "too-busy", "too many requests are being answered."))
            return
        peer = scope.get("client")
        self._num_requests += 1
        try:
            with self._connections.in_use(peer):
                await self._answer(scope, receive, answer)
        except Stalled:
            _log.info("%s takes no more of its answer: cut off", peer)
            self._connections.cut(peer)
            # Let the loss of the connection be noted, or the answer seems to be missing.
            await asyncio.sleep(0)
        finally:
            self._num_requests -= 1

    async def _answer(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        try:
            async with asyncio.timeout(self._bounds.request_s) as deadline:
                # From then on it is for each slice that the caller has a given time.
                answer.on_start = lambda: deadline.reschedule(None)
                await self._app(scope, receive, answer.send)
        except TimeoutError:
            if answer.is_begun:
                raise Stalled from None
            answer.on_start = lambda: None
            message = f"no answer within {self._bounds.request_s:g} s."
            await answer.refuse(Refusal(503, "too-slow", message, remedy="Ask again."))


class _Answer:
    """One answer on its way out. on_start: called when it begins."""

    def __init__(self, send: Send, bounds: Bounds) -> None:
        self._send = send
        self._bounds = bounds
        self.is_begun = False
        self.on_start: Callable[[], None] = lambda: None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.is_begun = True
            self.on_start()
            message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await self._pass_on(message)
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        while len(body) > SLICE_BYTES:
            await self._pass_on({**message, "body": body[:SLICE_BYTES], "more_body": True})
            body = body[SLICE_BYTES:]
        await self._pass_on({**message, "body": body, "more_body": more})

    async def refuse(self, refusal: Refusal) -> None:
        body = msgspec.json.encode(document_of(refusal))
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"retry-after", b"1"),
        ]
        await self.send(
            {"type": "http.response.start", "status": refusal.status, "headers": headers}
        )
        await self.send({"type": "http.response.body", "body": body})

    async def _pass_on(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self._bounds.stall_s):
                await self._send(message)
        except TimeoutError:
            raise Stalled from None
