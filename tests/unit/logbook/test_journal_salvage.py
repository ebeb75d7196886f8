"""Salvage keeps what is sound, says what is lost, and keeps the originals."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from midwatch.logbook.errors import ConfigError, Retryable
from midwatch.logbook.record import Codec, JournalCorrupt
from midwatch.logbook.salvage import salvage
from midwatch.logbook.segment import UNFINISHED, numbers_present, segment_path
from midwatch.logbook.snapshot import latest_snapshot, write_snapshot
from midwatch.tests.support.journals import (
    AnyEvent,
    Noted,
    flip_bit,
    open_journal,
    read_steps,
    read_with_notices,
    stepped,
    write_steps,
)


def spoil(path: Path, text: bytes) -> None:
    """Flip a bit of text where it first stands."""
    flip_bit(path, path.read_bytes().index(text) + 1)


def test_a_sound_journal_loses_nothing(tmp_path: Path) -> None:
    for _ in range(3):
        write_steps(tmp_path, 20, segment_bytes=900)
    before = read_steps(tmp_path)
    report = salvage(tmp_path)
    assert (report.kept_records, report.lost, report.dropped_bytes) == (60, (), 0)
    assert read_steps(tmp_path) == before
    assert read_with_notices(tmp_path)[1] == []


def test_what_is_lost_is_named_and_the_journal_goes_on(tmp_path: Path) -> None:
    write_steps(tmp_path, 10)
    write_steps(tmp_path, 10)
    spoil(segment_path(tmp_path, 1), b'"seq":4')
    spoil(segment_path(tmp_path, 1), b'"seq":5')
    spoil(segment_path(tmp_path, 2), b'"seq":15')
    damaged = segment_path(tmp_path, 1).read_bytes()
    with pytest.raises(JournalCorrupt):
        read_steps(tmp_path)
    report = salvage(tmp_path)
    assert report.lost == ((4, 5), (15, 15))
    assert report.kept_records == 17
    assert "4-5, 15" in str(report)
    assert segment_path(report.originals, 1).read_bytes() == damaged
    seqs, notices = read_with_notices(tmp_path)
    assert seqs == [s for s in range(1, 21) if s not in (4, 5, 15)]
    assert [(n.kind, n.count) for n in notices] == [("lost", 2), ("lost", 1)]
    write_steps(tmp_path, 1)
    assert read_steps(tmp_path)[-1] == 21
    assert salvage(tmp_path).lost == ((4, 5), (15, 15))


def test_a_record_behind_a_damaged_newline_is_kept(tmp_path: Path) -> None:
    write_steps(tmp_path, 4)
    path = segment_path(tmp_path, 1)
    flip_bit(path, path.read_bytes().index(b'\n{"seq":3'), bit=3)
    assert salvage(tmp_path).lost == ((2, 2),)
    assert read_steps(tmp_path) == [1, 3, 4]


def test_damaged_headers_and_missing_segments(tmp_path: Path) -> None:
    for _ in range(4):
        write_steps(tmp_path, 5)
    flip_bit(segment_path(tmp_path, 1), 12)
    flip_bit(segment_path(tmp_path, 4), 12)
    segment_path(tmp_path, 2).unlink()
    assert salvage(tmp_path).lost == ((6, 10),)
    assert read_steps(tmp_path) == [*range(1, 6), *range(11, 21)]
    assert numbers_present(tmp_path) == list(range(1, len(numbers_present(tmp_path)) + 1))


def test_records_of_a_superseded_writer_are_not_revived(tmp_path: Path) -> None:
    first = open_journal(tmp_path)
    first.append(stepped(1))
    codec: Codec[AnyEvent] = Codec(AnyEvent)
    with open_journal(tmp_path, takeover=True) as second:
        with segment_path(tmp_path, 1).open("ab") as file:
            file.write(codec.encode(2, 1.0, 1, first.epoch, Noted("stale")))
        second.append(stepped(2, 3))
    first.close()
    spoil(segment_path(tmp_path, 2), b'"seq":2')
    assert salvage(tmp_path).lost == ((2, 2),)
    assert read_steps(tmp_path) == [1, 3]


def test_seqs_of_a_lost_end_are_not_given_out_again(tmp_path: Path) -> None:
    write_steps(tmp_path, 5)
    open_journal(tmp_path).close()
    path = segment_path(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:300])
    report = salvage(tmp_path)
    assert report.kept_records + 4 == 5
    assert report.lost == ((2, 5),)
    with open_journal(tmp_path) as journal:
        assert journal.next_seq == 6


def test_nothing_sound_leaves_an_empty_journal(tmp_path: Path) -> None:
    write_steps(tmp_path, 3)
    segment_path(tmp_path, 1).write_bytes(b"\0" * 500)
    report = salvage(tmp_path)
    assert (report.kept_records, report.dropped_bytes) == (0, 500)
    write_steps(tmp_path, 2)
    assert read_steps(tmp_path) == [1, 2]


def test_it_is_refused_while_a_controller_writes(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        journal.append(stepped(1))
        with pytest.raises(Retryable) as caught:
            salvage(tmp_path)
        assert caught.value.code == "journal-locked"
        journal.append(stepped(2))
    with pytest.raises(ConfigError) as missing:
        salvage(tmp_path / "nowhere")
    assert missing.value.code == "journal-missing"


def test_an_interrupted_salvage_carries_on_from_the_originals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        write_steps(tmp_path, 5)
    spoil(segment_path(tmp_path, 2), b'"seq":8')
    replaced: list[Path] = []
    really_replace = os.replace

    def die_at_the_second(source: Path, target: Path) -> None:
        if Path(target).name.startswith("journal-"):
            if replaced:
                raise KeyboardInterrupt
            replaced.append(Path(target))
        really_replace(source, target)

    monkeypatch.setattr("os.replace", die_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        salvage(tmp_path)
    monkeypatch.undo()
    assert replaced
    assert (tmp_path / UNFINISHED).exists()
    assert salvage(tmp_path).lost == ((8, 8),)
    assert read_steps(tmp_path) == [s for s in range(1, 16) if s != 8]


def test_snapshots_do_not_outlive_the_records_they_were_folded_from(tmp_path: Path) -> None:
    write_steps(tmp_path, 3)
    write_snapshot(tmp_path, 3, b"state", version="1")
    salvage(tmp_path)
    assert latest_snapshot(tmp_path, version="1") is None
