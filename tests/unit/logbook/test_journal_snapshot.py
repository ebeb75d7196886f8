"""Snapshots are found when sound, passed over when not."""

from __future__ import annotations

from pathlib import Path

import pytest
from midwatch.logbook.errors import Fatal
from midwatch.logbook.snapshot import KEPT, latest_snapshot, write_snapshot
from midwatch.tests.support.journals import flip_bit


def test_the_newest_is_found(tmp_path: Path) -> None:
    assert latest_snapshot(tmp_path, version="1") is None
    for seq in (10, 200, 1000):
        write_snapshot(tmp_path, seq, b"payload \n %d" % seq, version="1")
    assert latest_snapshot(tmp_path, version="1") == (1000, b"payload \n 1000")
    assert len(list(tmp_path.iterdir())) == KEPT


def test_an_older_one_stands_in_for_a_newer_that_cannot_be_used(tmp_path: Path) -> None:
    write_snapshot(tmp_path, 10, b"old", version="1")
    newer = write_snapshot(tmp_path, 20, b"new", version="1")
    assert latest_snapshot(tmp_path, version="1", up_to_seq=19) == (10, b"old")
    write_snapshot(tmp_path, 20, b"other fold", version="2")
    assert latest_snapshot(tmp_path, version="1") == (10, b"old")
    assert latest_snapshot(tmp_path, version="2") == (20, b"other fold")
    newer.write_bytes(b"")
    assert latest_snapshot(tmp_path, version="1") == (10, b"old")


def test_no_damaged_byte_passes(tmp_path: Path) -> None:
    path = write_snapshot(tmp_path, 7, b"the state", version="1")
    whole = path.read_bytes()
    for offset in range(len(whole)):
        flip_bit(path, offset, bit=offset % 8)
        assert latest_snapshot(tmp_path, version="1") is None, offset
        path.write_bytes(whole)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert latest_snapshot(tmp_path, version="1") is None, size
    path.write_bytes(whole)
    path.rename(tmp_path / "snapshot-000000000008.bin")
    assert latest_snapshot(tmp_path, version="1") is None


def test_a_failed_write_is_classified_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Fatal) as caught:
        write_snapshot(tmp_path / "missing", 1, b"x", version="1")
    assert caught.value.code == "journal-write-failed"
