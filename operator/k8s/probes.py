"""What the kubelet and Prometheus ask of the operator: is it alive, does it see, what has it done.

GET /healthz  200 as long as the loops turn
GET /readyz   200 once it sees what it is to watch, or stands by; else 503 and why
GET /metrics  Prometheus text
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

REQUEST_S = 5.0
LINE_BYTES_MAX = 4096
MetricRow = tuple[str, str, float]


class Health(msgspec.Struct, frozen=True):
    """How the operator is. trouble: why it is not ready, "" when it is.

    metrics: (name, type, value).
    """

    is_alive: bool
    trouble: str = ""
    note: str = "ok"
    metrics: tuple[MetricRow, ...] = ()


async def serve_probes(port: int, health: Callable[[], Health]) -> asyncio.Server:
    """Serve the probes on every interface; port 0 takes any. The caller closes the server."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_S):
                line = await reader.readline()
                writer.write(_answer(line.decode("latin-1").split(), health()))
                await writer.drain()
        except (TimeoutError, ValueError, OSError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(answer, None, port, limit=LINE_BYTES_MAX)


def _answer(request: list[str], health: Health) -> bytes:
    path = request[1].partition("?")[0] if len(request) > 1 else ""
    if path == "/healthz":
        status, body = (200, "ok") if health.is_alive else (500, "the loops do not turn")
    elif path == "/readyz":
        status, body = (503, health.trouble) if health.trouble else (200, health.note)
    elif path == "/metrics":
        rows = [f"# TYPE {name} {kind}\n{name} {value:g}\n" for name, kind, value in health.metrics]
        status, body = 200, "".join(rows)
    else:
        status, body = 404, "there is /healthz, /readyz and /metrics"
    data = f"{body}\n".encode()
    head = (
        f"HTTP/1.1 {status} {'OK' if status == 200 else 'Trouble'}\r\n"
        f"Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
        f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + data
