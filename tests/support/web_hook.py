"""A real HTTP server on the loopback that takes messages, and behaves as badly as it is told to."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Answer = int | Callable[[BaseHTTPRequestHandler], None]


class WebHook:
    """Answers each request with the next of its answers (200 once they are used up).

    An answer is a status, or a function that does with the connection what it likes.
    """

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.requests_total = 0
        self.free = threading.Event()
        self._lock = threading.Lock()
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hook._answer(self, b"")

            def do_POST(self) -> None:
                hook._answer(self, self.rfile.read(int(self.headers["Content-Length"])))

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def __enter__(self) -> WebHook:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.free.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/services/T0/B0/sEcReT"

    @property
    def texts(self) -> list[str]:
        """The texts of the messages that were taken."""
        return [json.loads(body)["text"] for body in self.bodies if body]

    def _answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        with self._lock:
            self.requests_total += 1
            answer = self.answers.pop(0) if self.answers else 200
        if callable(answer):
            answer(handler)
            return
        if answer == 200:
            self.bodies.append(body)
            self.headers.append(dict(handler.headers))
        handler.send_response(answer)
        if 300 <= answer < 400:
            handler.send_header("Location", self.url)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    # --- bad manners -----------------------------------------------------------------------------

    def silent(self, handler: BaseHTTPRequestHandler) -> None:
        """Say nothing for as long as the server lives."""
        self.free.wait(60.0)

    def dripping(self, handler: BaseHTTPRequestHandler) -> None:
        """Begin an answer and send one more byte ever so often, without an end."""
        try:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
            while not self.free.wait(0.05):
                handler.wfile.write(b"x")
                handler.wfile.flush()
        except OSError:
            pass

    def cut(self, handler: BaseHTTPRequestHandler) -> None:
        """Hang up in the middle of a line."""
        handler.wfile.write(b"HTTP/1.1 20")
        handler.connection.shutdown(socket.SHUT_RDWR)
