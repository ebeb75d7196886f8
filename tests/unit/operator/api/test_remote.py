"""A served run in the hands of commands and of the terminal logbook, as if its folder were here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.errors import ConfigError, MidwatchError, Retryable
from midwatch.logbook.interventions import FORMS, Answers
from midwatch.logbook.reader import read
from midwatch.logbook.tui.app import Pace, WatchApp
from midwatch.logbook.tui.book import Book
from midwatch.logbook.tui.controls import Ask
from midwatch.logbook.tui.source import JournalSource, Source
from midwatch.operator.api.client import Access, ApiClient
from midwatch.operator.api.refusal import Refusal
from midwatch.operator.api.remote_run import RemoteSource, RemoteState
from midwatch.operator.api.tokens import Role
from midwatch.operator.cli.remote import RemoteChannel, RemoteControls
from midwatch.operator.cli.steer import make_request, wait_until_settled
from midwatch.operator.desk import FileDesk
from midwatch.tests.support.api_server import ApiServer
from midwatch.tests.support.live_run import wait_until
from midwatch.tests.support.screens import Screen, drive, text_on, until, watch_app
from midwatch.tests.support.synthetic_run import SyntheticRun

MIDWATCH = [sys.executable, "-m", "midwatch.operator.cli.main"]
DEADLINE_S = 60.0


def request_of(ask: Ask) -> ev.InterventionRequested:
    answers = ask.answers
    return make_request(ask.form.action, ask.reason, value=answers.value, target=answers.target)


def read_whole(source: Source, book: Book) -> None:
    """Let a book take all that a source has now."""
    while True:
        update = source.advance(0.05)
        assert not update.trouble, update.trouble
        book.take(update)
        if not update.has_more:
            return


def assert_alike(one: Book, other: Book) -> None:
    assert msgspec.msgpack.encode(one.state) == msgspec.msgpack.encode(other.state)
    assert one.is_whole
    assert one.read_frac == 1.0
    first, last = one.series.first_step, one.series.last_step
    for name in ("loss", "lr"):
        points = one.series.points(name, first, last, 10_000)
        assert points == other.series.points(name, first, last, 10_000)
    assert [r.seq for r in one.past] == [r.seq for r in other.past]
    assert [r.seq for r in one.tail] == [r.seq for r in other.tail]


def test_the_logbook_has_the_same_from_afar(server: ApiServer, night: SyntheticRun) -> None:
    for tail in (10, 200, 5000):
        far, near = Book(), Book()
        read_whole(RemoteSource(server.client(Role.VIEWER), tail=tail), far)
        read_whole(JournalSource(night.folder / "journal", tail=tail), near)
        assert_alike(far, near)


def test_a_server_that_went_away_is_followed_on_when_it_is_back(small_run: SyntheticRun) -> None:
    book = Book()
    with ApiServer(small_run.folder, is_own=True) as server:
        url, token = server.endpoint.url, server.token(Role.VIEWER)
        port = server.endpoint.port
        client = ApiClient(Access(url, token))
        source = RemoteSource(client, tail=5)
        read_whole(source, book)
    assert "[api-unreachable]" in source.advance(0.05).trouble
    small_run.train(30)
    with ApiServer(small_run.folder, {"port": port}):
        wait_until(lambda: not source.advance(0.0).trouble, "it does not come back")
        source.advance(0.05)
        # What was read before it went was not read again: only what is new comes.
        near = Book()
        read_whole(JournalSource(small_run.folder / "journal"), near)
        assert msgspec.msgpack.encode(RemoteState(client).state) == msgspec.msgpack.encode(
            near.state
        )
    client.close()


def test_a_journal_cut_back_is_read_anew_from_afar(small_run: SyntheticRun) -> None:
    small_run.close()
    (segment,) = (small_run.folder / "journal").glob("*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    with ApiServer(small_run.folder) as server:
        source, book = RemoteSource(server.client(Role.VIEWER)), Book()
        following = RemoteState(server.client(Role.VIEWER))
        read_whole(source, book)
        following.poll()
        before, generation = book.state.seq, book.generation
        segment.write_bytes(b"".join(lines[:-4]))
        read_whole(source, book)
        following.poll()
        assert book.state.seq == before - 4
        assert book.generation > generation
        assert RemoteState(server.client()).state.seq == before - 4


def test_refusals_keep_their_code_and_say_what_to_do(server: ApiServer) -> None:
    client = ApiClient(Access(server.endpoint.url, "nobody's"))
    with pytest.raises(Refusal) as refused:
        client.status()
    assert (refused.value.status, refused.value.code) == (401, "token-wrong")
    assert "MIDWATCH_TOKEN" in refused.value.remedy
    client.close()
    request = make_request("lr", "x", value=0.1)
    with pytest.raises(Refusal) as refused:
        server.client(Role.VIEWER).post(request)
    assert refused.value.code == "role-too-low"
    for url in (
        "ftp://x",
        "x:80",
        "http://",
        "http://ann:secret@x",
        "http://x:99999",
        "http://x/?a",
    ):
        with pytest.raises(ConfigError) as wrong:
            ApiClient(Access(url))
        assert wrong.value.code == "url-invalid"
        assert "secret" not in str(wrong.value)


def test_an_answer_of_something_else_is_no_run(tmp_path: Path) -> None:
    from midwatch.tests.support.web_hook import WebHook

    with WebHook() as hook:
        client = ApiClient(Access(hook.url.rpartition("/")[0]))
        with pytest.raises(MidwatchError) as wrong:
            client.status()
        assert wrong.value.code == "api-not-understood"
        hook.answers.append(502)
        with pytest.raises(Retryable) as unwilling:
            client.status()
        assert unwilling.value.code == "api-unwilling"
        client.close()


@pytest.fixture
def clerk(small_run: SyntheticRun) -> Iterator[SyntheticRun]:
    """A run whose controller takes what is asked for and refuses it."""
    is_over = threading.Event()

    def work() -> None:
        desk = FileDesk(small_run.folder)
        while not is_over.wait(0.02):
            requests = desk.requests()
            small_run.tell(*requests)
            desk.settled()
            for request in requests:
                if isinstance(request, ev.InterventionRequested):
                    small_run.decide(d.RejectIntervention(request.id), f"no {request.action} now")
        desk.close()

    thread = threading.Thread(target=work)
    thread.start()
    yield small_run
    is_over.set()
    thread.join()


def test_a_request_is_followed_from_afar_until_it_is_settled(clerk: SyntheticRun) -> None:
    with ApiServer(clerk.folder) as server:
        channel = RemoteChannel(server.client())
        request = make_request("lr-factor", "creeps", value=0.5)
        channel.post(request)
        known = wait_until_settled(channel, request.id, DEADLINE_S)
        assert (known.stage, known.detail) == ("rejected", "no lr-factor now")
        # Sent once more, it is not made once more.
        channel.post(request)
    events = [record.event for record in read(clerk.folder / "journal", ev.Event)]
    assert sum(isinstance(event, ev.InterventionRequested) for event in events) == 1


def test_a_request_that_nobody_settles_times_out_and_stands(small_run: SyntheticRun) -> None:
    with ApiServer(small_run.folder) as server:
        channel = RemoteChannel(server.client())
        request = make_request("lr-factor", "creeps", value=0.5)
        assert channel.plan(request)
        channel.post(request)
        with pytest.raises(MidwatchError) as late:
            wait_until_settled(channel, request.id, 0.0)
        assert late.value.code == "timed-out"
        assert "requested" in late.value.message


@asynccontextmanager
async def watching(server: ApiServer, run: SyntheticRun) -> AsyncIterator[Screen]:
    client = server.client()
    controls = RemoteControls(client, request_of, lambda: ("creep=act",))
    pace = Pace(poll_s=0.05, paint_s=0.0, clock=lambda: run.now_s + 3.0)
    app = WatchApp(RemoteSource(client), controls, pace)
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        yield pilot


def test_the_screen_shows_and_steers_a_served_run(clerk: SyntheticRun) -> None:
    async def scenario() -> None:
        with ApiServer(clerk.folder) as server:
            async with watching(server, clerk) as pilot:
                await until(pilot, lambda: "12/2000" in text_on(pilot))
                await pilot.press("F")
                await until(pilot, lambda: "Scale the learning rate" in text_on(pilot))
                await pilot.press(*"0.5", "tab", *"creeps", "enter")
                await until(pilot, lambda: "would send lr-factor 0.5" in text_on(pilot))
                await pilot.press("y")
                await until(pilot, lambda: "rejected" in text_on(pilot))
                (known,) = watch_app(pilot).book.state.interventions.values()
                assert known.request.by.endswith(" via api:operator")
                server.process.terminate()
                await until(pilot, lambda: "api-unreachable" in text_on(pilot))

    drive(scenario())


def midwatch(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    known = {name: value for name, value in os.environ.items() if not name.startswith("MIDWATCH_")}
    return subprocess.run(
        [*MIDWATCH, *words], capture_output=True, text=True, env=known | environ, check=False
    )


def test_commands_read_a_served_run(server: ApiServer, night: SyntheticRun, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(server.token(Role.VIEWER))
    url = server.endpoint.url
    by_option = midwatch("status", "--url", url, "--token-file", str(token_file), "-o", "json")
    here: Any = json.loads(midwatch("status", str(night.folder), "-o", "json").stdout)
    there: Any = json.loads(by_option.stdout)
    for told in (here, there):
        # Both are of the moment they were asked.
        told["summary"] = {k: v for k, v in told["summary"].items() if k in ("step", "incidents")}
    assert there == here
    environ = {"MIDWATCH_URL": url, "MIDWATCH_TOKEN": server.token(Role.VIEWER)}
    journal = midwatch("journal", "--kind", "decision", **environ)
    assert journal.stdout == midwatch("journal", str(night.folder), "--kind", "decision").stdout
    picture = midwatch("watch", "--once", **environ)
    assert "watching inc-0002" in picture.stdout
    refused = midwatch("status", "--url", url)
    assert (refused.returncode, "[token-missing]" in refused.stderr) == (4, True)
    assert "Set MIDWATCH_TOKEN" in refused.stderr
    both = midwatch("status", "night", "--url", url)
    assert (both.returncode, "[usage]" in both.stderr) == (2, True)


def test_no_command_takes_another_run_for_the_served_one(
    server: ApiServer, night: SyntheticRun, tmp_path: Path
) -> None:
    afar = {"MIDWATCH_URL": server.endpoint.url, "MIDWATCH_TOKEN": server.token(Role.VIEWER)}
    near = str(night.folder)
    for words in (["interventions"], ["detectors"], ["checkpoints", "prune", "--dry-run"]):
        told = midwatch(*words, "-o", "json", **afar)
        assert told.returncode == 0, told.stderr
        assert told.stdout == midwatch(*words, near, "-o", "json").stdout
    written = midwatch("report", "--out", str(tmp_path), "-o", "json", **afar)
    assert json.loads(written.stdout)["summary"]["run"] == night.state.run
    for words, code in (
        (["checkpoints", "list"], "needs-folder"),
        (["serve"], "needs-folder"),
        (["report"], "usage"),
    ):
        refused = midwatch(*words, **afar)
        assert (refused.returncode, f"[{code}]" in refused.stderr) == (2, True), refused.stderr
    for words in (
        ["checkpoints", "prune"],
        ["detectors", "--set", "creep=off"],
        ["checkpoints", "verify", "x", "--by-controller"],
    ):
        refused = midwatch(*words, "--reason", "to see", **afar)
        assert "[role-too-low]" in refused.stderr, words


def test_a_run_is_served_by_hand_until_somebody_has_enough(small_run: SyntheticRun) -> None:
    command = [*MIDWATCH, "serve", str(small_run.folder), "-o", "json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        told = json.loads(child.stdout.readline())
        client = ApiClient(Access(told["url"], Path(told["tokens"]["viewer"]).read_text().strip()))
        assert client.status().seq == small_run.state.seq
        client.close()
        child.send_signal(signal.SIGINT)
        assert child.wait(DEADLINE_S) == 0


def test_watch_in_a_pipe_follows_a_served_run_to_its_end_over_a_restart(
    small_run: SyntheticRun,
) -> None:
    with ApiServer(small_run.folder) as server:
        port, environ = server.endpoint.port, {"MIDWATCH_TOKEN": server.token(Role.VIEWER)}
        command = [*MIDWATCH, "watch", "--url", server.endpoint.url]
        child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environ,
        )
        assert child.stdout is not None
        assert child.stderr is not None
        picture = ""
        while "training, attempt 1" not in picture:
            picture += child.stdout.readline()
    with child:
        assert "[api-unreachable]" in child.stderr.readline()
        small_run.crash(rank=1)
        small_run.decide(d.EndRun(stopped=True, step=12), "ann asked")
        small_run.decide(d.CloseIncident("inc-0001", "the run ended"), "nothing more will come")
        with ApiServer(small_run.folder, {"port": port}):
            rest = child.stdout.read()
            assert child.wait(DEADLINE_S) == 0
    assert "rank 1 on n000 killed by SIGABRT" in rest
    assert rest.count("worker-exited") == 1


def test_the_form_of_every_intervention_can_be_sent(server: ApiServer) -> None:
    controls = RemoteControls(server.client(), request_of, lambda: ())
    state = server.client().state()
    for form in FORMS:
        assert controls.preview(state, Ask(form, Answers(0.5, "n001"), "why"))
