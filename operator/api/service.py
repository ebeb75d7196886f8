"""Everything that answers for one run, put together; the routes (routes.py) only ask it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

from .connections import Connections
from .intake import Intake
from .order import ServeOrder
from .refusal import Refusal
from .run_view import RunView
from .stream import Pulse
from .tokens import Role, Tokens

THREADS = 16
T = TypeVar("T")


class Service:
    """One run and those who may ask about it. Raises: as Tokens."""

    def __init__(self, order: ServeOrder) -> None:
        self.spec, self.bounds = order.spec, order.bounds
        self.run_dir = Path(order.run_dir)
        self.view = RunView(self.run_dir, self.bounds)
        self.intake = Intake(self.view, self.bounds)
        self.pulse = Pulse(self.view, self.bounds, self.offload)
        self.connections = Connections(self.bounds)
        self._tokens = Tokens(self.spec, self.run_dir)
        # Bounded, and its own: a disk that hangs holds up questions, never the event loop.
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="answer")

    async def offload(self, call: Callable[..., T], *arguments: Any) -> T:
        """Return what a call that may touch the disk returns, made off the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, functools.partial(call, *arguments))

    async def role_of(self, authorization: str | None, host: str) -> Role:
        """Return the role of a caller. host: as the request names the server it was meant for.

        Raises: Refusal[token-missing, token-wrong, tokens-unreadable, host-unknown].
        """
        if self.spec.auth == "off" and is_loopback(self.spec.host) and not _names_loopback(host):
            # A page in this machine's browser can have a name of its own lead here.
            raise Refusal(
                403, "host-unknown", f"without tokens this server answers to localhost, not {host}."
            )
        return await self.offload(self._tokens.role_of, authorization)

    def signer(self, role: Role) -> str:
        """Return how a caller's requests are signed in the record."""
        return "api:anyone" if self.spec.auth == "off" else f"api:{role}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _names_loopback(host: str) -> bool:
    name = host.partition("]")[0].removeprefix("[") if host[:1] == "[" else host.partition(":")[0]
    return is_loopback(name)
