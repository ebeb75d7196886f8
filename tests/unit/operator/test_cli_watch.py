"""midwatch watch, as a person calls it: in a terminal, in a pipe, and on nothing."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from midwatch.logbook import decisions as d
from midwatch.logbook.events import InterventionRequested
from midwatch.logbook.interventions import FORMS, Answers
from midwatch.logbook.pulse import Pulse, pulse_s
from midwatch.logbook.tui.controls import Ask
from midwatch.operator.cli.main import main
from midwatch.operator.cli.watch import FolderControls
from midwatch.tests.support.synthetic_run import SyntheticRun

WATCH = [sys.executable, "-m", "midwatch.operator.cli.main", "watch"]
DEADLINE_S = 60.0


@pytest.fixture
def run(tmp_path: Path) -> Iterator[SyntheticRun]:
    run = SyntheticRun(tmp_path / "run", nodes=2, spares=1, slots=2)
    run.start("the first attempt")
    run.train(60)
    yield run
    run.close()


def test_a_terminal_gets_the_screen_and_q_leaves_it(run: SyntheticRun) -> None:
    master, slave = pty.openpty()
    environ = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    command = [*WATCH, str(run.folder)]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environ) as child:
        os.close(slave)
        seen = read_until(master, b"opt-175b")
        os.write(master, b"q")
        seen += drain(master)
        assert child.wait(DEADLINE_S) == 0
    os.close(master)
    assert b"\x1b[?1049h" in seen
    assert b"\x1b[?1049l" in seen


def test_a_pipe_gets_the_picture_and_a_line_for_each_event_until_the_run_ends(
    run: SyntheticRun,
) -> None:
    command = [*WATCH, str(run.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        picture = ""
        while "why" not in picture and "training, attempt 1" not in picture:
            picture += child.stdout.readline()
        run.crash(rank=1)
        run.decide(d.EndRun(stopped=True, step=60), "ann asked")
        run.decide(d.CloseIncident("inc-0001", "the run ended"), "nothing more will come")
        rest = child.stdout.read()
        assert child.wait(DEADLINE_S) == 0
    assert "rank 1 on n000 killed by SIGABRT" in rest
    assert "end-run" in rest or "end the run" in rest
    assert "\x1b" not in picture + rest


def test_once_prints_the_picture_and_leaves(run: SyntheticRun) -> None:
    done = subprocess.run(
        [*WATCH, str(run.folder), "--once"], capture_output=True, text=True, check=True
    )
    assert "60 / 2000" in done.stdout
    # What the journal tells of was in 2023.
    assert re.search(r"silent for \d+ d: is the controller away\?", done.stdout)


def test_status_tells_a_run_that_fell_silent_from_one_that_goes_on(
    run: SyntheticRun, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def status(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["midwatch", "status", str(run.folder), *words])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
        return capfd.readouterr().out

    assert "silent for " in status()
    told = json.loads(status("-o", "json"))
    assert told["heard_s"] == run.state.time_s
    assert told["silent"].endswith("is the controller away?")
    Pulse(run.folder / "journal").beat()
    assert "silent" not in status()
    told = json.loads(status("-o", "json"))
    assert told["heard_s"] == pulse_s(run.folder / "journal")
    assert told["silent"] == ""


def test_a_run_that_does_not_exist_is_one_clear_error(tmp_path: Path) -> None:
    done = subprocess.run([*WATCH, str(tmp_path / "none")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "")
    assert "[no-such-run]" in done.stderr


def test_a_request_is_tried_out_by_the_policy_and_laid_on_the_desk(run: SyntheticRun) -> None:
    form = next(each for each in FORMS if each.action == "lr-factor")
    ask = Ask(form, Answers(0.5), "grad norm creeps", expect_attempt=1)
    controls = FolderControls(run.folder, clock=lambda: run.now_s + 1.0)
    preview = controls.preview(run.state, ask)
    assert "would send lr-factor 0.5 as command 1" in preview
    assert "grad norm creeps" in preview
    late = msgspec.structs.replace(ask, expect_attempt=7)
    assert "conflict: attempt 7 was expected" in controls.preview(run.state, late)
    assert not list((run.folder / "requests").iterdir())
    name = controls.submit(ask)
    (path,) = (run.folder / "requests").glob("*.json")
    request = msgspec.json.decode(path.read_bytes(), type=InterventionRequested)
    assert (request.id, request.action, request.value) == (name, "lr-factor", 0.5)
    assert (request.reason, request.expect_attempt) == ("grad norm creeps", 1)
    assert "creep=shadow" in controls.switches(run.state)


def read_until(fd: int, wanted: bytes) -> bytes:
    """Read from a terminal until something has been written there."""
    seen, deadline_s = b"", time.monotonic() + DEADLINE_S
    while wanted not in seen:
        assert time.monotonic() < deadline_s, seen[-2000:]
        if select.select([fd], [], [], 0.1)[0]:
            seen += os.read(fd, 65536)
    return seen


def drain(fd: int) -> bytes:
    """Read from a terminal until whoever writes there has gone."""
    seen = b""
    while True:
        try:
            data = os.read(fd, 65536)
        except OSError:
            return seen
        if not data:
            return seen
        seen += data
