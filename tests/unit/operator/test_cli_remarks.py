"""`midwatch notes --add`: through the desk of a living run, by hand once it is over."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from midwatch.logbook import events as ev
from midwatch.logbook.reader import read
from midwatch.operator.cli import main as cli_main
from midwatch.operator.cli.runs import load_state
from midwatch.operator.desk import FileDesk, note_path
from midwatch.tests.sim.night import DiskJournal, Night

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Cli:
    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["midwatch", *words])
        with pytest.raises(SystemExit) as end:
            cli_main.main()
        out, err = capfdbinary.readouterr()
        return int(end.value.code or 0), out.decode(), err.decode()

    return call


class Run:
    """A night on a real disk whose controller takes requests from a real desk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.night = Night(journal=DiskJournal(folder / "journal"))
        self.night.run_to_step(43)
        self.night.world.kill_worker(1)
        self.night.run(lambda s: bool(s.incidents) and not s.open_incidents)
        self.desk = FileDesk(folder)

    def attend(self, done: threading.Event) -> None:
        """Do as the controller does with requests, until done."""
        while not done.is_set():
            assert self.night.controller is not None
            for request in self.desk.requests():
                self.night.controller.record(request)
            self.desk.settled()
            time.sleep(0.01)

    def end(self) -> None:
        self.night.run_to_end()
        assert isinstance(self.night.journal, DiskJournal)
        self.night.journal.close()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def notes_added(folder: Path) -> list[ev.NoteAdded]:
    found = (record.event for record in read(folder / "journal", ev.Event))
    return [event for event in found if isinstance(event, ev.NoteAdded)]


def test_an_addition_is_an_event_of_the_controller(run: Run, cli: Cli) -> None:
    done = threading.Event()
    controller = threading.Thread(target=run.attend, args=(done,))
    controller.start()
    try:
        words = ("--incident", "inc-0001", "--add", "swapped the cable", "-o", "json")
        status, out, _ = cli("notes", str(run.folder), *words)
    finally:
        done.set()
        controller.join()
    assert status == 0
    [added] = notes_added(run.folder)
    assert (added.text, added.incident) == ("swapped the cable", "inc-0001")
    remark = load_state(run.folder).incidents["inc-0001"].remarks[0]
    assert json.loads(out)["seq"] == remark.seq


@pytest.mark.parametrize("is_over", [False, True])
def test_the_same_words_twice_are_two_remarks_each_confirmed_as_itself(
    run: Run, cli: Cli, is_over: bool
) -> None:
    done = threading.Event()
    controller = threading.Thread(target=run.attend, args=(done,))
    if is_over:
        run.end()
    else:
        controller.start()
    words = ("--incident", "inc-0001", "--add", "the same", "--timeout-s", "20", "-o", "json")
    try:
        told = [json.loads(cli("notes", str(run.folder), *words)[1])["seq"] for _ in range(2)]
    finally:
        done.set()
        if not is_over:
            controller.join()
    assert told[0] < told[1]
    remarks = load_state(run.folder).incidents["inc-0001"].remarks
    assert [remark.seq for remark in remarks if remark.text == "the same"] == told


def test_after_the_end_the_note_is_written_at_once(run: Run, cli: Cli) -> None:
    run.end()
    last = load_state(run.folder).seq
    status, out, _ = cli(
        "notes", str(run.folder), "--incident", "inc-0001", "--add", "root cause: a loose cable"
    )
    assert status == 0
    assert f"event #{last + 1}" in out
    text = note_path(run.folder, "inc-0001").read_text()
    assert "> root cause: a loose cable" in text
    assert "Closed: recovered in" in text
    cli("notes", str(run.folder), "--add", "a calm night")
    assert [remark.text for remark in load_state(run.folder).remarks] == ["a calm night"]


def test_with_nobody_at_the_desk_it_stands_and_says_so(run: Run, cli: Cli) -> None:
    words = ("--incident", "inc-0001", "--add", "waits", "--timeout-s", "0.2")
    status, out, err = cli("notes", str(run.folder), *words)
    assert (status, out) == (5, "")
    assert "timed-out" in err
    assert [request.text for request in run.desk.requests()] == ["waits"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (("--incident", "inc-0099", "--add", "x"), 3, "no-such-incident"),
        (("--incident", "inc-0001", "--add", "  "), 2, "usage"),
        (("--incident", "inc-0001", "--add", "x" * 8001), 2, "usage"),
    ],
)
def test_bad_additions_are_refused(
    run: Run, cli: Cli, words: tuple[str, ...], status: int, code: str
) -> None:
    found, out, err = cli("notes", str(run.folder), *words)
    assert (found, out) == (status, "")
    assert code in err
    assert not run.desk.requests()


def test_a_note_whose_file_is_gone_is_made_again_from_the_journal(run: Run, cli: Cli) -> None:
    run.end()
    note_path(run.folder, "inc-0001").unlink(missing_ok=True)
    status, out, _ = cli("notes", str(run.folder), "--incident", "inc-0001")
    assert status == 0
    assert "# inc-0001:" in out
    assert "what happened" in out
    status, _, err = cli("notes", str(run.folder), "--incident", "inc-0099")
    assert status == 3
    assert "no-such-incident" in err
