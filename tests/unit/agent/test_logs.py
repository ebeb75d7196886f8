"""Worker logs: their tail, their bound, and the end of old ones."""

from __future__ import annotations

import os
from pathlib import Path

from midwatch.operator.agent.logs import cut_log, log_path, log_tail, prune_logs, stack_path


def test_the_tail_is_bounded_and_begins_with_a_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"line {number}\n" for number in range(1000)))
    tail = log_tail(path, 100)
    assert len(tail) <= 100
    assert tail.startswith("line 9")
    assert tail.endswith("line 999\n")


def test_a_short_log_is_its_own_tail(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"a\xff\n")
    assert log_tail(path) == "a\N{REPLACEMENT CHARACTER}\n"
    assert log_tail(tmp_path / "none") == ""


def test_a_log_past_its_bound_keeps_its_end_and_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "log"
    writer = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(writer, b"old\n" * 5000)
        assert cut_log(path, 10_000) == 15_000
        os.write(writer, b"new\n")
    finally:
        os.close(writer)
    text = path.read_bytes()
    assert text.startswith(b"[midwatch: 15000 bytes cut here]\n")
    assert text.endswith(b"old\nnew\n")
    assert len(text) < 10_000
    assert cut_log(path, 10_000) == 0
    assert cut_log(tmp_path / "none", 1) == 0


def test_only_logs_of_attempts_long_past_are_removed(tmp_path: Path) -> None:
    for attempt in (1, 68, 69, 100):
        log_path(tmp_path, attempt, 3).touch()
        stack_path(tmp_path, attempt, 3).touch()
    (tmp_path / "attempt-00001.notes").touch()
    prune_logs(tmp_path, 100)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "attempt-00001.notes",
        "attempt-00069.rank-00003.log",
        "attempt-00069.rank-00003.stack",
        "attempt-00100.rank-00003.log",
        "attempt-00100.rank-00003.stack",
    ]
