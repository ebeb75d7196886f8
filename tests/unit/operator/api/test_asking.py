"""What callers ask for lands on the desk once, signed, and says what has become of it."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.decisions import Decision
from midwatch.operator.api.intake import InterventionAsked
from midwatch.operator.api.tokens import Role
from midwatch.operator.cli.runs import load_state
from midwatch.operator.cli.steer import plan_request
from midwatch.operator.desk import FileDesk
from midwatch.operator.k8s.observed import RunSight
from midwatch.operator.k8s.run_api import Remote, see_run
from midwatch.tests.support.api_server import ApiServer
from midwatch.tests.support.synthetic_run import SyntheticRun

ASKED = {"id": "ask-1", "action": "lr-factor", "value": 0.5, "reason": "grad norm creeps"}


def post(server: ApiServer, path: str, body: Any, **options: Any) -> httpx.Response:
    with server.http(options.pop("role", Role.OPERATOR)) as http:
        return http.post(path, json=body, **options)


def ask(server: ApiServer, **changes: Any) -> httpx.Response:
    return post(server, "/v1/interventions", {**ASKED, **changes})


def taken(run: SyntheticRun) -> list[ev.Event]:
    """Return what a controller would find on the desk, and let it be journaled."""
    desk = FileDesk(run.folder)
    found = list(desk.requests())
    run.tell(*found)
    desk.settled()
    desk.close()
    return found


def test_a_request_is_followed_from_the_desk_through_the_journal(small_run: SyntheticRun) -> None:
    with ApiServer(small_run.folder) as server:
        answer = ask(server, by="ann", expect_attempt=1)
        assert answer.status_code == 202
        assert answer.json() == {"id": "ask-1", "stage": "requested"}
        client = server.client(Role.VIEWER)
        known = client.intervention("ask-1")
        assert known is not None
        assert (known.stage, known.request.by) == ("requested", "ann via api:operator")
        (request,) = taken(small_run)
        assert request == known.request
        assert isinstance(request, ev.InterventionRequested)
        assert (request.action, request.value, request.expect_attempt) == ("lr-factor", 0.5, 1)
        small_run.decide(d.RejectIntervention("ask-1"), "out of bounds")
        known = client.intervention("ask-1")
        assert known is not None
        assert (known.stage, known.detail) == ("rejected", "out of bounds")


def test_the_kubernetes_operator_sees_what_no_controller_has_taken_yet(
    small_run: SyntheticRun,
) -> None:
    async def look(server: ApiServer) -> RunSight:
        async with httpx.AsyncClient(trust_env=False) as http:
            return await see_run(Remote(http, server.endpoint.url, server.token(Role.OPERATOR)))

    with ApiServer(small_run.folder) as server:
        assert ask(server).status_code == 202
        before = asyncio.run(look(server))
        assert list(before.waiting) == ["ask-1"]
        assert before.interventions["ask-1"]["stage"] == "requested"
        taken(small_run)
        after = asyncio.run(look(server))
        assert not after.waiting
        assert after.interventions["ask-1"]["request"]["action"] == "lr-factor"


def test_the_same_request_is_made_once_however_often_it_is_sent(small_run: SyntheticRun) -> None:
    with ApiServer(small_run.folder) as server:
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda _: ask(server), range(16)))
        assert {answer.status_code for answer in answers} == {202}
        assert len(taken(small_run)) == 1
        assert ask(server).json() == {"id": "ask-1", "stage": "requested"}
        small_run.decide(d.RejectIntervention("ask-1"), "not now")
        assert ask(server).json() == {"id": "ask-1", "stage": "rejected"}
        assert not taken(small_run)
        for other in ({"value": 0.6}, {"by": "bob"}):
            answer = ask(server, **other)
            assert (answer.status_code, answer.json()["code"]) == (409, "intervention-id-taken")


def test_a_request_without_an_id_gets_one_of_its_own(small_run: SyntheticRun) -> None:
    with ApiServer(small_run.folder) as server:
        names = {ask(server, id=None).json()["id"] for _ in range(2)}
        assert len(names) == 2
        assert {request.id for request in taken(small_run)} == names  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("claimed", "recorded"),
    [
        (None, "api:operator"),
        ("ann", "ann via api:operator"),
        ("policy", "policy via api:operator"),
        ("ann via api:operator\n\x1b[2J", "ann via api:operator [2J via api:operator"),
        ("  ", "api:operator"),
    ],
)
def test_nobody_signs_for_anybody_else(
    server: ApiServer, night: SyntheticRun, claimed: str | None, recorded: str
) -> None:
    body = {"action": "lr-factor", "value": 0.5, "reason": "x", "by": claimed}
    name = post(server, "/v1/interventions", body).json()["id"]
    known = server.client().intervention(name)
    assert known is not None
    assert known.request.by == recorded


def test_a_dry_run_tells_the_decision_of_the_policy_and_changes_nothing(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run", nodes=2, spares=1, slots=2)
    # The policy looks at the clock, too: a run that was silent for years is restarted first.
    run.now_s = time.time() - 300.0
    run.start("the first attempt")
    run.train(5)
    with ApiServer(run.folder) as server:
        for body, kind in (
            ({"action": "lr-factor", "value": 0.5}, "send-command"),
            ({"action": "lr-factor", "value": 0.5, "expect_attempt": 77}, "reject-intervention"),
            ({"action": "quarantine", "target": "n001"}, "quarantine-node"),
            ({"action": "dance"}, "reject-intervention"),
        ):
            body |= {"reason": "x", "by": "ann"}
            answer = post(server, "/v1/interventions", body, params={"dry_run": "true"})
            assert answer.status_code == 200
            (told,) = msgspec.json.decode(answer.content, type=list[Decision])
            request = ev.InterventionRequested(**{**body, "id": "x", "by": "ann via api:operator"})
            (planned,) = plan_request(load_state(run.folder), request, time.time())
            assert answer.json()[0]["action"]["type"] == kind
            assert (told.reason, told.id) == (planned.reason, planned.id)
        assert not list((run.folder / "requests").iterdir())
    run.close()


def test_who_asks_is_told_what_somebody_else_did_to_the_same_thing(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run", nodes=2, spares=1, slots=2)
    run.now_s = time.time() - 300.0
    run.start("the first attempt")
    run.train(3)
    seen = run.state.seq
    run.steer("ann-1", "lr-factor", 0.5)
    with ApiServer(run.folder) as server:
        params = {"dry_run": "true"}
        dry = {"action": "lr-factor", "value": 0.5, "reason": "x"}
        (told,) = post(server, "/v1/interventions", dry, params=params).json()
        assert "lr was changed by ann" in dict(told["evidence"])["just before"]
        # The number of what its author has seen is what protects.
        stale = {**dry, "seen_seq": seen}
        (refused,) = post(server, "/v1/interventions", stale, params=params).json()
        assert refused["reason"].startswith("conflict: lr was changed by ann")
        touched = ask(server).json()["touched"]
        assert touched == {"lr": msgspec.to_builtins(run.state.touched["lr"])}
        assert "touched" not in ask(server, id="ask-2", action="grad-clip").json()
        assert server.client().post(ev.InterventionRequested("a-3", "lr", "x", "x", 1e-4)).touched
    run.close()


def test_a_misspelt_dry_run_changes_nothing(server: ApiServer) -> None:
    for params in ({"dryrun": "true"}, {"dry_run": "treu"}):
        answer = post(server, "/v1/interventions", {**ASKED, "id": "misspelt"}, params=params)
        assert (answer.status_code, answer.json()["code"]) == (422, "value-invalid")
    assert server.client().intervention("misspelt") is None


def test_every_field_of_a_request_can_be_given(server: ApiServer) -> None:
    own = {field.name for field in msgspec.structs.fields(ev.InterventionRequested)}
    assert {field.name for field in msgspec.structs.fields(InterventionAsked)} == own
    with server.http(None) as http:
        schema = http.get("/openapi.json").json()["components"]["schemas"]["InterventionAsked"]
    assert set(schema["properties"]) == own
    assert (schema["required"], schema["additionalProperties"]) == (["action", "reason"], False)


def test_a_viewer_may_read_and_nothing_else(server: ApiServer) -> None:
    for path in ("/v1/interventions", "/v1/incidents/inc-0001/remarks"):
        answer = post(server, path, ASKED, role=Role.VIEWER)
        assert (answer.status_code, answer.json()["code"]) == (403, "role-too-low")


@pytest.mark.parametrize(
    "change",
    [
        {"reason": ""},
        {"reason": " \n"},
        {"reason": "x" * 2001},
        {"action": "Lr"},
        {"action": None},
        {"value": "0.5"},
        {"value": None},
        {"id": "../../etc"},
        {"id": "a/b"},
        {"id": ""},
        {"by": ""},
        {"target": "x" * 501},
        {"expect_attempt": -1},
        {"expect_attempt": 2**60},
        {"reasons": "unknown"},
        {"kind": "note-added"},
    ],
)
def test_a_request_that_is_not_one_is_refused(server: ApiServer, change: dict[str, Any]) -> None:
    answer = ask(server, **change)
    assert (answer.status_code, answer.json()["code"]) == (422, "body-invalid")
    assert server.client().intervention(str(change.get("id", "ask-1"))) is None


def test_what_is_asked_of_a_run_that_is_over_is_settled_in_the_answer(
    small_run: SyntheticRun,
) -> None:
    small_run.crash(rank=1)
    small_run.decide(d.EndRun(stopped=True, step=12), "ann asked")
    small_run.decide(d.CloseIncident("inc-0001", "the run ended"), "nothing more will come")
    small_run.close()
    with ApiServer(small_run.folder) as server:
        answer = ask(server, id="ask-0", action="resume")
        assert (answer.status_code, answer.json()["code"]) == (409, "run-over")
        assert ask(server).json() == {"id": "ask-1", "stage": "rejected"}
        known = server.client().intervention("ask-1")
        assert known is not None
        assert known.detail == "the run is stopped"
        # Sent again, it is told of and not asked for a second time.
        for _ in range(2):
            answer = ask(server, id="ask-2", action="ack", target="inc-0001", by="ann")
            assert answer.json() == {"id": "ask-2", "stage": "applied"}
        state = load_state(small_run.folder)
        assert "ann via api:operator" in state.incidents["inc-0001"].acknowledged
        assert [k.request.id for k in state.interventions.values()] == ["ask-1", "ask-2"]
        answer = post(
            server, "/v1/incidents/inc-0001/remarks", {"text": " the cable ", "by": "ann"}
        )
        assert (answer.status_code, answer.json()) == (202, {"stage": "recorded"})
        (remark,) = server.client().state().incidents["inc-0001"].remarks
        assert (remark.by, remark.text) == ("ann via api:operator", "the cable")
        assert "> the cable" in server.client().note("inc-0001")


def test_a_remark_waits_on_the_desk_of_a_living_run(small_run: SyntheticRun) -> None:
    small_run.crash(rank=1)
    with ApiServer(small_run.folder) as server:
        path = "/v1/incidents/inc-0001/remarks"
        assert post(server, path, {"text": "the cable"}).json() == {"stage": "requested"}
        (note,) = taken(small_run)
        assert isinstance(note, ev.NoteAdded)
        assert (note.by, note.text, note.incident) == ("api:operator", "the cable", "inc-0001")
        # The same words again are another remark; under the same id they are the same.
        for name in (None, "mine", "mine"):
            post(server, path, {"text": "the cable", "id": name})
            taken(small_run)
        remarks = server.client().state().incidents["inc-0001"].remarks
        assert [remark.text for remark in remarks] == ["the cable"] * 3
        assert remarks[-1].id == "mine"
        for body in ({"text": ""}, {"text": " "}, {"text": "x" * 8001}, {"text": "x", "at": 1}):
            answer = post(server, path, body)
            assert (answer.status_code, answer.json()["code"]) == (422, "body-invalid")
        answer = post(server, path.replace("0001", "0002"), {"text": "x"})
        assert (answer.status_code, answer.json()["code"]) == (404, "no-such-incident")


def test_a_desk_that_no_controller_clears_fills_to_a_bound(small_run: SyntheticRun) -> None:
    with ApiServer(small_run.folder, waiting=3) as server:
        answers = [ask(server, id=f"ask-{n}") for n in range(5)]
        assert [answer.status_code for answer in answers] == [202, 202, 202, 429, 429]
        assert answers[-1].json()["code"] == "desk-full"
        assert answers[-1].headers["retry-after"] == "1"
        assert len(taken(small_run)) == 3
        assert ask(server, id="ask-3").status_code == 202


def test_tokens_are_readable_by_their_owner_alone_and_never_written_elsewhere(
    server: ApiServer, night: SyntheticRun
) -> None:
    tokens = [server.token(role) for role in Role]
    assert len(set(tokens)) == 2
    folder = night.folder / "api"
    assert folder.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.glob("*-token"))
    texts = [path for path in night.folder.rglob("*") if path.is_file() and path.parent != folder]
    assert Path(night.folder / "logs" / "api.log") in texts
    for path in texts:
        text = path.read_text(errors="replace")
        assert not any(token in text for token in tokens), path
