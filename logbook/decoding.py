"""Make a type ready to be decoded into, in one thread at a time.

msgspec looks into the fields of a Struct when something is first decoded into it, and keeps what it
has found so far where other threads find it: two that meet a type for the first time at the same
moment end the process with SIGSEGV (0.22.0, measured). A type that has been looked into once is
safe in every thread. So no decoder is made but from a type that went through `prepared`, which
tests/unit/test_tidy.py holds.
"""

from __future__ import annotations

import threading
from typing import Any, TypeVar, overload

import msgspec

T = TypeVar("T")

_ready: set[Any] = set()
# A finaliser may run, and decode, in the thread that holds the lock.
_looking = threading.RLock()


@overload
def prepared(kind: type[T]) -> type[T]: ...


@overload
def prepared(kind: Any) -> Any: ...


def prepared(kind: Any) -> Any:
    """Return kind, a type that msgspec takes, once it and all types within it are looked into.

    Raises: TypeError, as msgspec's own decoders do for a type that they cannot decode into.
    """
    if kind not in _ready:
        with _looking:
            msgspec.json.Decoder(kind)
            _ready.add(kind)
    return kind
