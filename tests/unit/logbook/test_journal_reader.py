"""Reading from the middle, from the end, and following a writer."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from midwatch.logbook.errors import IntegrityError
from midwatch.logbook.journal import Journal, JournalOptions
from midwatch.logbook.reader import Follower, Rewound, last_seq, read, read_last
from midwatch.logbook.record import JournalCorrupt
from midwatch.logbook.segment import list_segments, segment_path
from midwatch.tests.support.journals import (
    AnyEvent,
    Noted,
    Stepped,
    flip_bit,
    open_journal,
    read_steps,
    step_of,
    stepped,
    write_steps,
)


def drain(follower: Follower[AnyEvent]) -> list[int]:
    """Poll until there is nothing more; return the steps."""
    steps: list[int] = []
    while batch := follower.poll():
        steps += [step_of(record) for record in batch]
    return steps


def collect_seqs(directory: Path, event_type: object, into: list[int]) -> None:
    """Read all there is; into keeps what came before an error."""
    for record in read(directory, event_type):
        into.append(record.seq)


def test_no_journal_reads_as_nothing(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert read_steps(missing) == []
    assert read_last(missing, AnyEvent, 5) == []
    assert last_seq(missing) == 0
    assert Follower(missing, AnyEvent).poll() == []
    assert not missing.exists()


@pytest.mark.parametrize("segment_bytes", [700, 1 << 20])
@pytest.mark.parametrize("from_seq", [1, 2, 499, 500, 999, 1000, 1001, 5000])
def test_reading_from_the_middle(tmp_path: Path, segment_bytes: int, from_seq: int) -> None:
    with open_journal(tmp_path, segment_bytes=segment_bytes) as journal:
        for step in range(1, 1001, 10):
            journal.append(stepped(*range(step, step + 10)))
    assert read_steps(tmp_path, from_seq) == list(range(from_seq, 1001))


@pytest.mark.parametrize("count", [0, 1, 7, 100, 101, 5000])
def test_the_last_records(tmp_path: Path, count: int) -> None:
    write_steps(tmp_path, 100, segment_bytes=2000)
    write_steps(tmp_path, 1)
    open_journal(tmp_path).close()
    expected = list(range(1, 102))[-count:] if count else []
    assert [record.seq for record in read_last(tmp_path, AnyEvent, count)] == expected
    assert last_seq(tmp_path) == 101


def test_the_last_records_of_a_big_segment_are_found_without_reading_it(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        for start in range(1, 20001, 1000):
            journal.append(stepped(*range(start, start + 1000)))
    # Damage far from the end is not looked at: proof that the records before were skipped.
    flip_bit(segment_path(tmp_path, 1), 5000)
    assert [record.seq for record in read_last(tmp_path, AnyEvent, 3)] == [19998, 19999, 20000]
    with pytest.raises(JournalCorrupt):
        read_steps(tmp_path)


def test_seeking_over_very_unequal_lines(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        for step in range(1, 61):
            journal.append([(0.0, 1, Noted("x" * (step % 7) ** 6))])
    for from_seq in (1, 20, 41, 60):
        seqs = [record.seq for record in read(tmp_path, AnyEvent, from_seq)]
        assert seqs == list(range(from_seq, 61))
    assert last_seq(tmp_path) == 60


def test_a_follower_hands_out_every_record_once(tmp_path: Path) -> None:
    follower: Follower[AnyEvent] = Follower(tmp_path, AnyEvent)
    assert follower.poll() == []
    with open_journal(tmp_path, segment_bytes=600) as journal:
        for step in range(1, 41):
            journal.append(stepped(step))
            assert drain(follower) == [step]
            assert follower.poll() == []
            assert follower.next_seq == step + 1
    assert len(list_segments(tmp_path)) > 5
    write_steps(tmp_path, 3)
    assert drain(follower) == [41, 42, 43]
    follower.close()


def test_a_follower_catches_up_over_many_chunks(tmp_path: Path) -> None:
    with open_journal(tmp_path, segment_bytes=150_000) as journal:
        for start in range(1, 5001, 500):
            journal.append(stepped(*range(start, start + 500)))
    follower: Follower[AnyEvent] = Follower(tmp_path, AnyEvent, from_seq=1234)
    assert drain(follower) == list(range(1234, 5001))
    follower.close()


def test_a_record_longer_than_a_chunk_is_read(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        journal.append([(0.0, 1, Noted("y" * 3_000_000)), (0.0, 1, Noted("z"))])
    texts = [record.event.text for record in read(tmp_path, AnyEvent)]
    assert [len(text) for text in texts] == [3_000_000, 1]


def test_a_follower_waits_for_the_rest_of_a_line(tmp_path: Path) -> None:
    write_steps(tmp_path, 2)
    path = segment_path(tmp_path, 1)
    whole = path.read_bytes()
    cut = whole.rindex(b"\n", 0, -1) + 20
    path.write_bytes(whole[:cut])
    follower: Follower[AnyEvent] = Follower(tmp_path, AnyEvent)
    assert drain(follower) == [1]
    assert follower.poll() == []
    with path.open("ab") as file:
        file.write(whole[cut:])
    assert drain(follower) == [2]
    follower.close()


def test_a_follower_survives_the_cutting_of_a_torn_tail(tmp_path: Path) -> None:
    write_steps(tmp_path, 2)
    with segment_path(tmp_path, 1).open("ab") as file:
        file.write(b'{"seq":3,"torn')
    follower: Follower[AnyEvent] = Follower(tmp_path, AnyEvent)
    assert drain(follower) == [1, 2]
    write_steps(tmp_path, 2)
    assert drain(follower) == [3, 4]
    follower.close()


def test_withdrawn_records_rewind_the_follower(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        journal.append(stepped(1))
        size = segment_path(tmp_path, 1).stat().st_size
        journal.append(stepped(2))
    follower: Follower[AnyEvent] = Follower(tmp_path, AnyEvent)
    assert drain(follower) == [1, 2]
    # What a writer does when the disk fills up within a batch.
    with segment_path(tmp_path, 1).open("r+b") as file:
        file.truncate(size)
    with pytest.raises(Rewound):
        follower.poll()
    write_steps(tmp_path, 1)
    assert drain(follower) == [1, 2]
    follower.close()


def test_records_rewritten_to_the_same_length_rewind_the_follower(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_steps(first, 2)
    with open_journal(second) as journal:
        journal.append(stepped(1, 3, 4))
    follower: Follower[AnyEvent] = Follower(first, AnyEvent)
    assert drain(follower) == [1, 2]
    segment_path(first, 1).write_bytes(segment_path(second, 1).read_bytes())
    with pytest.raises(Rewound):
        follower.poll()
    assert drain(follower) == [1, 3, 4]
    follower.close()


def test_a_takeover_that_disowns_records_rewinds_the_follower(tmp_path: Path) -> None:
    write_steps(tmp_path, 2)
    path = segment_path(tmp_path, 1)
    follower: Follower[AnyEvent] = Follower(tmp_path, AnyEvent)
    assert drain(follower) == [1, 2]
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 1])
    with open_journal(tmp_path) as journal:
        path.write_bytes(whole)
        journal.append(stepped(9))
        with pytest.raises(Rewound):
            follower.poll()
    assert drain(follower) == [1, 9]
    follower.close()


def test_a_follower_reports_corruption_that_appears_while_it_follows(tmp_path: Path) -> None:
    write_steps(tmp_path, 4)
    path = segment_path(tmp_path, 1)
    whole = path.read_bytes()
    follower: Follower[AnyEvent] = Follower(tmp_path, AnyEvent)
    path.write_bytes(whole[: whole.index(b'{"seq":3') + 10])
    assert drain(follower) == [1, 2]
    path.write_bytes(whole.replace(b'"seq":3', b'"seq":7'))
    with pytest.raises(JournalCorrupt) as caught:
        drain(follower)
    assert caught.value.line == 4
    follower.close()


def test_records_before_the_damage_are_handed_out_first(tmp_path: Path) -> None:
    write_steps(tmp_path, 10)
    path = segment_path(tmp_path, 1)
    path.write_bytes(path.read_bytes().replace(b'"step":6', b'"step":8'))
    got: list[int] = []
    with pytest.raises(JournalCorrupt):
        collect_seqs(tmp_path, AnyEvent, got)
    assert got == [1, 2, 3, 4, 5]


def test_an_unknown_event_is_an_error_of_its_own(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        journal.append([*stepped(1, 2), (1.0, 1, Noted("new")), *stepped(4)])
    got: list[int] = []
    with pytest.raises(IntegrityError) as caught:
        collect_seqs(tmp_path, Stepped, got)
    assert caught.value.code == "journal-event-unknown"
    assert got == [1, 2]


def test_an_added_field_with_a_default_reads_old_records(tmp_path: Path) -> None:
    class Older(msgspec.Struct, frozen=True, tag_field="kind", tag="thing"):
        a: int

    class Newer(msgspec.Struct, frozen=True, tag_field="kind", tag="thing"):
        a: int
        b: float = 2.0

    with Journal(tmp_path, Older, JournalOptions()) as journal:
        journal.append([(1.0, 1, Older(1))])
    (record,) = read(tmp_path, Newer)
    assert record.event == Newer(1, 2.0)


def test_reading_beside_the_writer_takes_no_lock(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        journal.append(stepped(1))
        assert read_steps(tmp_path) == [1]
        journal.append(stepped(2), sync=True)
        assert read_steps(tmp_path) == [1, 2]
