"""An HTTP proxy in front of an S3 service that goes wrong in the ways that services do, by plan.

Each request that matches a fault's method and comes while the fault has lives left meets it; so a
test knows how many struck. A seeded chooser strikes at random instead.
"""

from __future__ import annotations

import http.client
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

KINDS = ("500", "503", "reset", "lost-answer", "truncated", "flipped", "slow", "skewed", "expired")
_XML = '<?xml version="1.0"?><Error><Code>{code}</Code><Message>planned</Message></Error>'
_STATUS = {
    "500": (500, "InternalError"),
    "503": (503, "SlowDown"),
    "skewed": (403, "RequestTimeTooSkewed"),
    "expired": (400, "ExpiredToken"),
}
_REFUSALS = {"InvalidAccessKeyId": 403, "SignatureDoesNotMatch": 403, "ExpiredToken": 400}
REFUSALS = tuple(_REFUSALS)
_KEY = re.compile(r"Credential=([^/]+)/")
_HOP_BY_HOP = frozenset({"connection", "transfer-encoding", "keep-alive"})
SLOW_S = 0.3


@dataclass
class Fault:
    """A kind of fault, the method it strikes ("" any), and how many times; struck counts."""

    kind: str
    method: str = ""
    lives: int = 1
    struck: int = 0


@dataclass
class Plan:
    """What goes wrong. chance_frac of all requests meet a random kind when rng is given.

    is_down: every connection is cut before a word is said.
    only_key: requests signed with any other key are refused, with the code of refusal.
    """

    faults: list[Fault] = field(default_factory=list)
    rng: random.Random | None = None
    chance_frac: float = 0.0
    kinds: tuple[str, ...] = KINDS
    is_down: bool = False
    only_key: str = ""
    refusal: str = "InvalidAccessKeyId"
    struck: list[str] = field(default_factory=list)
    on_request: Callable[[str, str], None] = lambda method, path: None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def choose(self, method: str, path: str) -> str:
        """Return the fault that this request meets, "" for none."""
        self.on_request(method, path)
        with self._lock:
            if self.is_down:
                return "reset"
            for fault in self.faults:
                if fault.lives and fault.method in ("", method):
                    fault.lives -= 1
                    fault.struck += 1
                    self.struck.append(fault.kind)
                    return fault.kind
            if self.rng is not None and self.rng.random() < self.chance_frac:
                kind = self.rng.choice(self.kinds)
                self.struck.append(kind)
                return kind
        return ""


@contextmanager
def fault_proxy(upstream: str, plan: Plan) -> Iterator[str]:
    """Serve on loopback; give out the URL to use in the place of upstream."""
    target = urlsplit(upstream)

    class Handler(_Handler):
        host, port = str(target.hostname), int(target.port or 80)
        faults = plan

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no news here."""


class _Handler(BaseHTTPRequestHandler):
    host: str
    port: int
    faults: Plan
    protocol_version = "HTTP/1.1"
    timeout = 30.0

    def _serve(self) -> None:
        fault = self.faults.choose(self.command, self.path)
        length = int(self.headers.get("Content-Length") or 0)
        if fault == "reset":
            self._cut()
            return
        body = self.rfile.read(length)
        if not self._has_right_key():
            self._refuse(_REFUSALS[self.faults.refusal], self.faults.refusal)
            return
        if fault == "slow":
            time.sleep(SLOW_S)
        if fault in _STATUS:
            self._refuse(*_STATUS[fault])
            return
        status, headers, answer = self._forward(body)
        if fault == "lost-answer":
            self._cut()
            return
        if fault == "flipped" and self.command == "GET" and answer and status in (200, 206):
            at = len(answer) // 2
            answer = answer[:at] + bytes([answer[at] ^ 0x10]) + answer[at + 1 :]
        self._answer(status, headers, answer, is_truncated=fault == "truncated")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _has_right_key(self) -> bool:
        found = _KEY.search(self.headers.get("Authorization", ""))
        is_right = not self.faults.only_key or (found and found[1] == self.faults.only_key)
        if not is_right:
            self.faults.struck.append(self.faults.refusal)
        return bool(is_right)

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        # The Host header goes along: it is part of what was signed.
        link = http.client.HTTPConnection(self.host, self.port, timeout=30.0)
        link.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("expect", *_HOP_BY_HOP):
                link.putheader(name, value)
        link.endheaders(body)
        answer = link.getresponse()
        content = answer.read()
        headers = [(n, v) for n, v in answer.getheaders() if n.lower() not in _HOP_BY_HOP]
        link.close()
        return answer.status, headers, content

    def _answer(
        self, status: int, headers: list[tuple[str, str]], body: bytes, is_truncated: bool
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() != "content-length":
                self.send_header(name, value)
        known = [value for name, value in headers if name.lower() == "content-length"]
        is_head = self.command == "HEAD"
        self.send_header("Content-Length", known[0] if is_head and known else str(len(body)))
        self.end_headers()
        if is_head:
            return
        self.wfile.write(body[: len(body) // 2] if is_truncated else body)
        if is_truncated:
            self._cut()

    def _refuse(self, status: int, code: str) -> None:
        body = _XML.format(code=code).encode()
        self._answer(status, [("Content-Type", "application/xml")], body, is_truncated=False)

    def _cut(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
        )
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """Tests read counts, not logs."""
