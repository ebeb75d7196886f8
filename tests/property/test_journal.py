"""What must hold for every journal: prefixes, damage, reopening, seeking, salvage."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from midwatch.logbook.reader import Follower, read, read_last
from midwatch.logbook.record import JournalCorrupt, Record
from midwatch.logbook.salvage import salvage
from midwatch.logbook.segment import Notice, list_segments, segment_path
from midwatch.tests.support.journals import AnyEvent, Noted, Stepped, open_journal

finite = st.floats(allow_nan=False)
events: st.SearchStrategy[AnyEvent] = st.one_of(
    st.builds(
        Stepped,
        step=st.integers(0, 10**9),
        loss=finite,
        scale=st.none() | finite,
        extra=st.dictionaries(st.text(max_size=5), finite, max_size=3),
    ),
    st.builds(Noted, text=st.text(max_size=40)),
)
triples = st.tuples(st.floats(0, 4e9), st.integers(0, 1000), events)
batches = st.lists(triples, max_size=6)
sessions = st.lists(st.lists(batches, max_size=5), min_size=1, max_size=4)
segment_sizes = st.sampled_from([200, 700, 1 << 20])
MEMORY = Path("/dev/shm")
quick = settings(max_examples=60, deadline=None)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A fresh directory for each example, in memory where there is such a place: syncs are slow."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        yield Path(name)


def write(
    directory: Path, sessions: list[list[list[tuple[float, int, AnyEvent]]]], segment_bytes: int
) -> list[Record[AnyEvent]]:
    """Write each session with an opening of its own; return every record appended."""
    written: list[Record[AnyEvent]] = []
    for session in sessions:
        # A fixed clock: the offsets that an example draws must not depend on the time of day.
        with open_journal(directory, segment_bytes=segment_bytes, clock=lambda: 0.0) as journal:
            for batch in session:
                written += journal.append(batch)
    return written


def everything(directory: Path) -> tuple[list[Record[AnyEvent]], list[Notice]]:
    notices: list[Notice] = []
    return list(read(directory, AnyEvent, on_notice=notices.append)), notices


@quick
@given(sessions, segment_sizes)
def test_what_was_appended_is_read_in_order_across_openings(
    sessions: list[list[list[tuple[float, int, AnyEvent]]]], segment_bytes: int
) -> None:
    with folder() as directory:
        written = write(directory, sessions, segment_bytes)
        triples = [triple for session in sessions for batch in session for triple in batch]
        records, notices = everything(directory)
        assert records == written
        assert notices == []
        assert [record.seq for record in records] == list(range(1, len(triples) + 1))
        assert [(r.time_s, r.attempt, r.event) for r in records] == triples


@quick
@given(st.lists(triples, min_size=1, max_size=12), st.data())
def test_every_prefix_holds_exactly_the_records_wholly_within(
    events: list[tuple[float, int, AnyEvent]], data: st.DataObject
) -> None:
    with folder() as directory:
        written = write(directory, [[[event] for event in events]], 1 << 20)
        path = segment_path(directory, 1)
        whole = path.read_bytes()
        ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
        cut = data.draw(st.integers(ends[0], len(whole)), label="cut")
        path.write_bytes(whole[:cut])
        survivors = written[: sum(end <= cut for end in ends) - 1]
        assert everything(directory)[0] == survivors
        torn = cut not in ends
        with open_journal(directory) as journal:
            assert [notice.kind for notice in journal.notices] == ["torn-tail"] * torn
            assert journal.next_seq == len(survivors) + 1
            added = journal.append(events[:1], sync=True)
        assert everything(directory) == (survivors + added, [])


@quick
@given(sessions, segment_sizes, st.data())
def test_no_damaged_byte_goes_unnoticed(
    sessions: list[list[list[tuple[float, int, AnyEvent]]]],
    segment_bytes: int,
    data: st.DataObject,
) -> None:
    with folder() as directory:
        written = write(directory, sessions, segment_bytes)
        number = data.draw(st.sampled_from(list_segments(directory)), label="segment")
        path = segment_path(directory, number)
        damaged = bytearray(path.read_bytes())
        offset = data.draw(st.integers(0, len(damaged) - 1), label="offset")
        damaged[offset] ^= data.draw(st.integers(1, 255), label="mask")
        path.write_bytes(damaged)
        try:
            records, notices = everything(directory)
        except JournalCorrupt:
            return
        # Only at the very end does damage look like a torn tail, or a last segment unborn.
        assert records == written[: len(records)]
        assert number == list_segments(directory)[-1]
        assert len(written) - len(records) <= 1
        assert [notice.kind for notice in notices] == ["torn-tail"]


@quick
@given(sessions, segment_sizes, st.integers(1, 60), st.integers(0, 60))
def test_the_middle_and_the_end_agree_with_the_whole(
    sessions: list[list[list[tuple[float, int, AnyEvent]]]],
    segment_bytes: int,
    from_seq: int,
    count: int,
) -> None:
    with folder() as directory:
        written = write(directory, sessions, segment_bytes)
        assert list(read(directory, AnyEvent, from_seq)) == written[from_seq - 1 :]
        assert read_last(directory, AnyEvent, count) == (written[-count:] if count else [])


@quick
@given(sessions, segment_sizes, st.lists(st.integers(0, 400), max_size=30))
def test_a_follower_sees_the_same_however_the_bytes_arrive(
    sessions: list[list[list[tuple[float, int, AnyEvent]]]], segment_bytes: int, steps: list[int]
) -> None:
    with folder() as directory, folder() as mirror:
        written = write(directory, sessions, segment_bytes)
        follower: Follower[AnyEvent] = Follower(mirror, AnyEvent)
        seen: list[Record[AnyEvent]] = []
        arrivals = iter(steps)
        for number in list_segments(directory):
            left = segment_path(directory, number).read_bytes()
            while left:
                size = next(arrivals, len(left)) or len(left)
                with segment_path(mirror, number).open("ab") as file:
                    file.write(left[:size])
                left = left[size:]
                while batch := follower.poll():
                    seen += batch
        follower.close()
        assert seen == written


@quick
@given(sessions, segment_sizes, st.data())
def test_salvage_keeps_every_record_the_damage_did_not_touch(
    sessions: list[list[list[tuple[float, int, AnyEvent]]]],
    segment_bytes: int,
    data: st.DataObject,
) -> None:
    with folder() as directory:
        written = write(directory, sessions, segment_bytes)
        number = data.draw(st.sampled_from(list_segments(directory)), label="segment")
        path = segment_path(directory, number)
        damaged = bytearray(path.read_bytes())
        offset = data.draw(st.integers(0, len(damaged) - 1), label="offset")
        damaged[offset] ^= data.draw(st.integers(1, 255), label="mask")
        path.write_bytes(damaged)
        report = salvage(directory)
        records, _ = everything(directory)
        assert report.kept_records == len(records) >= len(written) - 1
        assert [r for r in written if r in records] == records
        first = everything(directory)
        shutil.rmtree(report.originals)
        salvage(directory)
        assert everything(directory) == first
