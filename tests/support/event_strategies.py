"""Any event that the types allow, for property tests over the whole union."""

from __future__ import annotations

import types
import typing
from enum import Enum
from typing import Any

import msgspec
from hypothesis import strategies as st
from midwatch.logbook.events import Event

KINDS: tuple[type[msgspec.Struct], ...] = typing.get_args(Event)


def any_event() -> st.SearchStrategy[Event]:
    """Any event of any kind; floats include NaN and the infinities."""
    return st.one_of([any_struct(kind) for kind in KINDS])


def any_struct(cls: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Any instance of a struct class, by its field types."""
    hints = typing.get_type_hints(cls)
    fields = {name: _of(hints[name]) for name in cls.__struct_fields__}
    return st.builds(cls, **fields)


def _of(hint: Any) -> st.SearchStrategy[Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([_of(arg) for arg in args])
    if origin is tuple:
        if args[-1] is Ellipsis:
            return st.lists(_of(args[0]), max_size=2).map(tuple)
        return st.tuples(*(_of(arg) for arg in args))
    if origin is dict:
        return st.dictionaries(st.text(max_size=4), _of(args[1]), max_size=2)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(list(hint))
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return any_struct(hint)
    plain: dict[Any, st.SearchStrategy[Any]] = {
        int: st.integers(-(2**63), 2**63 - 1),
        float: st.floats(),
        str: st.text(max_size=8),
        bool: st.booleans(),
        type(None): st.none(),
        Any: st.integers() | st.text(max_size=4),
    }
    return plain[hint]
