"""Secrets in the env of a spec reach whoever runs it, and nobody who reads the run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from midwatch.logbook import events as ev
from midwatch.logbook.fold import evolve
from midwatch.logbook.journal import Journal
from midwatch.logbook.state import RunState
from midwatch.operator.api.tokens import Role
from midwatch.operator.cli.main import main
from midwatch.operator.cli.runs import load_state
from midwatch.operator.spec_told import KEPT_BACK, spec_told, submission
from midwatch.tests.support.api_server import ApiServer
from midwatch.tests.support.builders import make_spec
from midwatch.tests.support.synthetic_run import SyntheticRun, write_night

SECRET = "hunter22-hunter22"
ENV = {"AWS_SECRET_ACCESS_KEY": SECRET, "https_proxy": f"http://ann:{SECRET}@proxy", "MODE": "fast"}


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SyntheticRun]:
    run = write_night(tmp_path_factory.mktemp("told"), nodes=9, spares=1, slots=2, env=ENV)
    yield run
    run.close()


@pytest.mark.parametrize(
    ("name", "value", "is_told"),
    [
        ("AWS_SECRET_ACCESS_KEY", SECRET, False),
        ("AWS_SESSION_TOKEN", SECRET, False),
        ("WANDB_API_KEY", SECRET, False),
        ("HF_TOKEN", SECRET, False),
        ("db_password", SECRET, False),
        ("MYSQL_PWD", SECRET, False),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/run/key.json", False),
        ("BASIC_AUTH", SECRET, False),
        ("SLACK_WEBHOOK_URL", SECRET, False),
        ("DATABASE", f"postgres://ann:{SECRET}@host/runs", False),
        ("EMPTY_TOKEN", "", True),
        ("NCCL_DEBUG", "INFO", True),
        ("AWS_REGION", "us-east-1", True),
        ("HTTPS_PROXY", "http://proxy:3128", True),
    ],
)
def test_a_value_is_told_unless_it_looks_like_a_secret(
    name: str, value: str, is_told: bool
) -> None:
    told = spec_told(make_spec(env={name: value}))
    assert told["env"] == {name: value if is_told else KEPT_BACK}


def test_nothing_of_a_secret_is_in_what_is_told_of_a_spec() -> None:
    one, other = (
        submission(make_spec(env={"API_KEY": key}), midwatch_version="", by="ann")
        for key in (SECRET, "another")
    )
    assert one == other, "a digest that follows the value lets the value be guessed"
    plain = submission(make_spec(env={"MODE": "fast"}), midwatch_version="", by="ann")
    assert plain.digest != one.digest


def test_a_spec_is_recognised_in_the_journal_that_tells_of_it(tmp_path: Path) -> None:
    spec = make_spec(env=ENV)
    with Journal[ev.Event](tmp_path / "journal", ev.Event) as journal:
        journal.append([(1.0, 0, submission(spec, midwatch_version="", by="ann"))], sync=True)
    state = RunState()
    with Journal[ev.Event](tmp_path / "journal", ev.Event) as journal:
        for record in journal.records():
            state = evolve(state, record.event, seq=record.seq, time_s=record.time_s)
    assert state.spec == spec_told(make_spec(env=ENV))
    assert state.spec != spec_told(make_spec(env=ENV | {"MODE": "slow"}))


@pytest.mark.parametrize(
    "words",
    [
        ["journal", "-o", "json"],
        ["status", "-o", "json"],
        ["notes"],
        ["metrics"],
        ["report"],
        ["detectors", "-o", "json"],
        ["checkpoints", "list", "-o", "json"],
    ],
)
def test_no_command_tells_a_secret(
    night: SyntheticRun,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    command = 2 if words[0] == "checkpoints" else 1
    argv = ["midwatch", *words[:command], str(night.folder), *words[command:]]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capfd.readouterr()
    assert not end.value.code
    assert out
    assert SECRET not in out + err


def test_the_api_tells_no_secret(night: SyntheticRun) -> None:
    with ApiServer(night.folder) as server, server.http(Role.VIEWER) as http:
        for path in ("status", "state", "events?limit=5000", "incidents"):
            answer = http.get(f"/v1/{path}")
            assert answer.status_code == 200
            assert SECRET not in answer.text
        assert KEPT_BACK in http.get("/v1/state").text


def test_the_folder_of_a_run_holds_no_secret(night: SyntheticRun) -> None:
    assert load_state(night.folder).spec["env"]["MODE"] == "fast"
    files = [path for path in night.folder.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
