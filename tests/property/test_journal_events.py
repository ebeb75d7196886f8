"""Every event the project knows survives the journal, and has a line for a person."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
from hypothesis import given, settings
from midwatch.logbook.events import Event
from midwatch.logbook.record import Codec, Record
from midwatch.logbook.render_text import line_of
from midwatch.tests.support.event_strategies import any_event

codec: Codec[Event] = Codec(Event)
MANY = settings(max_examples=300, deadline=None)


def comparable(value: Any) -> Any:
    """Plain data in which NaN equals NaN and -0.0 is not 0.0."""
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [comparable(item) for item in value]
    return value


@MANY
@given(any_event())
def test_every_event_reads_back_as_it_was(event: Event) -> None:
    line = codec.encode(1, 2.5, 3, 4, event)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    back = codec.decode(line[:-1])
    assert type(back.event) is type(event)
    assert comparable(msgspec.to_builtins(back.event)) == comparable(msgspec.to_builtins(event))
    assert codec.encode(1, 2.5, 3, 4, back.event) == line


@MANY
@given(any_event())
def test_every_event_has_one_printable_line(event: Event) -> None:
    record = Record(7, 1764000000.0, 3, 4, event)
    line = line_of(record)
    assert line.isprintable() or not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in line)
    assert len(line) < 480
    assert f" {record.kind}" in line
    assert line_of(copy.copy(record)) == line
