"""What opening finds: torn tails are cut and reported, corruption is never passed over."""

from __future__ import annotations

from pathlib import Path

import pytest
from midwatch.logbook.errors import IntegrityError
from midwatch.logbook.record import FORMAT, JournalCorrupt, SegmentHeader, encode_header, with_crc
from midwatch.logbook.segment import UNFINISHED, segment_path
from midwatch.tests.support.journals import (
    flip_bit,
    open_journal,
    read_steps,
    read_with_notices,
    write_steps,
)


def line_offsets(path: Path) -> list[int]:
    """Return where each line of path begins."""
    offsets, at = [0], 0
    for line in path.read_bytes().splitlines(keepends=True):
        at += len(line)
        offsets.append(at)
    return offsets[:-1]


def assert_corrupt(directory: Path, segment: int, line: int) -> None:
    """Both who reads and who wants to write are told where the damage is."""
    with pytest.raises(JournalCorrupt) as caught:
        read_steps(directory)
    assert caught.value.code == "journal-corrupt"
    assert (caught.value.segment, caught.value.line) == (segment, line)


@pytest.mark.parametrize("garbage", [b'{"seq":4,"ti', b"\0" * 5000, b"noise\nmore\n", b"\n"])
def test_a_torn_tail_is_kept_aside_cut_and_reported(tmp_path: Path, garbage: bytes) -> None:
    write_steps(tmp_path, 3)
    path = segment_path(tmp_path, 1)
    whole = path.read_bytes()
    path.write_bytes(whole + garbage)
    seqs, notices = read_with_notices(tmp_path)
    assert seqs == [1, 2, 3]
    assert [(n.kind, n.offset, n.count) for n in notices] == [
        ("torn-tail", len(whole), len(garbage))
    ]
    with open_journal(tmp_path) as journal:
        assert [(n.kind, n.count) for n in journal.notices] == [("torn-tail", len(garbage))]
    assert path.read_bytes() == whole
    assert path.with_suffix(".torn").read_bytes() == garbage
    assert read_with_notices(tmp_path) == ([1, 2, 3], [])


def test_a_record_without_its_newline_is_torn(tmp_path: Path) -> None:
    write_steps(tmp_path, 3)
    path = segment_path(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:-1])
    write_steps(tmp_path, 1)
    assert read_steps(tmp_path) == [1, 2, 3]
    assert read_with_notices(tmp_path) == ([1, 2, 3], [])


def test_a_segment_whose_header_was_never_finished_is_put_aside(tmp_path: Path) -> None:
    write_steps(tmp_path, 3)
    segment_path(tmp_path, 2).write_bytes(b'{"journal":1,"seg')
    assert read_steps(tmp_path) == [1, 2, 3]
    with open_journal(tmp_path) as journal:
        assert [n.kind for n in journal.notices] == ["torn-tail"]
        assert journal.next_seq == 4
    assert (tmp_path / "journal-00000002.torn").exists()


def test_damage_with_good_records_behind_it_stops_everyone(tmp_path: Path) -> None:
    write_steps(tmp_path, 5)
    path = segment_path(tmp_path, 1)
    flip_bit(path, line_offsets(path)[3] + 20)
    assert_corrupt(tmp_path, segment=1, line=4)
    with pytest.raises(JournalCorrupt) as caught:
        open_journal(tmp_path)
    assert caught.value.offset == line_offsets(path)[3]
    assert "salvage" in caught.value.remedy


def test_damage_in_an_earlier_segment_stops_the_fold(tmp_path: Path) -> None:
    write_steps(tmp_path, 3)
    write_steps(tmp_path, 3)
    path = segment_path(tmp_path, 1)
    flip_bit(path, path.stat().st_size - 5)
    assert_corrupt(tmp_path, segment=1, line=4)
    with open_journal(tmp_path) as journal, pytest.raises(JournalCorrupt):
        list(journal.records())


def test_a_damaged_newline_does_not_pass_for_a_torn_tail(tmp_path: Path) -> None:
    write_steps(tmp_path, 3)
    path = segment_path(tmp_path, 1)
    flip_bit(path, line_offsets(path)[3] - 1, bit=3)
    assert_corrupt(tmp_path, segment=1, line=3)
    with pytest.raises(JournalCorrupt):
        open_journal(tmp_path)


def test_a_missing_line_is_corruption(tmp_path: Path) -> None:
    write_steps(tmp_path, 5)
    path = segment_path(tmp_path, 1)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3] + lines[4:]))
    assert_corrupt(tmp_path, segment=1, line=4)


def test_a_shortened_sealed_segment_is_corruption(tmp_path: Path) -> None:
    write_steps(tmp_path, 3)
    write_steps(tmp_path, 1)
    path = segment_path(tmp_path, 1)
    path.write_bytes(path.read_bytes()[: line_offsets(path)[-1]])
    assert_corrupt(tmp_path, segment=1, line=4)


@pytest.mark.parametrize("missing", [1, 2])
def test_a_missing_segment_is_corruption(tmp_path: Path, missing: int) -> None:
    for _ in range(3):
        write_steps(tmp_path, 2)
    segment_path(tmp_path, missing).unlink()
    assert_corrupt(tmp_path, segment=missing, line=1)
    with pytest.raises(JournalCorrupt):
        open_journal(tmp_path)


@pytest.mark.parametrize("segment", [1, 2, 3])
def test_a_damaged_header_is_corruption(tmp_path: Path, segment: int) -> None:
    for _ in range(3):
        write_steps(tmp_path, 2)
    flip_bit(segment_path(tmp_path, segment), 30)
    assert_corrupt(tmp_path, segment=segment, line=1)


def test_a_segment_of_another_number_is_corruption(tmp_path: Path) -> None:
    write_steps(tmp_path, 2)
    segment_path(tmp_path, 2).write_bytes(segment_path(tmp_path, 1).read_bytes())
    assert_corrupt(tmp_path, segment=2, line=1)


def test_an_intact_line_that_is_no_record_is_not_skipped(tmp_path: Path) -> None:
    write_steps(tmp_path, 2)
    with segment_path(tmp_path, 1).open("ab") as file:
        file.write(with_crc(b'{"something":1'))
    with pytest.raises(IntegrityError) as caught:
        read_steps(tmp_path)
    assert caught.value.code == "journal-event-unknown"
    with pytest.raises(IntegrityError) as caught:
        open_journal(tmp_path)
    assert caught.value.code == "journal-format-unknown"


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    header = SegmentHeader(FORMAT + 1, 1, 1, 1, 0.0, 0)
    segment_path(tmp_path, 1).write_bytes(encode_header(header))
    with pytest.raises(IntegrityError) as caught:
        open_journal(tmp_path)
    assert caught.value.code == "journal-format-unknown"


def test_an_interrupted_salvage_closes_the_journal(tmp_path: Path) -> None:
    write_steps(tmp_path, 2)
    (tmp_path / UNFINISHED).write_text("salvage-00000009")
    for attempt in (lambda: read_steps(tmp_path), lambda: open_journal(tmp_path)):
        with pytest.raises(IntegrityError) as caught:
            attempt()
        assert caught.value.code == "journal-salvage-unfinished"
