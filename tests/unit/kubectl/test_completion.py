"""What kubectl's completion is told, and that kubectl itself understands it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from midwatch.operator.kubectl.complete import DEFAULT, NO_FILES, complete

from tests.support.kube_server import KubeServer

from .conftest import BIN


def _words(candidates: list[str]) -> list[str]:
    return [line.partition("\t")[0] for line in candidates]


def test_commands_by_their_start(cluster: KubeServer) -> None:
    candidates, directive = complete(["st"])
    assert (_words(candidates), directive) == (["status", "stop"], NO_FILES)
    assert "watch" in _words(complete([])[0])


def test_runs_and_what_waits_for_approval(cluster: KubeServer) -> None:
    cluster.put("trainingruns", "training", "bloom")
    cluster.put("trainingruns", "elsewhere", "far")
    cluster.put("interventions", "training", "opt-stop-1")
    assert _words(complete(["status", ""])[0]) == ["opt", "bloom"]
    assert _words(complete(["status", "-n", "elsewhere", ""])[0]) == ["far"]
    assert _words(complete(["lr", "o"])[0]) == ["opt"]
    assert _words(complete(["approve", ""])[0]) == ["opt-stop-1"]


def test_options_and_namespaces(cluster: KubeServer) -> None:
    cluster.put("namespaces", "", "training")
    assert "--factor" in complete(["lr", "opt", "--f"])[0]
    assert complete(["status", "-n", "tr"]) == (["training"], NO_FILES)
    assert complete(["status", "--kubeconfig", ""]) == ([], DEFAULT)
    assert complete(["no-such-command", "opt", "--"]) == ([], NO_FILES)


def test_a_cluster_that_is_away_completes_nothing(
    cluster: KubeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    assert complete(["status", ""]) == ([], NO_FILES)


def test_kubectl_finds_the_plugin_and_its_completion(cluster: KubeServer, tmp_path: Path) -> None:
    env = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}

    def kubectl(*words: str) -> str:
        done = subprocess.run(
            [BIN / "kubectl", *words], env=env, capture_output=True, text=True, check=True
        )
        return done.stdout

    assert "kubectl-midwatch" in kubectl("plugin", "list", "--name-only")
    assert "opt\n:4\n" in kubectl("__complete", "midwatch", "status", "o")
    assert "Usage: kubectl midwatch" in kubectl("midwatch", "--help")
