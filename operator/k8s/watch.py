"""kopf as a thin adapter: it watches, reconnects and logs in, and hands every event to a cache.

No handler of it changes anything, so it writes no annotation and no finalizer, and nothing of what
the operator decides hangs on which events it has delivered: the caches are listed anew as well.
It has a thread and a loop of its own, since at its end it cancels every task that it finds in its
loop and did not find there at its start.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import kopf

from . import names
from .access import Access
from .cache import Cache
from .client import Kind
from .world import World

INACTIVE_S = 70.0
CONNECT_S = 10.0
END_S = 10.0
_BACK_OFFS_S = (1.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0)
_LAST_BACK_OFF_S = 15.0


class _Patience:
    """Waits between tries without an end: an API server that is away is waited for."""

    def __iter__(self) -> Iterator[float]:
        yield from _BACK_OFFS_S
        while True:
            yield _LAST_BACK_OFF_S


async def watch(world: World, access: Access) -> None:
    """Watch every resource of a world until cancelled. Raises: what kopf cannot get over."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    stop = threading.Event()
    registry = _registry(world, access, loop.call_soon_threadsafe)
    settings = _settings()

    def end(error: BaseException | None) -> None:
        if not ended.done():
            ended.set_exception(error) if error is not None else ended.set_result(None)

    def work() -> None:
        error: BaseException | None = None
        try:
            asyncio.run(
                kopf.operator(
                    registry=registry,
                    settings=settings,
                    standalone=True,
                    clusterwide=not world.scope.namespaces,
                    namespaces=world.scope.namespaces,
                    stop_flag=stop,
                )
            )
        except Exception as raised:
            error = raised
        # The loop may be gone already, where nobody waited for us.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(end, error)

    threading.Thread(target=work, name="kopf", daemon=True).start()
    try:
        await asyncio.shield(ended)
    finally:
        stop.set()
        if not ended.done():
            await asyncio.wait([ended], timeout=END_S)


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    # What is served is looked up by main.py, which needs no right to read definitions for it.
    settings.scanning.disabled = True
    settings.queueing.exit_timeout = 0.5
    # kopf takes away the finalizer that it holds for its own where no handler needs it: not ours.
    settings.persistence.finalizer = f"{names.GROUP}/unused"
    settings.watching.inactivity_timeout = INACTIVE_S
    settings.watching.connect_timeout = CONNECT_S
    settings.watching.label_selectors["", "v1", "pods"] = names.RAY_CLUSTER_LABEL
    settings.networking.connect_timeout = CONNECT_S
    settings.networking.request_timeout = INACTIVE_S
    settings.networking.error_backoffs = _Patience()
    settings.networking.enforce_retry_after = True
    # It would kill the whole process.
    settings.process.ultimate_exiting_timeout = None
    return settings


def _registry(world: World, access: Access, hand_over: Callable[..., Any]) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()

    def login(**_: Any) -> kopf.ConnectionInfo:
        return connection(access)

    kopf.on.login(registry=registry)(login)
    for kind, cache in world.caches.items():
        _watch_kind(registry, kind, cache, hand_over)
    return registry


def _watch_kind(
    registry: kopf.OperatorRegistry, kind: Kind, cache: Cache[Any], hand_over: Callable[..., Any]
) -> None:
    async def see(event: Any, **_: Any) -> None:
        # The loop that owns the cache ends before this thread does.
        with contextlib.suppress(RuntimeError):
            hand_over(cache.see, event["type"], dict(event["object"]))

    name = f"see-{kind.plural}"
    kopf.on.event(kind.group, kind.version, kind.plural, id=name, registry=registry)(see)


def connection(access: Access) -> kopf.ConnectionInfo:
    """Return an access as kopf wants to know it."""
    scheme, _, token = (access.header() or "").partition(" ")
    return kopf.ConnectionInfo(
        server=access.server,
        ca_path=access.ca_path,
        insecure=access.is_insecure,
        scheme=scheme if token else None,
        token=token or None,
        certificate_path=access.certificate_path,
        private_key_path=access.key_path,
    )
