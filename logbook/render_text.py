"""One line per record, for `midwatch journal` and every other place without room for more.

    2026-01-02 03:04:05.678Z     17  a2   worker-exited  rank 3 on node-1 killed by SIGKILL

Kinds that people ask about have a phrase of their own (phrases.py); the others, and kinds this
version has never heard of, are written as key=value.
"""

from __future__ import annotations

import re
from typing import Any, get_args

import msgspec

from .clock import clock_text
from .events import Event
from .phrases import phrase_of
from .record import Record

MAX_TEXT = 400
_MAX_VALUE = 120
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PLAIN = re.compile(r"[^\s=\"]+")


class Filters(msgspec.Struct, frozen=True):
    """Which records to show; an empty kinds means every kind, attempt None every attempt."""

    kinds: frozenset[str] = frozenset()
    since_seq: int = 1
    attempt: int | None = None

    def match(self, record: Record[Any]) -> bool:
        """Return whether the record is to be shown."""
        return (
            record.seq >= self.since_seq
            and (self.attempt is None or record.attempt == self.attempt)
            and (not self.kinds or record.kind in self.kinds)
        )


def known_kinds() -> tuple[str, ...]:
    """Return every kind a record can have, for a command that is given one to look for."""
    return tuple(str(kind.__struct_config__.tag) for kind in get_args(Event))


def line_of(record: Record[Any]) -> str:
    """Return the record as one line: when, its number, attempt and kind, and what happened."""
    head = f"{clock_text(record.time_s)} {record.seq:>6}  a{record.attempt:<3}"
    return f"{head} {record.kind:<22} {text_of(record)}".rstrip()


def text_of(record: Record[Any]) -> str:
    """Return what happened as one line of text, cut to a bearable length.

    Control characters are written as escapes: what a worker logged must not steer a terminal.
    """
    text = phrase_of(record.event)
    if text is None:
        text = key_values(record.event, leave_out=frozenset({"attempt"}))
    text = _CONTROL.sub(_escape, text)
    if len(text) > MAX_TEXT:
        text = text[: MAX_TEXT - 4] + " ..."
    return text


def key_values(struct: msgspec.Struct, leave_out: frozenset[str] = frozenset()) -> str:
    """Return a struct's fields as `key=value ...`; what is None or empty is left out."""
    pairs = []
    for name in struct.__struct_fields__:
        value = getattr(struct, name)
        if name not in leave_out and value is not None and value != () and value != "":
            pairs.append(f"{name}={_value(value)}")
    return " ".join(pairs)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, msgspec.Struct):
        return f"({key_values(value)})"
    if isinstance(value, dict):
        inner = " ".join(f"{key}={_value(item)}" for key, item in value.items())
        return f"({_cut(inner)})"
    if isinstance(value, list | tuple | set | frozenset):
        return f"[{_cut(' '.join(map(_value, value)))}]"
    text = _cut(str(value))
    return text if _PLAIN.fullmatch(text) else '"' + text.replace('"', '\\"') + '"'


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_VALUE else text[: _MAX_VALUE - 3] + "..."


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
