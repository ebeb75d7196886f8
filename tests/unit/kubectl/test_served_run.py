"""A run that is really served, read through kubectl midwatch from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.kube_server import KubeServer
from tests.support.synthetic_run import write_night

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
            yield {"url": said["url"], **tokens}
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
    assert done.returncode == 1
    assert "token" in done.stderr
    assert "of-an-older-run" not in done.stderr
