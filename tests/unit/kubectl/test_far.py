"""Commands of midwatch run on a TrainingRun: found, forwarded to, and given the right token."""

from __future__ import annotations

import os
import signal
import urllib.request
from pathlib import Path

import pytest
from midwatch.operator.kubectl import main as plugin

from tests.support.kube_server import KubeServer
from tests.support.live_run import wait_until

from .conftest import Cli

Seen = list[dict[str, str]]


@pytest.fixture
def midwatch(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Stand in for the command itself: ask the API where the environment says, as it would."""
    seen: Seen = []

    def command() -> None:
        url, token = os.environ["MIDWATCH_URL"], os.environ["MIDWATCH_TOKEN"]
        assert not list(Path.cwd().iterdir())
        told = {"argv": " ".join(plugin.sys.argv), "by": os.environ["LOGNAME"], "url": url}
        seen.append(told | {"answer": _ask(url, token)})

    monkeypatch.setattr(plugin, "midwatch", command)
    return seen


def _ask(url: str, token: str) -> str:
    request = urllib.request.Request(
        f"{url}/v1/status", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(answer.read().decode())


def test_looking_takes_the_viewers_token(cli: Cli, cluster: KubeServer, midwatch: Seen) -> None:
    status, _, err = cli("status", "opt", "-o", "json")
    assert (status, err) == (0, "")
    assert midwatch[0]["argv"] == "midwatch status -o json"
    assert '"role": "viewer"' in midwatch[0]["answer"]
    assert midwatch[0]["by"] == "somebody"


def test_acting_takes_the_operators_token_and_the_clusters_name(
    cli: Cli, cluster: KubeServer, midwatch: Seen, tmp_path: Path
) -> None:
    words = ("--factor", "0.5", "--reason", "creeps", "-n", "training")
    status, _, err = cli("lr", "trun/opt", *words)
    assert (status, err) == (0, "")
    assert midwatch[0]["argv"] == "midwatch lr --factor 0.5 --reason creeps"
    assert '"role": "operator"' in midwatch[0]["answer"]
    assert midwatch[0]["by"] == "alice@example.com"
    call = (tmp_path / "forwards").read_text()
    assert "port-forward --address 127.0.0.1 service/opt-midwatch :8470 -n training" in call


def test_what_was_set_for_another_run_does_not_win(
    cli: Cli, cluster: KubeServer, midwatch: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIDWATCH_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("MIDWATCH_TOKEN", "another")
    monkeypatch.setenv("MIDWATCH_TOKEN_FILE", "/nowhere")
    assert cli("status", "opt")[0] == 0
    assert '"role": "viewer"' in midwatch[0]["answer"]
    assert "MIDWATCH_TOKEN_FILE" not in os.environ


def test_nothing_is_left_behind(
    cli: Cli, cluster: KubeServer, midwatch: Seen, tmp_path: Path
) -> None:
    cli("status", "opt")
    pid = int((tmp_path / "forwards").read_text().split()[0])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_viewer_watches_and_may_not_act(cli: Cli, cluster: KubeServer, midwatch: Seen) -> None:
    cluster.forbidden.add("opt-midwatch-operator")
    assert cli("watch", "opt")[0] == 0
    assert '"role": "viewer"' in midwatch[0]["answer"]
    status, _, err = cli("stop", "opt", "--reason", "maintenance")
    assert status == 1
    assert "[forbidden]" in err
    assert "opt-midwatch-operator" in err
    assert len(midwatch) == 1


def test_a_forwarding_that_ends_is_started_again_at_the_same_port(
    cli: Cli,
    cluster: KubeServer,
    midwatch: Seen,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    answers: list[str] = []

    def command() -> None:
        url, token = os.environ["MIDWATCH_URL"], os.environ["MIDWATCH_TOKEN"]
        answers.append(_ask(url, token))
        os.kill(int((tmp_path / "forwards").read_text().split()[0]), signal.SIGKILL)

        def answers_again() -> bool:
            try:
                answers.append(_ask(url, token))
            except OSError:
                return False
            return True

        wait_until(
            lambda: len((tmp_path / "forwards").read_text().splitlines()) == 2 and answers_again(),
            "the port never led to the run again",
        )

    monkeypatch.setattr(plugin, "midwatch", command)
    assert cli("status", "opt")[0] == 0
    assert answers[0] == answers[1]


def test_a_forwarding_that_never_comes_up(
    cli: Cli, cluster: KubeServer, midwatch: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELAY_FAILS", "error: pods is forbidden: cannot create portforward")
    status, _, err = cli("status", "opt")
    assert status == 1
    assert "[forward-failed]" in err
    assert "cannot create portforward" in err
    assert not midwatch


def test_a_run_that_serves_nothing_says_why(cli: Cli, cluster: KubeServer, midwatch: Seen) -> None:
    waiting = {
        "type": "Ready",
        "status": "False",
        "reason": "WaitingForNodes",
        "message": "120 of 124 nodes are there.",
    }
    cluster.put("trainingruns", "training", "late", status={"conditions": [waiting]})
    cluster.put("trainingruns", "training", "new")
    status, _, err = cli("status", "late")
    assert status == 1
    assert "Ready is False: WaitingForNodes, 120 of 124 nodes are there." in err
    assert "the operator has not looked at it yet" in cli("status", "new")[2]


def test_a_run_that_is_not_there(cli: Cli, cluster: KubeServer, midwatch: Seen) -> None:
    status, _, err = cli("status", "nobody")
    assert (status, "[no-such-object]" in err) == (3, True), err
    cluster.has_kinds = False
    cluster.forbidden.clear()
    status, _, err = cli("status", "opt", "--cache-dir", os.environ["HOME"] + "/fresh")
    assert (status, "[midwatch-not-installed]" in err) == (3, True), err


def test_a_relative_kubeconfig_is_found(
    cli: Cli, cluster: KubeServer, midwatch: Seen, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", "kubeconfig")
    assert cli("status", "opt")[0] == 0
    assert midwatch
    assert Path.cwd() == tmp_path


def test_a_cluster_that_is_not_there(cli: Cli, cluster: KubeServer, midwatch: Seen) -> None:
    status, _, err = cli("status", "opt", "--server", "http://127.0.0.1:9")
    assert (status, "[kubernetes-unreachable]" in err) == (1, True), err


def test_a_secret_that_holds_no_token(cli: Cli, cluster: KubeServer, midwatch: Seen) -> None:
    cluster.put_secret("training", "opt-midwatch-viewer", wrong="x")
    status, _, err = cli("status", "opt")
    assert (status, "[secret-invalid]" in err) == (1, True), err


@pytest.mark.parametrize("words", [("lr",), ("lr", "--factor", "0.5"), ("no-such-command", "opt")])
def test_what_cannot_be_meant(
    cli: Cli, cluster: KubeServer, midwatch: Seen, words: tuple[str, ...]
) -> None:
    status, _, err = cli(*words)
    assert (status, "[usage]" in err) == (2, True), err
    assert not midwatch


def test_without_kubectl(
    cli: Cli, cluster: KubeServer, midwatch: Seen, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    status, _, err = cli("status", "opt")
    assert (status, "[kubectl-missing]" in err) == (1, True), err


def test_help_needs_no_cluster(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    status, out, _ = cli()
    assert status == 0
    assert "approve" in out
    assert "--factor" in cli("lr", "--help")[1]
