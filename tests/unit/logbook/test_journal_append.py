"""What an append writes, returns and refuses."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from midwatch.logbook.errors import Fatal, Retryable
from midwatch.logbook.journal import Journal, JournalOptions
from midwatch.logbook.reader import read
from midwatch.logbook.record import MAX_RECORD_BYTES, Record, to_json
from midwatch.logbook.segment import list_segments, segment_path
from midwatch.tests.support.journals import (
    AnyEvent,
    Noted,
    Stepped,
    open_journal,
    read_steps,
    stepped,
    write_steps,
)


@contextmanager
def file_size_limit(limit_bytes: int) -> Iterator[None]:
    """Let no file of this process grow past limit_bytes: a full disk that needs no privileges."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_line_a_person_greps(tmp_path: Path) -> None:
    with open_journal(tmp_path, clock=lambda: 5.0) as journal:
        journal.append([(1764000000.25, 2, Noted("hello"))], sync=True)
    assert segment_path(tmp_path, 1).read_text() == (
        '{"journal":1,"segment":1,"first_seq":1,"epoch":1,"time_s":5.0,"previous_bytes":0,"lost":0,'
        '"crc":"61607f34"}\n'
        '{"seq":1,"time_s":1764000000.25,"attempt":2,"epoch":1,'
        '"event":{"kind":"noted","text":"hello"},"crc":"ac6eb3ea"}\n'
    )


def test_records_returned_equal_records_read(tmp_path: Path) -> None:
    events = [(1.5, 1, Stepped(1, 2.5, extra={"a": 1.0})), (2.5, 3, Noted('quote " and \n line'))]
    with open_journal(tmp_path) as journal:
        returned = journal.append(events) + journal.append(stepped(7), sync=True)
    assert list(read(tmp_path, AnyEvent)) == returned
    assert [(r.seq, r.time_s, r.attempt, r.kind) for r in returned] == [
        (1, 1.5, 1, "stepped"),
        (2, 2.5, 3, "noted"),
        (3, 1007.0, 1, "stepped"),
    ]


def test_returned_records_are_what_a_reader_decodes_not_what_was_passed(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        (record,) = journal.append([(1, 1, Stepped(1, 3))])
    assert isinstance(record.time_s, float)
    assert isinstance(record.event, Stepped)
    assert isinstance(record.event.loss, float)


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308]
)
def test_every_float_survives(tmp_path: Path, value: float) -> None:
    event = Stepped(1, value, scale=value, extra={"x": value})
    with open_journal(tmp_path) as journal:
        returned = journal.append([(1.0, 1, event)])
    (read_back,) = read(tmp_path, AnyEvent)
    for record in (*returned, read_back):
        for got in (record.event.loss, record.event.scale, record.event.extra["x"]):
            assert math.copysign(1.0, got) == math.copysign(1.0, value) or math.isnan(value)
            assert got == value or (math.isnan(got) and math.isnan(value))
    json.loads(segment_path(tmp_path, 1).read_bytes().splitlines()[1], parse_constant=pytest.fail)


def test_json_for_programs_tells_nan_from_none(tmp_path: Path) -> None:
    record = Record(1, 0.5, 1, 1, Stepped(1, math.nan, extra={"x": -math.inf}))
    assert to_json({"record": record, "none": None}) == (
        b'{"record":{"seq":1,"time_s":0.5,"attempt":1,"epoch":1,"event":{"kind":"stepped","step":1,'
        b'"loss":"NaN","scale":null,"extra":{"x":"-Infinity"}}},"none":null}'
    )


def test_none_and_nan_are_told_apart(tmp_path: Path) -> None:
    class Both(msgspec.Struct, tag_field="kind", tag="both"):
        missing: float | None
        broken: float | None
        text: str

    with Journal(tmp_path, Both, JournalOptions(wait_s=0.0)) as journal:
        (record,) = journal.append([(1.0, 1, Both(None, math.nan, "null NaN"))])
    assert record.event.missing is None
    assert record.event.broken is not None
    assert math.isnan(record.event.broken)
    assert record.event.text == "null NaN"


