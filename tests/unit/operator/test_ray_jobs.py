"""What Ray's job server answers, told apart: spoken to by Ray's own client over real HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from midwatch.logbook.errors import MidwatchError
from midwatch.operator.runtime.ray_jobs import JobOrder, JobServer, submit_job
from midwatch.tests.support.kube_run import refusal_of


class JobHandler(BaseHTTPRequestHandler):
    """A head that has every package already and takes no job. said: status and text, why."""

    said = (500, "")

    def do_GET(self) -> None:
        version = {"version": "4", "ray_version": "2.60.0", "ray_commit": "x", "session_name": "s"}
        self._answer(200, json.dumps(version))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(*self.said)

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def head() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (JobHandler,), {}))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("text", "code", "told"),
    [
        ("No available agent to submit job, please try again later.", "ray-not-ready", "no node"),
        (refusal_of("one"), "job-exists", "a job one already"),
        (refusal_of("one").replace("already exists", "is odd"), "job-refused", "one is odd"),
    ],
)
def test_a_refusal_is_told_by_what_it_says(
    head: ThreadingHTTPServer, tmp_path: Path, text: str, code: str, told: str
) -> None:
    head.RequestHandlerClass.said = (500, text)  # type: ignore[attr-defined]
    (tmp_path / "spec.yaml").write_text("name: x")
    order = JobOrder("one", "true", str(tmp_path))
    with pytest.raises(MidwatchError) as raised:
        submit_job(JobServer(f"http://127.0.0.1:{head.server_port}"), order)
    assert raised.value.code == code
    assert told in raised.value.message
