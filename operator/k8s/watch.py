"""kopf as a thin adapter: it watches, reconnects and logs in, and hands every event to a cache.

No handler of it changes anything, so it writes no annotation and no finalizer, and nothing of what
the operator decides hangs on which events it has delivered: the caches are listed anew as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import kopf

from . import names
from .access import Access
from .cache import Cache
from .client import Kind
from .world import World

INACTIVE_S = 70.0
CONNECT_S = 10.0
_BACK_OFFS_S = (1.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0)
_LAST_BACK_OFF_S = 15.0


class _Patience:
    """Waits between tries without an end: an API server that is away is waited for."""

    def __iter__(self) -> Iterator[float]:
        yield from _BACK_OFFS_S
        while True:
            yield _LAST_BACK_OFF_S


async def watch(world: World, access: Access, stop: asyncio.Event) -> None:
    """Watch every resource of a world until stop is set. Raises: what kopf cannot get over."""
    await kopf.operator(
        registry=_registry(world, access),
        settings=_settings(world),
        standalone=True,
        clusterwide=not world.scope.namespaces,
        namespaces=world.scope.namespaces,
        stop_flag=stop,
    )


def _settings(world: World) -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    # What is served is looked up by main.py, which needs no right to read definitions for it.
    settings.scanning.disabled = True
    settings.persistence.finalizer = names.FINALIZER
    settings.watching.inactivity_timeout = INACTIVE_S
    settings.watching.connect_timeout = CONNECT_S
    settings.watching.label_selectors["", "v1", "pods"] = names.RAY_CLUSTER_LABEL
    settings.networking.connect_timeout = CONNECT_S
    settings.networking.request_timeout = INACTIVE_S
    settings.networking.error_backoffs = _Patience()
    settings.networking.enforce_retry_after = True
    settings.process.ultimate_exiting_timeout = 10.0
    return settings


def _registry(world: World, access: Access) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()

    def login(**_: Any) -> kopf.ConnectionInfo:
        return connection(access)

    kopf.on.login(registry=registry)(login)
    for kind, cache in world.caches.items():
        _hand_over(registry, kind, cache)
    return registry


def _hand_over(registry: kopf.OperatorRegistry, kind: Kind, cache: Cache[Any]) -> None:
    async def hand_over(event: Any, **_: Any) -> None:
        cache.see(event["type"], dict(event["object"]))

    kopf.on.event(
        kind.group, kind.version, kind.plural, id=f"see-{kind.plural}", registry=registry
    )(hand_over)


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
