"""Training without a controller: under torchrun, through a kill, and from a bad spec."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from midwatch.checkpoints.manifest import MANIFEST_NAME, checkpoint_dir, read_manifest
from midwatch.logbook.errors import ConfigError
from midwatch.logbook.wire import Mesh
from midwatch.tests.support.crew import Crew, Nursery, starts_for
from midwatch.trainer.standalone import look_at, meeting_from_environment, read_spec

STEPS = 60
DEADLINE_S = 120.0


def write_spec(path: Path, trainer: dict[str, Any], mesh: Mesh) -> Path:
    spec = {
        "name": "alone",
        "run_dir": str(path.parent / "run"),
        "mesh": {"dp_shard": mesh.dp_shard, "tp": mesh.tp},
        "nodes": {"ranks_per_node": 2},
        "numeric": {"heal_steps": 20},
        "trainer": trainer,
    }
    path.write_text(yaml.safe_dump(spec))
    return path


def rank_processes(torchrun: int) -> dict[int, int]:
    """Return rank -> pid of the workers of a torchrun."""
    found = {}
    for task in Path(f"/proc/{torchrun}/task").iterdir():
        for child in (task / "children").read_text().split():
            environ = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            ranks = [int(item[5:]) for item in environ if item.startswith(b"RANK=")]
            found.update({rank: int(child) for rank in ranks})
    return found


def test_torchrun_restarts_it_and_the_result_is_that_of_an_undisturbed_run(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any]
) -> None:
    """The undisturbed run is forked from a warm process, so that both ways of birth agree too."""
    section = {**trainer, "steps": STEPS, "checkpoint": {"interval_steps": 5}}
    undisturbed = Crew(nursery, starts_for(tmp_path / "undisturbed", section, Mesh(2, 2)))
    undisturbed.watch()
    assert undisturbed.exit_codes() == [0, 0, 0, 0]

    spec = write_spec(tmp_path / "spec.yaml", section, Mesh(2, 2))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    options = ["--nproc-per-node=4", "--max-restarts=1", "-m", "midwatch.trainer.worker", str(spec)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with (tmp_path / "output").open("w+") as output:
        torchrun = subprocess.Popen(
            [*command, *options], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            first = checkpoint_dir(tmp_path / "run", "step-00000005.a0001") / MANIFEST_NAME
            deadline_s = time.monotonic() + DEADLINE_S
            while not first.exists():
                assert time.monotonic() < deadline_s
                assert torchrun.poll() is None, (tmp_path / "output").read_text()
                time.sleep(0.002)
            os.kill(rank_processes(torchrun.pid)[2], signal.SIGKILL)
            code = torchrun.wait(DEADLINE_S)
        finally:
            torchrun.kill()
            torchrun.wait()
        output.seek(0)
        said = output.read()
    assert code == 0, said
    assert said.count("starting afresh") == 1, said
    assert said.count("resumed at step") == 1, said
    assert f"finished at step {STEPS}" in said

    hashes = [
        [entry.sha256 for entry in read_manifest(checkpoint_dir(tmp_path / run, name)).files]
        for run, name in (
            ("undisturbed", f"step-{STEPS:08d}.a0001"),
            ("run", f"step-{STEPS:08d}.a0002"),
        )
    ]
    assert hashes[0] == hashes[1]


def test_one_rank_trains_without_torchrun(tmp_path: Path, trainer: dict[str, Any]) -> None:
    spec = write_spec(tmp_path / "spec.yaml", {**trainer, "steps": 5}, Mesh(1, 1))
    command = [sys.executable, "-m", "midwatch.trainer.worker", str(spec)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[0] == "starting afresh"
    assert lines[-1] == "finished at step 5"
    assert any(line.startswith("step 5/5 loss ") for line in lines)
    assert read_manifest(checkpoint_dir(tmp_path / "run", "step-00000005.a0001")).step == 5


def test_a_mesh_that_does_not_fit_the_job_is_refused(
    tmp_path: Path, trainer: dict[str, Any]
) -> None:
    spec = write_spec(tmp_path / "spec.yaml", trainer, Mesh(2, 2))
    command = [sys.executable, "-m", "midwatch.trainer.worker", str(spec)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert ended.returncode == 1
    assert "mesh-does-not-fit" in ended.stderr


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (None, "spec-missing"),
        ("name: [", "spec-invalid"),
        ("name: alone\ntrainer: {}\n", "spec-invalid"),
        ("name: alone\nmesh: {dp_shard: two}\ntrainer: {}\n", "spec-invalid"),
    ],
)
def test_a_bad_spec_has_a_code(tmp_path: Path, text: str | None, code: str) -> None:
    path = tmp_path / "spec.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_spec(path)
    assert caught.value.code == code


def test_restarts_of_torchrun_do_not_share_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    torchrun = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
        "RANK": "1",
        "WORLD_SIZE": "4",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    prefixes = []
    for count in ("0", "1"):
        for name, value in {**torchrun, "TORCHELASTIC_RESTART_COUNT": count}.items():
            monkeypatch.setenv(name, value)
        meeting = meeting_from_environment()
        assert meeting.is_served
        prefixes.append(meeting.prefix)
    assert prefixes[0] != prefixes[1]
    monkeypatch.delenv("MASTER_PORT")
    with pytest.raises(ConfigError) as caught:
        meeting_from_environment()
    assert caught.value.code == "environment-incomplete"


def test_candidates_are_committed_ones_of_the_newest_attempt_first(tmp_path: Path) -> None:
    for name in ("step-00000010.a0001", "step-00000020.a0001", "step-00000015.a0002"):
        folder = checkpoint_dir(tmp_path, name)
        folder.mkdir(parents=True)
        (folder / MANIFEST_NAME).write_text("{}")
    checkpoint_dir(tmp_path, "step-00000030.a0003").mkdir()
    (tmp_path / "checkpoints" / "notes").mkdir()
    situation = look_at(tmp_path)
    assert situation.attempt == 4
    assert situation.checkpoints == (
        "step-00000015.a0002",
        "step-00000020.a0001",
        "step-00000010.a0001",
    )
    assert look_at(tmp_path / "new").checkpoints == ()
