"""Following a kernel log: the device's records, and a file that grows, is cut and is rotated."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from midwatch.health.nodes.kernel_follow import (
    KMSG,
    KernelLine,
    KernelLogFollower,
    parse_record,
)
from midwatch.logbook.errors import Fatal


def texts(follower: KernelLogFollower) -> list[str]:
    return [line.text for line in follower.poll().lines]


def test_a_record_is_taken_apart() -> None:
    record = b"6,1234,5678901,-;NVRM: Xid (PCI:0000:3b:00): 79\n SUBSYSTEM=pci\n DEVICE=+pci\n"
    assert parse_record(record) == KernelLine("NVRM: Xid (PCI:0000:3b:00): 79", 5.678901, 1234)


@pytest.mark.parametrize("record", [b"", b"no head", b"6,x,5,-;text", b"6;text"])
def test_what_is_no_record_is_passed_over(record: bytes) -> None:
    assert parse_record(record) is None


def test_a_file_is_followed_from_its_end(tmp_path: Path) -> None:
    log = tmp_path / "kern.log"
    log.write_text("old\n")
    follower = KernelLogFollower(log)
    assert texts(follower) == []
    with log.open("a") as writer:
        writer.write("one\ntwo\nhal")
        writer.flush()
        assert texts(follower) == ["one", "two"]
        writer.write("f\n")
        writer.flush()
        assert texts(follower) == ["half"]
    follower.close()


def test_a_file_may_be_read_from_its_beginning(tmp_path: Path) -> None:
    log = tmp_path / "kern.log"
    log.write_text("old\n")
    follower = KernelLogFollower(log, from_start=True)
    assert texts(follower) == ["old"]
    follower.close()


def test_a_rotated_file_is_followed_on(tmp_path: Path) -> None:
    log = tmp_path / "kern.log"
    log.write_text("old\n")
    follower = KernelLogFollower(log)
    log.rename(tmp_path / "kern.log.1")
    log.write_text("new\n")
    assert texts(follower) == ["new"]
    follower.close()


def test_a_file_cut_short_is_read_again(tmp_path: Path) -> None:
    log = tmp_path / "kern.log"
    log.write_text("a long line that goes away\n")
    follower = KernelLogFollower(log)
    log.write_text("new\n")
    assert texts(follower) == ["new"]
    follower.close()


def test_a_file_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    log = tmp_path / "kern.log"
    follower = KernelLogFollower(log)
    assert texts(follower) == []
    log.write_text("first\n")
    assert texts(follower) == ["first"]
    follower.close()


def test_a_rotated_file_that_cannot_be_opened_is_followed_once_it_can(tmp_path: Path) -> None:
    log = tmp_path / "kern.log"
    log.write_text("old\n")
    follower = KernelLogFollower(log)
    log.rename(tmp_path / "kern.log.1")
    # Nobody can open a socket, root included.
    with socket.socket(socket.AF_UNIX) as blocking:
        blocking.bind(str(log))
        for _ in range(2):
            with pytest.raises(Fatal) as caught:
                follower.poll()
            assert caught.value.code == "kernel-log-unreadable"
    log.unlink()
    log.write_text("new\n")
    assert texts(follower) == ["new"]
    follower.close()


def test_a_file_that_failed_to_be_read_goes_on_where_it_was(tmp_path: Path) -> None:
    log = tmp_path / "kern.log"
    log.write_text("old\n")
    follower = KernelLogFollower(log)
    with log.open("a") as writer:
        writer.write("one\ntw")
        writer.flush()
        assert texts(follower) == ["one"]
        writer.write("o\nthree\n")
    folder_fd = os.open(tmp_path, os.O_RDONLY)
    os.dup2(folder_fd, follower._fd)
    os.close(folder_fd)
    with pytest.raises(OSError):
        follower.poll()
    assert texts(follower) == ["two", "three"]
    follower.close()


@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero"])
def test_a_device_without_a_kernel_log_holds_nobody_up(device: str) -> None:
    follower = KernelLogFollower(Path(device))
    assert texts(follower) == []
    follower.close()


def test_an_endless_line_is_cut(tmp_path: Path) -> None:
    log = tmp_path / "kern.log"
    log.write_bytes(b"x" * 70_000)
    follower = KernelLogFollower(log, from_start=True)
    assert [len(text) for text in texts(follower)] == [70_000]
    follower.close()


def test_a_log_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(Fatal) as caught:
        KernelLogFollower(tmp_path / "file" / "below" if _make_file(tmp_path) else tmp_path)
    assert caught.value.code == "kernel-log-unreadable"


def _make_file(folder: Path) -> bool:
    """Put a file where a folder is needed, so that opening fails for root as well."""
    (folder / "file").write_text("")
    return True


@pytest.mark.skipif(not os.access(KMSG, os.R_OK), reason="/dev/kmsg may not be read here")
def test_the_kernel_itself_is_read() -> None:
    try:
        follower = KernelLogFollower(from_start=True)
    except Fatal as refusal:
        pytest.skip(str(refusal))
    reading = follower.poll()
    follower.close()
    assert all(line.seq is not None and line.boot_s is not None for line in reading.lines)
    numbers = [line.seq for line in reading.lines if line.seq is not None]
    assert numbers == sorted(numbers)