def test_segments_rotate_by_size_and_read_as_one(tmp_path: Path) -> None:
    write_steps(tmp_path, 50, segment_bytes=1000)
    assert len(list_segments(tmp_path)) > 5
    assert all(segment_path(tmp_path, n).stat().st_size <= 1000 for n in list_segments(tmp_path))
    assert read_steps(tmp_path) == list(range(1, 51))


def test_a_batch_larger_than_a_segment_is_not_split(tmp_path: Path) -> None:
    with open_journal(tmp_path, segment_bytes=300) as journal:
        journal.append(stepped(*range(1, 21)))
        journal.append(stepped(21))
    assert list_segments(tmp_path) == [1, 2]
    assert read_steps(tmp_path) == list(range(1, 22))


def test_reopening_goes_on_with_the_next_seq_and_a_new_epoch(tmp_path: Path) -> None:
    write_steps(tmp_path, 3)
    with open_journal(tmp_path) as journal:
        assert (journal.next_seq, journal.epoch, journal.notices) == (4, 2, ())
        assert [r.seq for r in journal.records()] == [1, 2, 3]
        (record,) = journal.append(stepped(4))
    assert (record.seq, record.epoch) == (4, 2)


def test_an_empty_batch_may_sync(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        journal.append(stepped(1))
        assert journal.append([], sync=True) == []
        assert journal.next_seq == 2


def test_an_event_that_would_not_read_back_is_refused_whole(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        poison: AnyEvent = Stepped("not a number", 1.0)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="read back"):
            journal.append([*stepped(1), (1.0, 1, poison)])
        with pytest.raises(ValueError, match="exceeds"):
            journal.append([(1.0, 1, Noted("x" * MAX_RECORD_BYTES))])
        with pytest.raises(ValueError, match="read back"):
            journal.append([(math.nan, 1, Noted("no time"))])
        with pytest.raises(ValueError):
            journal.append([(1.0, 1, Noted("no utf-8: \ud800"))])
        journal.append(stepped(2), sync=True)
    assert read_steps(tmp_path) == [2]


def test_a_full_disk_leaves_the_last_good_boundary(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        journal.append(stepped(1, 2, 3), sync=True)
        size = segment_path(tmp_path, 1).stat().st_size
        with file_size_limit(size + 50), pytest.raises(Retryable) as caught:
            journal.append(stepped(4, 5))
        assert caught.value.code == "journal-disk-full"
        assert segment_path(tmp_path, 1).stat().st_size == size
        (record,) = journal.append(stepped(6), sync=True)
        assert record.seq == 4
    assert read_steps(tmp_path) == [1, 2, 3, 6]


def test_a_full_disk_at_rotation_keeps_the_old_segment_in_use(tmp_path: Path) -> None:
    with open_journal(tmp_path, segment_bytes=400) as journal:
        journal.append(stepped(1, 2))
        with file_size_limit(20), pytest.raises(Retryable) as caught:
            journal.append(stepped(3))
        assert caught.value.code == "journal-disk-full"
        assert list_segments(tmp_path) == [1]
        journal.append(stepped(4))
    assert list_segments(tmp_path) == [1, 2]
    assert read_steps(tmp_path) == [1, 2, 4]


def test_a_full_disk_on_opening_is_retryable_and_lets_go_of_the_lock(tmp_path: Path) -> None:
    write_steps(tmp_path, 2)
    with file_size_limit(10), pytest.raises(Retryable) as caught:
        open_journal(tmp_path)
    assert caught.value.code == "journal-disk-full"
    write_steps(tmp_path, 1)
    assert read_steps(tmp_path) == [1, 2, 3]


def test_a_closed_journal_takes_nothing(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    journal.close()
    journal.close()
    with pytest.raises(Fatal) as caught:
        journal.append(stepped(1))
    assert caught.value.code == "journal-closed"


def test_a_failed_sync_ends_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with open_journal(tmp_path) as journal:
        monkeypatch.setattr("os.fdatasync", fail)
        with pytest.raises(Fatal) as caught:
            journal.append(stepped(1), sync=True)
        assert caught.value.code == "journal-write-failed"
        monkeypatch.undo()
        with pytest.raises(Fatal) as again:
            journal.append(stepped(2))
        assert again.value.code == "journal-closed"


def test_the_kind_of_a_record_is_its_tag() -> None:
    assert Record(1, 0.0, 1, 1, Noted("x")).kind == "noted"
