"""Events as they happen: each once and in order, from wherever a reader was, to the run's rest."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.reader import read
from midwatch.logbook.record import to_json
from midwatch.operator.api.tokens import Role
from midwatch.tests.support.api_server import ApiServer, streaming
from midwatch.tests.support.synthetic_run import SyntheticRun


def journal_of(run: SyntheticRun) -> list[Any]:
    return [json.loads(to_json(record)) for record in read(run.folder / "journal", ev.Event)]


def end(run: SyntheticRun) -> None:
    run.decide(d.EndRun(stopped=True, step=run.state.step), "ann asked")
    run.close()


def follow(
    server: ApiServer, until: Callable[[list[Any], list[str]], bool], **params: Any
) -> tuple[list[Any], list[str]]:
    """Return the records and the names of what was told until it was enough, or over."""
    records: list[Any] = []
    names: list[str] = []
    with server.http(Role.VIEWER) as http, streaming(http, **params) as messages:
        for name, number, data in messages:
            if name:
                names.append(name)
            else:
                records.append(json.loads(data))
                assert number == str(records[-1]["seq"])
            if until(records, names):
                break
    return records, names


def test_a_reader_that_comes_back_misses_nothing_and_hears_nothing_twice(
    small_run: SyntheticRun,
) -> None:
    with ApiServer(small_run.folder) as server:
        first, _ = follow(server, lambda records, _: len(records) == 7)
        # As a browser does it: the address is the old one, and the header says where it was.
        headers = {"Last-Event-ID": "7"}
        second, _ = follow(server, lambda records, _: len(records) == 4, after=2, headers=headers)
        writer = threading.Thread(target=lambda: (small_run.train(60), end(small_run)))
        writer.start()
        third, names = follow(server, lambda *_: False, after=11)
        writer.join()
    assert first + second + third == journal_of(small_run)
    assert names == ["rest"]


def test_a_run_at_rest_is_told_to_its_end_and_a_reader_may_stay(small_run: SyntheticRun) -> None:
    small_run.decide(d.PauseRun("restart-budget"), "too many restarts")
    with ApiServer(small_run.folder, heartbeat_s=0.1) as server:
        records, names = follow(server, lambda *_: False)
        assert (len(records), names) == (small_run.state.seq, ["rest"])
        seq = small_run.state.seq
        resumed = threading.Thread(
            target=lambda: small_run.decide(d.ResumeRun(), "looked at it"), daemon=True
        )

        def is_told(records: list[Any], names: list[str]) -> bool:
            if names.count(":") == 2 and not resumed.ident:
                resumed.start()
            return len(records) == 2

        records, names = follow(server, is_told, after=seq, stay="true")
        assert [record["event"]["kind"] for record in records] == ["decision", "action-done"]
        assert names[0] == "rest"
        assert set(names) == {"rest", ":"}


def test_records_that_were_withdrawn_are_told_of(small_run: SyntheticRun) -> None:
    small_run.close()
    (segment,) = (small_run.folder / "journal").glob("*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    num_records = len(lines) - 1

    def cut_back(records: list[Any], names: list[str]) -> bool:
        if len(records) == num_records and not names:
            segment.write_bytes(b"".join(lines[:-3]))
        return False

    with ApiServer(small_run.folder) as server:
        records, names = follow(server, cut_back, stay="true")
        assert (len(records), names) == (num_records, ["rewound"])
        # One who comes back for what is no longer there hears of it as well.
        records, names = follow(server, lambda *_: False, after=num_records)
        assert (records, names) == ([], ["rewound"])


def test_a_place_that_is_none_is_refused(server: ApiServer) -> None:
    with server.http() as http:
        for headers in ({"Last-Event-ID": "x"}, {"Last-Event-ID": "9" * 16}):
            answer = http.get("/v1/events/stream", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (422, "value-invalid")


def test_streams_end_by_themselves_when_the_server_is_told_to_leave(
    small_run: SyntheticRun,
) -> None:
    with ApiServer(small_run.folder) as server:

        def leave(records: list[Any], _: list[str]) -> bool:
            if len(records) == 3:
                server.process.send_signal(signal.SIGTERM)
            return False

        records, names = follow(server, leave, stay="true")
        assert (len(records), names) == (small_run.state.seq, [])
        assert server.process.wait(30) == 0


def test_many_readers_are_told_the_same(small_run: SyntheticRun, tmp_path: Path) -> None:
    told: list[list[Any]] = []
    with ApiServer(small_run.folder) as server:
        readers = [
            threading.Thread(target=lambda: told.append(follow(server, lambda *_: False)[0]))
            for _ in range(8)
        ]
        for reader in readers:
            reader.start()
        small_run.train(40)
        end(small_run)
        for reader in readers:
            reader.join(60)
    assert told == [journal_of(small_run)] * 8
