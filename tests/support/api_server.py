"""A run served by the real process over real HTTP, as its keeper or a person would start it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import msgspec
from midwatch.operator.agent.process import process_state
from midwatch.operator.api.client import Access, ApiClient
from midwatch.operator.api.endpoint import Endpoint
from midwatch.operator.api.order import Bounds, ServeOrder
from midwatch.operator.api.tokens import Role, token_path

DEADLINE_S = 60.0


class ApiServer:
    """Use as a context manager. api: fields of the spec's section; bounds: those that matter."""

    def __init__(
        self,
        run_dir: Path,
        api: dict[str, Any] | None = None,
        *,
        is_own: bool = False,
        **bounds: Any,
    ) -> None:
        self.run_dir = run_dir
        self._clients: list[ApiClient] = []
        self.order = ServeOrder(str(run_dir), api or {}, is_own=is_own, bounds=Bounds(**bounds))

    def __enter__(self) -> ApiServer:
        command = [sys.executable, "-m", "midwatch.operator.api.server"]
        blob = msgspec.json.encode(self.order).decode()
        self.process = subprocess.Popen([*command, blob], stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        with self.process.stdout:
            self.said = self.process.stdout.readline()
        self.endpoint = msgspec.json.decode(self.said, type=Endpoint)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for client in self._clients:
            client.close()
        self.process.terminate()
        self.process.wait(DEADLINE_S)

    @property
    def log(self) -> str:
        return (self.run_dir / "logs" / "api.log").read_text()

    def token(self, role: Role) -> str:
        return token_path(self.run_dir, role).read_text().strip()

    def http(self, role: Role | None = Role.OPERATOR, **options: Any) -> httpx.Client:
        """Return a bare client that shows the token of a role."""
        headers = {"Authorization": f"Bearer {self.token(role)}"} if role is not None else {}
        return httpx.Client(
            base_url=self.endpoint.url,
            headers=headers,
            trust_env=False,
            timeout=DEADLINE_S,
            **options,
        )

    def client(self, role: Role = Role.OPERATOR) -> ApiClient:
        """Return the client that commands use, open as long as the server is."""
        self._clients.append(ApiClient(Access(self.endpoint.url, self.token(role))))
        return self._clients[-1]

    def socket(self) -> socket.socket:
        """Return a bare connection."""
        return socket.create_connection(("127.0.0.1", self.endpoint.port), DEADLINE_S)

    def resident_kb(self) -> int:
        """Return the memory that the process holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])


def read_to_end(connection: socket.socket) -> bytes:
    """Return everything a server sends until it closes, however it does."""
    seen = b""
    try:
        while piece := connection.recv(65_536):
            seen += piece
    except ConnectionResetError:
        pass
    return seen


class Sse:
    """A stream of server-sent events as its reader sees it, message by message."""

    def __init__(self, answer: httpx.Response) -> None:
        self._lines = answer.iter_lines()

    def __iter__(self) -> Iterator[tuple[str, str, str]]:
        """Yield (event, id, data) of each message; a comment is an event called ":"."""
        found = {"event": "", "id": "", "data": ""}
        for line in self._lines:
            if line.startswith(":"):
                yield ":", "", line
            elif line:
                name, _, value = line.partition(": ")
                found[name] = value
            elif found["data"]:
                yield found["event"], found["id"], found["data"]
                found = {"event": "", "id": "", "data": ""}


@contextmanager
def streaming(http: httpx.Client, **params: Any) -> Iterator[Sse]:
    """Follow the events of a run."""
    headers = params.pop("headers", {})
    with http.stream("GET", "/v1/events/stream", params=params, headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        yield Sse(answer)


def wait_gone(pid: int) -> None:
    """Wait until a process is no more."""
    deadline_s = time.monotonic() + DEADLINE_S
    while process_state(pid) not in ("Z", "X"):
        assert time.monotonic() < deadline_s, f"process {pid} lives on"
        time.sleep(0.02)
