"""A live run watched from outside: hurt, its controller killed, and every word of it heard."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from midwatch.logbook import events as ev
from midwatch.logbook.chronicle import read_chronicle
from midwatch.logbook.ledger import Cause
from midwatch.logbook.pulse import pulse_s
from midwatch.logbook.reader import read
from midwatch.logbook.state import RunState, Status
from midwatch.operator.desk import note_path, post_request
from midwatch.operator.runtime.session import Session

from tests.support.live_run import (
    LiveRun,
    Strike,
    is_training,
    nano_spec,
    strike_controller,
    strike_worker,
    wait_until,
)
from tests.support.web_hook import WebHook

pytestmark = pytest.mark.chaos


def ports_told(run: LiveRun) -> list[int]:
    log = (run.run_dir / "logs" / "controller.log").read_text()
    return [int(port) for port in re.findall(r"metrics at 127\.0\.0\.1:(\d+)", log)]


def scrape(run: LiveRun) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{ports_told(run)[-1]}", timeout=20) as answer:
        body: bytes = answer.read()
        return body.decode()


def strike_remark(run: LiveRun) -> Strike:
    """A person adds to the first note as soon as there is one."""

    def strike(state: RunState) -> bool:
        if "inc-0001" not in state.incidents:
            return False
        note = ev.NoteAdded("ann", "looked at the cable", "inc-0001")
        post_request(run.run_dir, note, time_s=state.time_s)
        return True

    return strike


def test_what_happens_to_a_run_is_told_noted_and_counted(
    session: Session, tmp_path: Path, corpus: Path
) -> None:
    with WebHook(500) as hook, WebHook() as pulse:
        for name, server in (("webhook", hook), ("pulse", pulse)):
            (tmp_path / name).write_text(f"{server.url}\n")
        notify = {
            "webhook": {"file": str(tmp_path / "webhook")},
            "heartbeat": {"file": str(tmp_path / "pulse")},
            "heartbeat_every_s": 0.2,
        }
        spec = nano_spec(
            "outward",
            tmp_path / "run",
            corpus,
            trainer={"steps": 400},
            notify=notify,
            observe={"metrics_port": 0},
        )
        scraped: list[str] = []

        def look(state: RunState) -> bool:
            if is_training(state) and state.step >= 5 and not scraped:
                scraped.append(scrape(run))
            return bool(scraped)

        with LiveRun(spec, session) as run:
            killed = strike_controller(lambda state: bool(state.incidents) and state.step >= 60)
            state = run.finish(look, strike_worker(1, 25), strike_remark(run), killed)
        # Its actors are ended as soon as it rests, as `midwatch run` does: no word may be lost.
        assert any("is completed" in text for text in hook.texts), "nobody heard the end"
        assert len(ports_told(run)) >= 2, "the second controller served no metrics"
        wait_until(lambda: not _is_served(run), "the series outlived the run")
        assert state.status is Status.COMPLETED
        assert pulse.requests_total > 3
    assert re.search(r'^midwatch_step\{run="outward"\} [1-9]', scraped[0], re.MULTILINE)
    for name in state.incidents:
        heads = [text.partition("]")[2] for text in "\n\n".join(hook.texts).split("\n\n")]
        assert sum(head.startswith(f" {name}") and "closed" in head for head in heads) <= 1
        assert any(head.startswith(f" {name}") for head in heads), f"nobody heard of {name}"
    _check_note(run)
    _check_ledger(run, state)
    kept = "".join(p.read_text(errors="replace") for p in _texts(run.run_dir))
    assert "sEcReT" not in kept, "a secret was written down"


def _is_served(run: LiveRun) -> bool:
    try:
        scrape(run)
    except (urllib.error.URLError, OSError):
        return False
    return True


def _check_note(run: LiveRun) -> None:
    text = note_path(run.run_dir, "inc-0001").read_text()
    assert "Closed: recovered" in text
    assert "> looked at the cable" in text
    assert "SIGKILL" in text
    assert "![The numbers around inc-0001](inc-0001.svg)" in text
    assert (run.run_dir / "notes" / "inc-0001.svg").stat().st_size > 2000


def _check_ledger(run: LiveRun, state: RunState) -> None:
    chronicle = read_chronicle(read(run.run_dir / "journal", ev.Event))
    assert state.ended_s is not None
    assert pulse_s(run.run_dir / "journal") > state.submitted_s
    totals = chronicle.ledger.totals(state.ended_s)
    wall_s = state.ended_s - state.submitted_s
    assert sum(totals.values()) == pytest.approx(wall_s * 4)
    assert totals[Cause.PRODUCTIVE] > 0.0
    assert list(chronicle.curves.steps) == list(range(1, 401))


def _texts(folder: Path) -> list[Path]:
    names = ("journal", "logs", "notes", "evidence")
    found = [path for name in names for path in (folder / name).rglob("*") if path.is_file()]
    return [*found, folder / "notify-told"]


def test_a_run_that_pauses_asks_for_a_person_before_its_actors_end(
    session: Session, tmp_path: Path, corpus: Path
) -> None:
    with WebHook() as hook:
        (tmp_path / "webhook").write_text(hook.url)
        spec = nano_spec(
            "pausing",
            tmp_path / "run",
            corpus,
            trainer={"steps": 4000},
            restart={"hang_min_s": 3.0, "max_restarts_per_hour": 1},
            notify={"webhook": {"file": str(tmp_path / "webhook")}},
        )
        with LiveRun(spec, session) as run:
            state = run.finish(strike_worker(1, 10), _strike_again(2))
        assert state.status is Status.PAUSED
        assert any("needs a person" in text for text in hook.texts)
    for name in state.incidents:
        assert note_path(run.run_dir, name).is_file(), f"{name} has no note"
    assert "pause-run" in note_path(run.run_dir, list(state.incidents)[-1]).read_text()


def _strike_again(attempt: int) -> Strike:
    """Kill a worker of an attempt once it trains."""

    def strike(state: RunState) -> bool:
        return state.num_attempts == attempt and strike_worker(0, 0)(state)

    return strike
