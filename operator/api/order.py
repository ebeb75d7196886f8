"""What a serving process is started with, and the bounds that it keeps."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from ... import __version__
from ..spec_api import ApiSpec


class Bounds(msgspec.Struct, frozen=True):
    """What callers can take of the server at most; whatever they do, it holds no more than this.

    body_bytes, header_bytes: of a request. connections: open ones. requests: answered at once.
    streams: those that follow events. request_s: to the first byte of an answer. stall_s: for a
        reader to take what it was sent last. idle_s: for a connection without a request.
    page_records, page_bytes: of one answer with events. waiting: requests on the desk that no
        controller has taken yet. heartbeat_s: between two signs of life on a quiet stream.
    """

    body_bytes: int = 64 << 10
    header_bytes: int = 16 << 10
    connections: int = 256
    requests: int = 64
    streams: int = 32
    request_s: float = 30.0
    stall_s: float = 15.0
    idle_s: float = 15.0
    page_records: int = 5000
    page_bytes: int = 8 << 20
    waiting: int = 1000
    heartbeat_s: float = 10.0


class ServeOrder(msgspec.Struct, frozen=True):
    """One run to be served. api: its ApiSpec as plain data, which names secrets and holds none.

    is_own: the process is the controller's, tells where it listens in the run's folder and leaves
        when another one is told of there. while_pid: it leaves when that process ends; 0: none.
    """

    run_dir: str
    api: dict[str, Any]
    is_own: bool = False
    while_pid: int = 0
    bounds: Bounds = Bounds()
    version: str = __version__

    @property
    def spec(self) -> ApiSpec:
        return ApiSpec.model_validate(self.api)

    @property
    def digest(self) -> str:
        """What tells this order from any other."""
        blob = msgspec.json.encode(self, order="deterministic")
        return hashlib.sha256(blob).hexdigest()[:16]


def order_of(spec: ApiSpec, run_dir: str, *, while_pid: int) -> ServeOrder:
    """Return the order for the process that serves a run beside its controller."""
    return ServeOrder(run_dir, spec.model_dump(mode="json"), is_own=True, while_pid=while_pid)
