"""A Ray cluster that is there already: joined by address, and given jobs from outside."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from midwatch.logbook.errors import Retryable
from midwatch.logbook.events import InterventionRequested
from midwatch.logbook.state import Status
from midwatch.operator.cli.runs import load_state
from midwatch.operator.desk import post_request
from midwatch.operator.runtime.ray_jobs import JobOrder, JobServer, follow_job, submit_job
from midwatch.operator.spec_file import spec_data

from tests.support.cut_line import CutLine
from tests.support.live_run import build_corpus, nano_spec, wait_until

pytestmark = pytest.mark.chaos
BIN = Path(sys.executable).parent


class Head(NamedTuple):
    """A head node of a cluster in processes of its own. env holds the token."""

    gcs: str
    dashboard: str
    env: dict[str, str]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    gcs, dashboard = _free_port(), _free_port()
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    env["PATH"] = f"{BIN}:{env['PATH']}"
    command = [
        *(str(BIN / "ray"), "start", "--head", "--block", f"--port={gcs}", "--num-cpus=4"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--disable-usage-stats"),
        # The usual port of the agent that takes jobs may be another cluster's.
        f"--dashboard-agent-listen-port={_free_port()}",
    ]
    log = (tmp_path_factory.mktemp("head") / "log").open("wb")
    # A session of its own, so that exactly these processes can be ended.
    process = subprocess.Popen(
        command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        yield Head(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", env)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_corpus(tmp_path_factory.mktemp("data"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _spec_file(
    name: str, folder: Path, corpus: Path, *, steps: int = 12, **changes: object
) -> Path:
    spec = nano_spec(name, folder / "run", corpus, trainer={"steps": steps}, **changes)
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec_data(spec)))
    return path


def _run(head: Head, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=head.env, capture_output=True, text=True, check=False, timeout=150
    )


def test_ray_job_submit(head: Head, corpus: Path, tmp_path: Path) -> None:
    spec = _spec_file("as-a-job", tmp_path, corpus)
    submit = [str(BIN / "ray"), "job", "submit", "--address", head.dashboard, "--"]
    last: list[subprocess.CompletedProcess[str]] = []

    def accepted() -> bool:
        # The dashboard answers before its agent can take jobs.
        last[:] = [_run(head, *submit, str(BIN / "midwatch"), "run", str(spec))]
        early = ("No available agent", "Failed to connect", "not found at")
        return not any(sign in last[0].stdout + last[0].stderr for sign in early)

    wait_until(accepted, "the cluster never took a job", deadline_s=120.0)
    assert last[0].returncode == 0, last[0].stdout + last[0].stderr
    assert "completed at step 12" in last[0].stdout
    assert load_state(tmp_path / "run").status is Status.COMPLETED


def test_a_run_leaves_the_cluster_as_it_was_whether_or_not_anybody_is_there(
    head: Head, corpus: Path, tmp_path: Path
) -> None:
    nodes = {"ranks_per_node": 2, "spares": 0, "preflight": "off", "spread": "strict"}
    one_node = {"mesh": {"dp_shard": 2, "tp": 1}, "nodes": nodes}
    run = tmp_path / "run"

    def submit(steps: int, *options: str) -> bool:
        spec = _spec_file("by-address", tmp_path, corpus, steps=steps, **one_node)
        command = [str(BIN / "midwatch"), "run", str(spec), "--address", head.gcs, *options]
        done = _run(head, *command)
        # The head may be still coming up.
        assert done.returncode == 0 or "ray-unreachable" in done.stderr, done.stderr
        return done.returncode == 0

    def listed(what: str, state: str) -> str:
        command = [str(BIN / "ray"), "list", what, "--address", head.dashboard]
        return _run(head, *command, "--filter", f"state={state}", "--detail").stdout

    # Its controller alone stays, to be asked: no agent, which would hold devices, and no place.
    wait_until(lambda: submit(100_000, "--detach"), "the cluster never came up", deadline_s=120.0)
    wait_until(lambda: load_state(run).step >= 1, "it never trained", deadline_s=120.0)
    stop = InterventionRequested("stop-1", "stop", "ann", "enough")
    post_request(run, stop, time_s=time.time())
    wait_until(lambda: load_state(run).is_at_rest, "it never stopped", deadline_s=120.0)
    wait_until(lambda: "/agent/" not in listed("actors", "ALIVE"), "its agents stay")
    assert "by-address/nodes" not in listed("placement-groups", "CREATED")
    # What is there of it does not keep it from being taken up, and in the end nothing is.
    step = load_state(run).step
    assert submit(step + 5)
    state = load_state(run)
    assert (state.status, state.step) == (Status.COMPLETED, step + 5)
    assert "by-address" not in listed("actors", "ALIVE")
    assert "by-address/nodes" not in listed("placement-groups", "CREATED")


def test_a_wrong_token_is_one_clear_error(head: Head, corpus: Path, tmp_path: Path) -> None:
    spec = _spec_file("no-token", tmp_path, corpus)
    env = {**head.env, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    done = _run(
        head._replace(env=env), str(BIN / "midwatch"), "run", str(spec), "--address", head.gcs
    )
    assert done.returncode == 1
    assert "ray-unreachable" in done.stderr
    assert "token" in done.stderr


def _submit(head: Head, spec: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return _run(
        head, str(BIN / "midwatch"), "submit", str(spec), "--address", head.dashboard, *options
    )


def test_midwatch_submit_follows_the_run_to_its_end(
    head: Head, corpus: Path, tmp_path: Path
) -> None:
    spec = _spec_file("from-outside", tmp_path, corpus)
    # Ray's own client would go there instead of to --address.
    elsewhere = head._replace(env={**head.env, "RAY_ADDRESS": f"http://127.0.0.1:{_free_port()}"})
    token = tmp_path / "token"
    token.write_text(head.env["RAY_AUTH_TOKEN"] + "\n")
    elsewhere.env.pop("RAY_AUTH_TOKEN")
    last: list[subprocess.CompletedProcess[str]] = []

    def accepted() -> bool:
        last[:] = [_submit(elsewhere, spec, "--id", "one", "-f", "--token-file", str(token))]
        return "ray-unreachable" not in last[0].stderr

    wait_until(accepted, "the cluster never took a job", deadline_s=120.0)
    assert last[0].returncode == 0, last[0].stdout + last[0].stderr
    assert "completed at step 12" in last[0].stdout
    assert load_state(tmp_path / "run").status is Status.COMPLETED
    again = _submit(head, spec, "--id", "one")
    assert (again.returncode, "job-exists" in again.stderr) == (2, True), again.stderr


def test_a_lost_connection_is_made_again_and_nothing_is_shown_twice(
    head: Head, tmp_path: Path
) -> None:
    token = head.env["RAY_AUTH_TOKEN"]
    count = "import time; [print('count', n, flush=True) or time.sleep(0.3) for n in range(12)]"
    order = JobOrder("counts", f'python -c "{count}"', str(tmp_path))
    shown: list[str] = []

    def accepted() -> bool:
        try:
            return submit_job(JobServer(head.dashboard, token), order) == "counts"
        except Retryable:
            return False

    wait_until(accepted, "the cluster never took a job", deadline_s=120.0)
    with CutLine(int(head.dashboard.rpartition(":")[2])) as line:

        def show(text: str) -> None:
            shown.append(text)
            if len(shown) == 2:
                line.cut()

        outcome = follow_job(JobServer(line.url, token), "counts", show)
    assert outcome.is_success, outcome
    assert len(shown) > 2, "the line was never cut while there was more to come"
    lines = [line for line in "".join(shown).splitlines() if line.startswith("count")]
    assert lines == [f"count {n}" for n in range(12)]


def test_a_failed_job_is_told_as_one(head: Head, corpus: Path, tmp_path: Path) -> None:
    spec = _spec_file("unprepared", tmp_path, corpus)
    data = yaml.safe_load(spec.read_text())
    spec.write_text(yaml.safe_dump({**data, "prepare": ["false"]}))
    failed = _submit(head, spec, "-f", "-o", "json")
    assert failed.returncode == 1
    assert '"status":"FAILED"' in failed.stdout
    assert "prepare-failed" in failed.stderr
    assert "job-failed" in failed.stderr


@pytest.mark.parametrize(
    ("token", "told"),
    [("5a" * 32, "refuses the token"), ("", "asks for a token")],
    ids=["wrong", "none"],
)
def test_a_wrong_token_and_none_are_one_clear_error(
    head: Head, corpus: Path, tmp_path: Path, token: str, told: str
) -> None:
    spec = _spec_file("wrong-token", tmp_path, corpus)
    env = {**head.env, "RAY_AUTH_TOKEN": token, "HOME": str(tmp_path)}
    done = _submit(head._replace(env=env), spec)
    assert done.returncode == 1
    assert done.stderr.count("midwatch:") == 1
    assert "ray-unauthorized" in done.stderr
    assert told in done.stderr
    assert not token or token not in done.stderr


def test_an_address_where_nobody_listens_is_one_clear_error(
    head: Head, corpus: Path, tmp_path: Path
) -> None:
    spec = _spec_file("nobody", tmp_path, corpus)
    nobody = head._replace(dashboard=f"http://127.0.0.1:{_free_port()}")
    done = _submit(nobody, spec)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "ray-unreachable" in done.stderr
