"""Real writer processes, killed and stopped at seeded points."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from midwatch.logbook.errors import Retryable
from midwatch.logbook.reader import Follower
from midwatch.logbook.segment import list_segments
from midwatch.tests.support.journals import (
    AnyEvent,
    Noted,
    open_journal,
    read_with_notices,
)

# Appends batches of notes whose text follows from their seq; syncs every third batch and then,
# when the append has returned, names on stdout the last seq that must survive. Ends by itself
# after a minute or 400 MB, so that no failed test leaves it running.
WRITER = """
import signal, sys
from pathlib import Path
from midwatch.logbook.errors import Fatal
from midwatch.tests.support.journals import Noted, open_journal
signal.alarm(60)
directory, batch, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
journal = open_journal(directory, segment_bytes=1 << 21, wait_s=30.0)
print("open", journal.next_seq, flush=True)
for count in range(400_000_000 // (batch * (size + 100))):
    first = journal.next_seq
    events = [(float(s), 1, Noted(f"{s}:" + "x" * size)) for s in range(first, first + batch)]
    try:
        journal.append(events, sync=count % 3 == 0)
    except Fatal as error:
        print(error.code, flush=True)
        sys.exit(7)
    if count % 3 == 0:
        print("synced", first + batch - 1, flush=True)
"""


@contextmanager
def writer(directory: Path, batch: int, size: int) -> Iterator[subprocess.Popen[str]]:
    """A writer process; ended by force however the test ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(directory), str(batch), str(size)],
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def read_line(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    line = process.stdout.readline().split()
    assert line, "the writer ended before it was hurt"
    return line


def synced_after(process: subprocess.Popen[str], lines: int) -> int:
    """Return the last synced seq after that many synced appends."""
    last = 0
    for _ in range(lines):
        last = int(read_line(process)[1])
    return last


def kill(process: subprocess.Popen[str]) -> int:
    """SIGKILL the writer; return the last seq it had named as synced by then (0: none more)."""
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=30) == -signal.SIGKILL
    assert process.stdout is not None
    named = [line for line in process.stdout.read().splitlines(keepends=True) if line[-1] == "\n"]
    return max((int(line.split()[1]) for line in named), default=0)


def assert_whole(directory: Path, at_least: int) -> int:
    """Every record up to some seq >= at_least is there, in order, as written; return that seq."""
    follower: Follower[AnyEvent] = Follower(directory, AnyEvent)
    seq = 0
    while batch := follower.poll():
        for record in batch:
            seq += 1
            assert record.seq == seq
            assert isinstance(record.event, Noted)
            assert record.event.text.startswith(f"{seq}:x")
    follower.close()
    assert seq >= at_least
    return seq


@pytest.mark.parametrize("seed", range(4))
def test_nothing_synced_is_lost_however_often_the_writer_is_killed(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    at_least, epochs = 0, 0
    for _ in range(3):
        batch, size = rng.choice([(1, 20), (40, 300), (5, 400_000)])
        with writer(tmp_path, batch, size) as process:
            opened = read_line(process)
            assert opened[0] == "open"
            assert int(opened[1]) > at_least
            epochs += 1
            at_least = max(at_least, synced_after(process, rng.randrange(1, 25)), kill(process))
        last = assert_whole(tmp_path, at_least)
    with open_journal(tmp_path, wait_s=30.0) as journal:
        assert journal.epoch == epochs + 1
        assert journal.next_seq == last + 1
        journal.append([(0.0, 1, Noted(f"{last + 1}:x"))], sync=True)
    assert assert_whole(tmp_path, at_least) == last + 1
    assert read_with_notices(tmp_path)[1] == []


def test_a_write_killed_halfway_is_cut_on_the_next_opening(tmp_path: Path) -> None:
    """Batches of 40 MB: the kernel ends a killed write() between pages, in the middle of a line."""
    torn = 0
    for round_number in range(12):
        with writer(tmp_path, 100, 400_000) as process:
            read_line(process)
            size = total_bytes(tmp_path)
            while total_bytes(tmp_path) == size:
                assert process.poll() is None
            kill(process)
        with open_journal(tmp_path, wait_s=30.0) as journal:
            torn += any(notice.kind == "torn-tail" for notice in journal.notices)
        assert_whole(tmp_path, 0)
        if torn and round_number >= 1:
            break
    assert torn, "no write was caught halfway: the fault was never fired"
    assert list(tmp_path.glob("*.torn"))


def total_bytes(directory: Path) -> int:
    paths = (directory / f"journal-{number:08d}.jsonl" for number in list_segments(directory))
    return sum(path.stat().st_size for path in paths)


@pytest.mark.parametrize("seed", range(3))
def test_a_stopped_writer_that_wakes_up_after_a_takeover_does_no_harm(
    tmp_path: Path, seed: int
) -> None:
    with writer(tmp_path, 30, 5_000) as process:
        read_line(process)
        at_least = synced_after(process, random.Random(seed).randrange(1, 15))
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        with pytest.raises(Retryable):
            open_journal(tmp_path)
        with open_journal(tmp_path, takeover=True) as journal:
            assert journal.next_seq > at_least
            last = journal.next_seq
            journal.append([(0.0, 1, Noted(f"{last}:x"))], sync=True)
            process.send_signal(signal.SIGCONT)
            assert process.wait(timeout=30) == 7
            journal.append([(0.0, 1, Noted(f"{last + 1}:x"))], sync=True)
        assert process.stdout is not None
        assert process.stdout.read().splitlines()[-1] == "journal-fenced"
    assert assert_whole(tmp_path, at_least) == last + 1


def test_a_controller_waits_for_its_dying_predecessor(tmp_path: Path) -> None:
    with writer(tmp_path, 1, 20) as process:
        read_line(process)
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        process.send_signal(signal.SIGKILL)
        with open_journal(tmp_path, wait_s=30.0) as journal:
            assert journal.epoch == 2
