"""Kubernetes Events: told on transitions, never twice in a row, never a reason to fail."""

from __future__ import annotations

import datetime
import logging
import secrets
from typing import Any

from ...logbook.errors import MidwatchError
from . import names
from .actions import Tell
from .client import EVENTS, Kube
from .observed import Object

_log = logging.getLogger(__name__)
NOTE_CHARS = 1000
KNOWN_MAX = 1024


class Teller:
    """Writes Events in the name of one operator pod."""

    def __init__(self, kube: Kube, instance: str) -> None:
        self._kube, self._instance = kube, instance
        self._last: dict[tuple[str, str], str] = {}

    async def tell(self, told: Tell, about: Object) -> None:
        """Write an Event about an object; what cannot be written is logged and let go."""
        regarding = told.about or about
        meta = regarding["metadata"]
        key = str(meta.get("uid", meta["name"])), told.reason
        if self._last.get(key) == told.message:
            return
        try:
            await self._kube.create(EVENTS, self._event(told, regarding))
        except MidwatchError as error:
            if error.code == "lease-lost":
                raise
            _log.info("event %s of %s is not written: %s", told.reason, meta["name"], error)
            return
        if len(self._last) >= KNOWN_MAX:
            self._last.clear()
        self._last[key] = told.message

    def _event(self, told: Tell, regarding: Object) -> Object:
        meta: dict[str, Any] = regarding["metadata"]
        now = datetime.datetime.now(tz=datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {
                "name": f"{meta['name'][:200]}.{secrets.token_hex(8)}",
                "namespace": meta.get("namespace") or "default",
            },
            "eventTime": now,
            "reportingController": f"{names.GROUP}/operator",
            "reportingInstance": self._instance[:128],
            "action": told.action,
            "reason": told.reason[:128],
            "type": told.type,
            "note": told.message[:NOTE_CHARS],
            "regarding": {
                "apiVersion": regarding.get("apiVersion", names.API_VERSION),
                "kind": regarding.get("kind", names.TRAINING_RUN),
                "name": meta["name"],
                "namespace": meta.get("namespace", ""),
                "uid": meta.get("uid", ""),
            },
        }
