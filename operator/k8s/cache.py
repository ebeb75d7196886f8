"""What the cluster was last seen to hold: events keep it current, listings put it right.

An event may be lost: a watch can go silent, and what was deleted while it was broken is never told.
So every resource is listed anew from time to time, and what a listing does not hold is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from .observed import Object

T = TypeVar("T")
Key = tuple[str, str]


def key_of(body: Object) -> Key:
    """Return (namespace, name) of an object."""
    meta = body["metadata"]
    return str(meta.get("namespace") or ""), str(meta["name"])


class Cache(Generic[T]):
    """All objects of one resource, as far as they matter: read() makes a T of an object.

    changed() is told the key and the T whenever something that matters has changed.
    """

    def __init__(
        self, read: Callable[[Object], T], changed: Callable[[Key, T], None] = lambda *_: None
    ) -> None:
        self._read, self._changed = read, changed
        self._items: dict[Key, T] = {}
        self._versions: dict[Key, tuple[str, int]] = {}
        self._touched: set[Key] | None = None
        self.is_listed = False

    def __iter__(self) -> Iterator[T]:
        return iter(list(self._items.values()))

    def get(self, namespace: str, name: str) -> T | None:
        """Return what is known of an object, None when there is none."""
        return self._items.get((namespace, name))

    def items(self) -> list[tuple[Key, T]]:
        """Return all that is known."""
        return list(self._items.items())

    def see(self, kind: str | None, body: Object) -> None:
        """Take an event in. kind: DELETED, or anything else for an object that is there."""
        key = key_of(body)
        if self._touched is not None:
            self._touched.add(key)
        if kind == "DELETED":
            # Word of an older object of this name may come after the new one was seen.
            if self._versions.get(key, ("", 0))[0] == _uid(body):
                self._forget(key)
        elif not self._is_older(key, body):
            self._put(key, body)

    def begin_listing(self) -> None:
        """A listing is asked for: what events tell from now on is newer than it."""
        self._touched = set()

    def end_listing(self, bodies: Iterable[Object]) -> None:
        """Take a listing in, but for what events have told meanwhile."""
        touched = self._touched or set()
        self._touched = None
        listed = {key_of(body): body for body in bodies}
        for key in [k for k in self._items if k not in listed and k not in touched]:
            self._forget(key)
        for key, body in listed.items():
            if key not in touched and not self._is_older(key, body):
                self._put(key, body)
        self.is_listed = True

    def _is_older(self, key: Key, body: Object) -> bool:
        known = self._versions.get(key)
        return known is not None and _version(body) < known[1]

    def _put(self, key: Key, body: Object) -> None:
        self._versions[key] = _uid(body), _version(body)
        item = self._read(body)
        if self._items.get(key) != item:
            self._items[key] = item
            self._changed(key, item)

    def _forget(self, key: Key) -> None:
        self._versions.pop(key, None)
        gone = self._items.pop(key, None)
        if gone is not None:
            self._changed(key, gone)


def _uid(body: Object) -> str:
    return str(body["metadata"].get("uid", ""))


def _version(body: Object) -> int:
    # Versions of one resource rise; a server that counts otherwise is taken at its last word.
    text = str(body["metadata"].get("resourceVersion", ""))
    return int(text) if text.isdecimal() else 0
