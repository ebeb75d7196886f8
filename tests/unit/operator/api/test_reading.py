"""What the API tells of a run is what its folder says, and what its own description promises."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import jsonschema
import msgspec
import pytest
from midwatch.logbook import events as ev
from midwatch.logbook.pulse import Pulse, pulse_s
from midwatch.logbook.reader import read
from midwatch.logbook.record import JournalCorrupt, Record, to_json
from midwatch.logbook.state import RunState
from midwatch.operator.api.order import Bounds
from midwatch.operator.api.remote_run import RemoteSource
from midwatch.operator.api.run_view import RunView
from midwatch.operator.api.tokens import Role
from midwatch.operator.cli.runs import load_state
from midwatch.operator.desk import FileDesk, note_path, note_text, plot_path
from midwatch.tests.support.api_server import ApiServer
from midwatch.tests.support.builders import make_sample
from midwatch.tests.support.live_run import wait_until
from midwatch.tests.support.synthetic_run import SyntheticRun
from prometheus_client.parser import text_string_to_metric_families

INCIDENT = "inc-0001"


def get(server: ApiServer, path: str, **params: Any) -> Any:
    with server.http(Role.VIEWER) as http:
        answer = http.get(path, params=params)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    return answer.json()


def described(server: ApiServer, name: str) -> jsonschema.Draft202012Validator:
    document = get(server, "/openapi.json")
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    return jsonschema.Draft202012Validator(schema)


def test_the_state_is_the_fold_of_the_journal(server: ApiServer, night: SyntheticRun) -> None:
    told = server.client(Role.VIEWER).state()
    assert msgspec.msgpack.encode(told) == msgspec.msgpack.encode(night.state)
    described(server, "RunState").validate(get(server, "/v1/state"))


def test_status_says_what_is_done_and_its_figures(server: ApiServer, night: SyntheticRun) -> None:
    told = get(server, "/v1/status")
    described(server, "RunStatus").validate(told)
    assert "watching inc-0002 (divergence)" in told["doing"]
    assert told["seq"] == night.state.seq
    assert told["summary"]["step"] == night.state.step


def test_status_says_when_the_run_was_heard_of_last(small_run: SyntheticRun) -> None:
    with ApiServer(small_run.folder) as server:
        told = server.client(Role.VIEWER).status()
        assert told.heard_s == small_run.state.time_s
        assert told.silent.startswith("silent for ")
        # One source that is asked anew, and one that has been told already.
        clock = itertools.count(0.0, 3.0)
        source = RemoteSource(server.client(Role.VIEWER), clock=lambda: next(clock))
        source.advance(0.0)
        Pulse(small_run.folder / "journal").beat()
        told = server.client(Role.VIEWER).status()
        assert told.heard_s == pulse_s(small_run.folder / "journal") > small_run.state.time_s
        assert told.silent == ""
        wait_until(lambda: source.advance(0.0).alive_s == told.heard_s, "the pulse is not told")


def test_events_are_the_journal_in_pages(server: ApiServer, night: SyntheticRun) -> None:
    wanted = [json.loads(to_json(record)) for record in read(night.folder / "journal", ev.Event)]
    found: list[Any] = []
    while page := get(server, "/v1/events", after=len(found), limit=150):
        assert len(page) <= 150
        found += page
    assert found == wanted
    described(server, "Record").validate(found[0])
    for record in found[:: len(found) // 40]:
        described(server, "Record").validate(record)
    assert get(server, "/v1/events", after=10**15) == []


def test_a_page_is_bounded_in_bytes_and_never_empty_before_the_end(small_run: SyntheticRun) -> None:
    with ApiServer(small_run.folder, page_bytes=1, page_records=5) as server:
        seqs = [get(server, "/v1/events", after=n)[0]["seq"] for n in range(3)]
        assert seqs == [1, 2, 3]
        assert len(get(server, "/v1/events", after=0)) == 1


def test_numbers_that_json_has_no_word_for_are_told_all_the_same(small_run: SyntheticRun) -> None:
    sample = make_sample(13, loss=math.nan, grad_norm=math.inf)
    small_run.tell(ev.StepDone(1, sample))
    with ApiServer(small_run.folder) as server:
        state = get(server, "/v1/state")
        assert (state["last"]["loss"], state["last"]["grad_norm"]) == ("NaN", "Infinity")
        described(server, "RunState").validate(state)
        records = server.client().events(small_run.state.seq - 1, 10)
        assert isinstance(records[-1], Record)
        told = records[-1].event
        assert isinstance(told, ev.StepDone)
        assert math.isnan(told.sample.loss)
        assert math.isinf(told.sample.grad_norm)


def test_incidents_and_their_notes(server: ApiServer, night: SyntheticRun) -> None:
    rows = get(server, "/v1/incidents")
    assert [row["id"] for row in rows] == list(night.state.incidents)
    described(server, "IncidentRow").validate(rows[0])
    told = get(server, f"/v1/incidents/{INCIDENT}")
    described(server, "Incident").validate(told)
    assert told["draft"]["fault"] == "worker-killed"
    client = server.client(Role.VIEWER)
    # No controller has written one: it is made from the state.
    assert client.note(INCIDENT).startswith(f"# {INCIDENT}:")
    note = night.folder / "notes" / f"{INCIDENT}.md"
    note.parent.mkdir()
    note.write_text("as the scribe wrote it")
    assert client.note(INCIDENT) == "as the scribe wrote it"


def plot_of(server: ApiServer) -> httpx.Response:
    with server.http(Role.VIEWER) as http:
        return http.get(f"/v1/incidents/{INCIDENT}/plot")


def test_the_plot_of_a_note_is_served_and_the_note_shows_it_from_there(
    small_run: SyntheticRun,
) -> None:
    small_run.crash(rank=1)
    with ApiServer(small_run.folder) as server:
        client = server.client(Role.VIEWER)
        shown = f"![The numbers around {INCIDENT}](/v1/incidents/{INCIDENT}/plot)"
        # No controller has drawn it: the journal has the numbers all the same.
        assert shown in client.note(INCIDENT)
        drawn = plot_of(server)
        assert (drawn.status_code, drawn.headers["content-type"]) == (200, "image/svg+xml")
        assert drawn.headers["x-content-type-options"] == "nosniff"
        assert ElementTree.fromstring(drawn.text).tag == "{http://www.w3.org/2000/svg}svg"
        assert "loss (nats/token)" in drawn.text
        desk = FileDesk(small_run.folder)
        desk.write_note(small_run.state, small_run.state.incidents[INCIDENT])
        desk.close()
        assert f"]({INCIDENT}.svg)" in note_path(small_run.folder, INCIDENT).read_text()
        assert shown in client.note(INCIDENT)
        assert f"{INCIDENT}.svg" not in client.note(INCIDENT)
        assert plot_of(server).text == drawn.text
        # What lies there is served: a journal that was cut since could not draw it again.
        plot_path(small_run.folder, INCIDENT).write_text("<svg/>")
        assert plot_of(server).text == "<svg/>"


def test_a_note_whose_file_is_gone_shows_the_plot_beside_it_while_there_is_one(
    small_run: SyntheticRun,
) -> None:
    small_run.crash(rank=1)
    folder, incident = small_run.folder, small_run.state.incidents[INCIDENT]
    desk = FileDesk(folder)
    desk.write_note(small_run.state, incident)
    desk.close()
    written = note_text(folder, small_run.state, incident)
    note_path(folder, INCIDENT).unlink()
    assert note_text(folder, small_run.state, incident) == written
    plot_path(folder, INCIDENT).unlink()
    assert "![" not in note_text(folder, small_run.state, incident)


def test_where_there_are_no_numbers_there_is_no_plot(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run", nodes=2, spares=1, slots=2)
    run.start("the first attempt")
    run.crash(rank=1)
    with ApiServer(run.folder) as server:
        answer = plot_of(server)
        assert (answer.status_code, answer.json()["code"]) == (404, "no-plot")
        assert "![" not in server.client(Role.VIEWER).note(INCIDENT)
    run.close()


def test_a_request_of_the_policy_is_found_by_its_name_with_a_slash(
    small_run: SyntheticRun,
) -> None:
    small_run.refuse(ev.InterventionRequested("1/9", "save-interval", "policy", "", 50.0))
    with ApiServer(small_run.folder) as server:
        told = get(server, "/v1/interventions/1/9")
        described(server, "Intervention").validate(told)
        assert (told["stage"], told["detail"]) == ("rejected", "not now")
        assert get(server, "/v1/interventions") == [told]


def test_metrics_are_those_of_the_run(server: ApiServer, night: SyntheticRun) -> None:
    families = {f.name: f for f in text_string_to_metric_families(server.client().metrics())}
    assert families["midwatch_step"].samples[0].value == night.state.step


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/v1/incidents/inc-9999", "no-such-incident"),
        ("/v1/incidents/..%2f..%2fjournal/note", "no-such-address"),
        ("/v1/incidents/%2e%2e/note", "no-such-incident"),
        ("/v1/incidents/inc-9999/plot", "no-such-incident"),
        ("/v1/incidents/%2e%2e/plot", "no-such-incident"),
        ("/v1/interventions/nobody", "no-such-intervention"),
        ("/v1/nothing", "no-such-address"),
    ],
)
def test_what_is_not_there_is_said_to_be_missing(server: ApiServer, path: str, code: str) -> None:
    with server.http() as http:
        answer = http.get(path)
    assert (answer.status_code, answer.json()["code"]) == (404, code)


@pytest.mark.parametrize(
    "query", ["after=-1", "after=x", "limit=0", "limit=1e3", f"after={10**40}", "afer=1"]
)
def test_a_value_that_is_not_allowed_is_refused(server: ApiServer, query: str) -> None:
    with server.http() as http:
        answer = http.get(f"/v1/events?{query}")
    assert (answer.status_code, answer.json()["code"]) == (422, "value-invalid")
    assert query.partition("=")[0] in answer.json()["message"]


def test_the_journal_grows_and_the_next_answer_knows(small_run: SyntheticRun) -> None:
    with ApiServer(small_run.folder) as server:
        client = server.client()
        assert client.state().step == 12
        small_run.train(14)
        assert client.state() == small_run.state


def test_a_journal_that_cannot_be_read_is_said_and_the_server_goes_on(
    small_run: SyntheticRun,
) -> None:
    (segment,) = (small_run.folder / "journal").glob("*.jsonl")
    sound = segment.read_bytes()
    with ApiServer(small_run.folder) as server, server.http() as http:
        segment.write_bytes(re.sub(rb"node-joined", rb"node-jained", sound, count=1))
        answer = http.get("/v1/state")
        assert (answer.status_code, answer.json()["code"]) == (503, "journal-corrupt")
        assert http.get("/healthz").json() == {"alive": True}
        segment.write_bytes(sound)
        assert msgspec.json.decode(http.get("/v1/state").content, type=RunState, strict=False).step


def test_no_question_about_such_a_journal_leaves_a_file_open(small_run: SyntheticRun) -> None:
    (segment,) = (small_run.folder / "journal").glob("*.jsonl")
    segment.write_bytes(re.sub(rb"node-joined", rb"node-jained", segment.read_bytes(), count=1))
    before = num_open(segment)
    view = RunView(small_run.folder, Bounds())
    for ask in (view.state, lambda: load_state(small_run.folder)):
        with pytest.raises(JournalCorrupt):
            ask()
        assert num_open(segment) == before


def num_open(path: Path) -> int:
    """Return how many descriptors of this process are of a file."""
    opened = (link for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
    return sum(link.exists() and link.samefile(path) for link in opened)


def test_the_description_is_whole_and_names_every_address(server: ApiServer) -> None:
    document = get(server, "/openapi.json")
    text = json.dumps(document)
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    assert names <= set(document["components"]["schemas"])
    for name, schema in document["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert re.fullmatch(r"\w+", name)
    assert set(document["paths"]) == {
        "/healthz",
        "/metrics",
        "/v1/checkpoints/places",
        "/v1/events",
        "/v1/events/stream",
        "/v1/incidents",
        "/v1/incidents/{name}",
        "/v1/incidents/{name}/note",
        "/v1/incidents/{name}/plot",
        "/v1/incidents/{name}/remarks",
        "/v1/interventions",
        "/v1/interventions/{name}",
        "/v1/state",
        "/v1/status",
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["security"] == ([] if path == "/healthz" else [{"token": []}])
