"""A run that is really served, read through kubectl midwatch from end to end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from midwatch.operator.api.client import Access, ApiClient
from midwatch.operator.cli.main import main as midwatch
from midwatch.operator.kubectl.commands import ACTS, FAR

from tests.support.kube_server import KubeServer
from tests.support.synthetic_run import write_night

from .conftest import Cli

# Words of a command, and what of the request it lays on the desk of the run.
STEERING: tuple[tuple[tuple[str, ...], dict[str, object]], ...] = (
    (
        ("lr", "opt", "--to", "2e-5", "--at-step", "500", "--for-steps", "9", "--expect", "1e-4"),
        {"action": "lr", "value": 2e-5, "at_step": 500, "for_steps": 9, "expect_value": 1e-4},
    ),
    (("lr", "opt", "--factor", "0.5"), {"action": "lr-factor", "value": 0.5}),
    (("clip", "opt", "--to", "0.7"), {"action": "grad-clip", "value": 0.7}),
    (("scaler", "opt", "--floor", "8"), {"action": "scaler", "values": {"loss-scale-floor": 8.0}}),
    (("optimizer", "opt", "--beta2", "0.98"), {"action": "optimizer", "values": {"beta2": 0.98}}),
    (("skip", "opt", "--data-steps", "600:610"), {"action": "skip", "target": "600:610"}),
    (("checkpoint", "opt", "--at-step", "500"), {"action": "checkpoint", "at_step": 500}),
    (("rollback", "opt", "--to-step", "300"), {"action": "rollback", "value": 300.0}),
    (("pause", "opt", "--expect-attempt", "3"), {"action": "pause", "expect_attempt": 3}),
    (("resume", "opt"), {"action": "resume"}),
    (("stop", "opt"), {"action": "stop"}),
    (("quarantine", "opt", "n003"), {"action": "quarantine", "target": "n003"}),
    (("release", "opt", "n003"), {"action": "release", "target": "n003"}),
    (("ack", "opt", "inc-0002"), {"action": "ack", "target": "inc-0002"}),
    (("revert", "opt", "lr-1"), {"action": "revert", "target": "lr-1"}),
)

PYTHON = (sys.executable, "-m")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The address and the tokens of a run with two incidents behind it."""
    run = write_night(tmp_path_factory.mktemp("served") / "night", nodes=9, spares=1, slots=2)
    command = [*PYTHON, "midwatch.operator.cli.main", "serve", str(run.folder), "-o", "json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            said = json.loads(process.stdout.readline())
            tokens = {role: Path(path).read_text().strip() for role, path in said["tokens"].items()}
            yield {"url": said["url"], "folder": str(run.folder), **tokens}
        finally:
            process.terminate()
    run.close()


@pytest.fixture
def reachable(
    cluster: KubeServer, served: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> KubeServer:
    monkeypatch.setenv("RELAY_PORT", str(urlsplit(served["url"]).port))
    for role in ("viewer", "operator"):
        cluster.put_secret("training", f"opt-midwatch-{role}", token=served[role])
    return cluster


@pytest.fixture(autouse=True)
def clients(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close what a command leaves to the end of its process, which here is not the end."""
    made: list[ApiClient] = []
    begin = ApiClient.__init__

    def note(client: ApiClient, access: Access) -> None:
        begin(client, access)
        made.append(client)

    monkeypatch.setattr(ApiClient, "__init__", note)
    yield
    for client in made:
        client.close()


def _plugin(*words: str) -> subprocess.CompletedProcess[str]:
    command = [*PYTHON, "midwatch.operator.kubectl.main", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_status_journal_notes_and_the_logbook(reachable: KubeServer) -> None:
    done = _plugin("status", "opt", "-o", "json")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)["summary"]["incidents"]) == 2
    done = _plugin("journal", "opt", "--kind", "decision", "-o", "json")
    assert (done.returncode, done.stderr) == (0, "")
    assert {json.loads(line)["event"]["kind"] for line in done.stdout.splitlines()} == {"decision"}
    assert "inc-0001" in _plugin("notes", "opt").stdout
    done = _plugin("watch", "opt", "--once")
    assert (done.returncode, done.stderr) == (0, "")
    assert "inc-0002" in done.stdout


def test_a_token_that_the_run_does_not_know(reachable: KubeServer) -> None:
    reachable.put_secret("training", "opt-midwatch-viewer", token="of-an-older-run")
    done = _plugin("status", "opt")
    assert done.returncode == 4
    assert "token" in done.stderr
    assert "of-an-older-run" not in done.stderr


def _asked(folder: str) -> list[dict[str, object]]:
    """What lies on the desk of the run, oldest first."""
    return [json.loads(p.read_bytes()) for p in sorted(Path(folder, "requests").glob("*.json"))]


def test_every_steering_command_reaches_the_run(
    reachable: KubeServer, served: dict[str, str], cli: Cli
) -> None:
    assert {words[0] for words, _ in STEERING} == {n for n, roles in FAR.items() if roles == ACTS}
    for words, wanted in STEERING:
        before = len(_asked(served["folder"]))
        status, out, err = cli(*words, "--reason", "it creeps", "--timeout-s", "0")
        assert (status, err) == (0, ""), words
        *_, asked = _asked(served["folder"])
        assert len(_asked(served["folder"])) == before + 1
        assert {name: asked.get(name) for name in wanted} == wanted
        assert (asked["reason"], asked["by"]) == ("it creeps", "alice@example.com via api:operator")
        # What its author knew of goes along, so that a later change of somebody else is a conflict.
        assert isinstance(asked["seen_seq"], int)
        assert str(asked["id"]) in out


def test_a_change_is_tried_out_by_the_run(
    reachable: KubeServer, served: dict[str, str], cli: Cli
) -> None:
    before = _asked(served["folder"])
    words = ("--reason", "it creeps", "--dry-run")
    status, out, err = cli("lr", "opt", "--factor", "0.5", *words)
    assert (status, err) == (0, "")
    assert "would send lr-factor 0.5" in out
    _, out, _ = cli("lr", "opt", "--to", "1e-4", "--expect", "0.7", *words)
    assert "lr was expected to be 0.7" in out
    assert _asked(served["folder"]) == before


def test_who_may_only_look_changes_nothing(
    reachable: KubeServer, served: dict[str, str], cli: Cli
) -> None:
    reachable.put_secret("training", "opt-midwatch-operator", token=served["viewer"])
    before = _asked(served["folder"])
    for words, _ in STEERING:
        status, out, err = cli(*words, "--reason", "it creeps", "--timeout-s", "0")
        assert (status, out) == (4, ""), words
        assert "viewer" in err
        assert err.startswith("midwatch: ["), err
        assert err.count("midwatch: [") == 1
    assert _asked(served["folder"]) == before


def test_what_was_asked_of_a_run_is_listed_from_afar(
    reachable: KubeServer, served: dict[str, str], cli: Cli
) -> None:
    status, out, err = cli("interventions", "opt", "-o", "json")
    assert (status, err) == (0, "")
    http = {"MIDWATCH_URL": served["url"], "MIDWATCH_TOKEN": served["viewer"]}
    command = [*PYTHON, "midwatch.operator.cli.main", "interventions", "-o", "json"]
    done = subprocess.run(
        command, env={**os.environ, **http}, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == json.loads(out)


@pytest.mark.parametrize(
    "words",
    [
        ("checkpoints", "list"),
        ("checkpoints", "show", "step-00000350.a0002"),
        ("checkpoints", "verify", "step-00000350.a0002"),
        ("checkpoints", "export", "step-00000350.a0002", "out"),
        ("serve",),
    ],
)
def test_what_needs_the_folder_says_so_and_takes_no_local_run_for_it(
    words: tuple[str, ...],
    served: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    local = tmp_path / "runs" / "local"
    shutil.copytree(Path(served["folder"], "journal"), local / "journal")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIDWATCH_URL", served["url"])
    before = sorted(local.rglob("*"))
    monkeypatch.setattr("sys.argv", ["midwatch", *words])
    with pytest.raises(SystemExit) as end:
        midwatch()
    out, err = capfd.readouterr()
    assert (end.value.code, out) == (2, "")
    assert err.startswith("midwatch: [needs-folder]")
    assert served["url"] in err
    assert sorted(local.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("detectors", "--set", "spike=shadow"), {"action": "detector"}),
        (("checkpoints", "prune"), {"action": "prune"}),
        (
            ("checkpoints", "verify", "step-00000350.a0002", "--by-controller"),
            {"action": "verify", "target": "step-00000350.a0002"},
        ),
        (
            ("checkpoints", "pin", "step-00000350.a0002"),
            {"action": "pin", "target": "step-00000350.a0002"},
        ),
    ],
)
def test_the_rest_of_what_can_be_asked_goes_to_the_served_run_too(
    words: tuple[str, ...],
    wanted: dict[str, object],
    served: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MIDWATCH_URL", served["url"])
    monkeypatch.setenv("MIDWATCH_TOKEN", served["operator"])
    monkeypatch.setattr("sys.argv", ["midwatch", *words, "--reason", "why", "--timeout-s", "0"])
    with pytest.raises(SystemExit) as end:
        midwatch()
    assert end.value.code == 0
    asked = _asked(served["folder"])[-1]
    assert {name: asked.get(name) for name in wanted} == wanted
