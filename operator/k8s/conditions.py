"""Conditions: built purely, their transition times kept as long as nothing changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .observed import Object, time_text

TRUE, FALSE, UNKNOWN = "True", "False", "Unknown"
FIRST_SIGHT = "FirstSight"
MESSAGE_CHARS = 1024


class Conditions:
    """The conditions of one object as they are to be written, in a fixed order of types."""

    def __init__(
        self, types: Sequence[str], known: Sequence[Object], generation: int, now_s: float
    ) -> None:
        self._known = {each["type"]: each for each in known}
        self._types, self._generation, self._now_s = tuple(types), generation, now_s
        self._new: dict[str, Object] = {}

    def set(self, name: str, status: str, reason: str, message: str = "") -> None:
        """Say that a condition has this status, and why. The last word counts."""
        before = self._known.get(name)
        is_same = before is not None and before["status"] == status
        since = before["lastTransitionTime"] if before is not None and is_same else None
        self._new[name] = {
            "type": name,
            "status": status,
            "observedGeneration": self._generation,
            "lastTransitionTime": since or time_text(self._now_s),
            "reason": reason,
            "message": message[:MESSAGE_CHARS],
        }

    def status_of(self, name: str) -> str:
        """Return the status that a condition has now."""
        return str(self._new.get(name, self._known.get(name, {})).get("status", UNKNOWN))

    def render(self) -> list[Object]:
        """Return all conditions; what nobody spoke of stays as it was, or is Unknown."""
        for name in self._types:
            if name in self._new:
                continue
            before = self._known.get(name)
            if before is None:
                self.set(name, UNKNOWN, FIRST_SIGHT, "not looked at yet")
            else:
                self.set(name, before["status"], before["reason"], before["message"])
        return [self._new[name] for name in self._types]

    def changed(self) -> list[Object]:
        """Return those whose status or reason is another than it was known to be."""
        return [
            each
            for each in self.render()
            if _told(each) != _told(self._known.get(each["type"], {})) and not _is_first(each)
        ]


def _told(condition: Object) -> tuple[Any, Any]:
    return condition.get("status"), condition.get("reason")


def _is_first(condition: Object) -> bool:
    return bool(condition["reason"] == FIRST_SIGHT)


def is_true(conditions: Sequence[Object] | None, name: str) -> bool:
    """Whether a condition of an object holds."""
    return any(c["type"] == name and c["status"] == TRUE for c in conditions or ())
