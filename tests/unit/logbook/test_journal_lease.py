"""One writer at a time, and a superseded one does no harm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from midwatch.logbook.errors import Fatal, Retryable
from midwatch.logbook.lease import KEPT_CLAIMS, acquire_lease, read_claim
from midwatch.logbook.record import Codec, JournalCorrupt
from midwatch.logbook.segment import list_segments, segment_path
from midwatch.tests.support.journals import (
    AnyEvent,
    Noted,
    open_journal,
    read_steps,
    read_with_notices,
    stepped,
    write_steps,
)

HOLDER = """
import sys, time
from pathlib import Path
from midwatch.logbook.lease import acquire_lease
lease = acquire_lease(Path(sys.argv[1]))
print(lease.epoch, flush=True)
time.sleep(600)
"""


def test_a_second_controller_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        with pytest.raises(Retryable) as caught:
            open_journal(tmp_path)
        assert caught.value.code == "journal-locked"
        assert str(os.getpid()) in caught.value.message
        journal.append(stepped(1), sync=True)
    assert read_steps(tmp_path) == [1]


def test_the_lock_dies_with_its_holder(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "1\n"
        with pytest.raises(Retryable):
            acquire_lease(tmp_path, wait_s=0.0)
        holder.send_signal(signal.SIGKILL)
        lease = acquire_lease(tmp_path, wait_s=30.0)
    assert lease.epoch == 2
    assert lease.is_locked
    lease.release()


def test_takeover_fences_the_first_writer(tmp_path: Path) -> None:
    first = open_journal(tmp_path)
    first.append(stepped(1), sync=True)
    with open_journal(tmp_path, takeover=True) as second:
        assert (second.next_seq, second.epoch) == (2, 2)
        for _ in range(2):
            with pytest.raises(Fatal) as caught:
                first.append(stepped(99), sync=True)
        assert caught.value.code == "journal-closed"
        second.append(stepped(2), sync=True)
        first.close()
    assert read_steps(tmp_path) == [1, 2]


@pytest.mark.parametrize("sync", [True, False])
def test_a_fenced_append_says_so(tmp_path: Path, sync: bool) -> None:
    first = open_journal(tmp_path)
    with open_journal(tmp_path, takeover=True), pytest.raises(Fatal) as caught:
        first.append(stepped(1), sync=sync)
    assert caught.value.code == "journal-fenced"
    first.close()
    assert read_steps(tmp_path) == []


def test_losing_the_lease_during_the_sync_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_journal(tmp_path)
    successors = []
    really_sync = os.fdatasync

    def take_over(fd: int) -> None:
        monkeypatch.undo()
        really_sync(fd)
        successors.append(open_journal(tmp_path, takeover=True))

    monkeypatch.setattr("os.fdatasync", take_over)
    with pytest.raises(Fatal) as caught:
        first.append(stepped(1), sync=True)
    assert caught.value.code == "journal-fenced"
    # The record was on disk when the successor looked, so the successor knows of it.
    assert successors[0].next_seq == 2
    successors[0].close()
    first.close()


def test_what_a_superseded_writer_still_writes_is_ignored_and_reported(tmp_path: Path) -> None:
    first = open_journal(tmp_path)
    first.append(stepped(1))
    with open_journal(tmp_path, takeover=True) as second:
        late: Codec[AnyEvent] = Codec(AnyEvent)
        with segment_path(tmp_path, 1).open("ab") as file:
            file.write(late.encode(2, 1.0, 1, first.epoch, Noted("too late")))
        second.append(stepped(2))
    first.close()
    seqs, notices = read_with_notices(tmp_path)
    assert seqs == [1, 2]
    assert [(n.kind, n.segment, n.count) for n in notices] == [("stale", 1, 1)]
    assert read_steps(tmp_path) == [1, 2]


def test_a_lower_epoch_inside_a_segment_is_ignored_and_reported(tmp_path: Path) -> None:
    write_steps(tmp_path, 1)
    with open_journal(tmp_path) as journal:
        journal.append(stepped(2))
        codec: Codec[AnyEvent] = Codec(AnyEvent)
        with segment_path(tmp_path, 2).open("ab") as file:
            file.write(codec.encode(3, 1.0, 1, 1, Noted("stale")))
        journal.append(stepped(3))
    seqs, notices = read_with_notices(tmp_path)
    assert seqs == [1, 2, 3]
    assert [(n.kind, n.count) for n in notices] == [("stale", 1)]
    with open_journal(tmp_path) as journal:
        assert journal.next_seq == 4
        assert [n.kind for n in journal.notices] == ["stale"]


def test_a_higher_epoch_inside_a_segment_is_corruption(tmp_path: Path) -> None:
    write_steps(tmp_path, 1)
    codec: Codec[AnyEvent] = Codec(AnyEvent)
    with segment_path(tmp_path, 1).open("ab") as file:
        file.write(codec.encode(2, 1.0, 1, 7, Noted("from nowhere")))
    with pytest.raises(JournalCorrupt):
        read_steps(tmp_path)


def test_a_takeover_leaves_the_old_segment_untouched(tmp_path: Path) -> None:
    first = open_journal(tmp_path)
    first.append(stepped(1))
    path = segment_path(tmp_path, 1)
    with path.open("ab") as file:
        file.write(b'{"seq":2,"half')
    before = path.read_bytes()
    with open_journal(tmp_path, takeover=True) as second:
        assert [n.kind for n in second.notices] == ["torn-tail"]
        second.append(stepped(2))
    assert path.read_bytes() == before
    assert read_steps(tmp_path) == [1, 2]
    first.close()


def test_rotation_of_a_superseded_writer_is_refused(tmp_path: Path) -> None:
    first = open_journal(tmp_path, segment_bytes=200)
    first.append(stepped(1))
    with open_journal(tmp_path, takeover=True):
        with pytest.raises(Fatal) as caught:
            first.append(stepped(2))
        assert caught.value.code == "journal-fenced"
        assert list_segments(tmp_path) == [1, 2]
    first.close()


def test_the_new_writer_takes_up_the_lock_when_the_old_one_is_gone(tmp_path: Path) -> None:
    first = acquire_lease(tmp_path)
    second = acquire_lease(tmp_path, wait_s=0.0, takeover=True)
    assert not second.is_locked
    first.release()
    second.check()
    assert second.is_locked
    with pytest.raises(Retryable):
        acquire_lease(tmp_path, wait_s=0.0)
    second.release()


def test_epochs_are_never_shared_or_used_twice(tmp_path: Path) -> None:
    leases = [acquire_lease(tmp_path, wait_s=0.0, takeover=True) for _ in range(5)]
    assert [lease.epoch for lease in leases] == [1, 2, 3, 4, 5]
    assert [lease.is_current() for lease in leases] == [False] * 4 + [True]
    for lease in leases:
        lease.release()
    claim = read_claim(tmp_path)
    assert claim is not None
    assert (claim.epoch, claim.pid) == (5, os.getpid())


def test_old_claims_are_pruned_and_their_holders_stay_fenced(tmp_path: Path) -> None:
    first = acquire_lease(tmp_path)
    for _ in range(KEPT_CLAIMS + 5):
        acquire_lease(tmp_path, wait_s=0.0, takeover=True).release()
    assert len(list((tmp_path / "lease").glob("epoch-*"))) == KEPT_CLAIMS
    with pytest.raises(Fatal) as caught:
        first.check()
    assert caught.value.code == "journal-fenced"
    first.release()


def test_a_lost_lease_folder_does_not_bring_old_epochs_back(tmp_path: Path) -> None:
    for _ in range(3):
        write_steps(tmp_path, 1)
    for path in (tmp_path / "lease").iterdir():
        path.unlink()
    with open_journal(tmp_path) as journal:
        assert journal.epoch == 4
