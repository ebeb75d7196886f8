"""An S3 endpoint from before some header: whoever sends it is answered "not implemented".

Small on purpose: whole objects in memory, no uploads in parts. It does check Content-MD5, the only
checksum that services of its age know.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CHECKSUMS, CONDITIONS = "x-amz-checksum-", "if-none-match"


@dataclass
class OldEndpoint:
    """What it holds and was asked. unknown: the beginnings of header names that it refuses.

    puts: of each put that it took, whether it came with (SHA-256, MD5, a condition).
    """

    unknown: tuple[str, ...]
    url: str = ""
    objects: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    puts: list[tuple[bool, bool, bool]] = field(default_factory=list)


@contextmanager
def old_endpoint(*unknown: str) -> Iterator[OldEndpoint]:
    """Serve on loopback."""
    there = OldEndpoint(unknown)

    class Handler(_Handler):
        endpoint = there

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    there.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield there
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    endpoint: OldEndpoint
    # One request a connection: none is left open when the server ends.
    protocol_version = "HTTP/1.0"

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        names = [name.lower() for name in self.headers]
        if any(name.startswith(self.endpoint.unknown) for name in names):
            self._answer(501, b"<Error><Code>NotImplemented</Code></Error>")
            return
        md5 = self.headers.get("Content-MD5", "")
        right = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        if md5 not in ("", right):
            self._answer(400, b"<Error><Code>BadDigest</Code></Error>")
            return
        if CONDITIONS in names and self.path in self.endpoint.objects:
            self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            return
        has_sha256 = any(name.startswith(CHECKSUMS) for name in names)
        self.endpoint.puts.append((has_sha256, bool(md5), CONDITIONS in names))
        self.endpoint.objects[self.path] = body, self.headers.get("x-amz-meta-sha256", "")
        self._answer(200, b"", {"ETag": f'"{right}"'})

    def do_GET(self) -> None:
        if self.path not in self.endpoint.objects:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        body, sha256 = self.endpoint.objects[self.path]
        self._answer(200, body, {"x-amz-meta-sha256": sha256})

    do_HEAD = do_GET

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response_only(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Tests read what it was asked, not logs."""
