"""Workers end when they must: without their agent, without a peer, without state, with a reason."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from midwatch.checkpoints.manifest import checkpoint_dir
from midwatch.logbook.wire import CheckpointStage, Mesh, RankSample, Resumed
from midwatch.tests.support.crew import Crew, Nursery, starts_for
from midwatch.trainer.control import EXIT_AGENT_GONE

MESH = Mesh(dp_shard=2, tp=2)


def stepping(crew: Crew) -> bool:
    return len(crew.steps()) > 2


def test_workers_end_with_their_agent(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any]
) -> None:
    crew = Crew(nursery, starts_for(tmp_path, trainer, MESH))
    crew.watch(stepping)
    for worker in crew.workers:
        worker.abandon()
    # A rank may also see the end of a peer that was quicker.
    codes = crew.exit_codes()
    assert EXIT_AGENT_GONE in codes
    assert set(codes) <= {EXIT_AGENT_GONE, 1}


def test_a_worker_that_waits_for_its_peers_ends_with_its_agent_too(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any]
) -> None:
    alone = starts_for(tmp_path, trainer, MESH)[:1]
    crew = Crew(nursery, alone)
    crew.workers[0].abandon()
    assert crew.exit_codes() == [EXIT_AGENT_GONE]


def test_a_lost_peer_is_named_as_the_consequence_it_is(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any]
) -> None:
    crew = Crew(nursery, starts_for(tmp_path, trainer, MESH))
    crew.watch(stepping)
    os.kill(crew.workers[2].pid, signal.SIGKILL)
    crew.watch()
    assert crew.exit_codes() == [1, 1, -signal.SIGKILL, 1]
    assert {f.code for f in crew.failures()} == {"collective-failed"}
    assert sorted(f.rank for f in crew.failures()) == [0, 1, 3]


def test_training_does_not_wait_for_an_agent_that_does_not_read(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any]
) -> None:
    crew = Crew(nursery, starts_for(tmp_path, trainer, MESH, until_step=60))
    deadline = crew.deadline()
    while min(step for step, _ in crew.places()) < 60:
        deadline.check()
    crew.watch()
    assert crew.exit_codes() == [0, 0, 0, 0]
    assert [sample.step for sample in crew.steps()] == list(range(1, 61))
    assert len(crew.said(RankSample)) == 4 * 60


def test_stacks_are_written_on_request(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any], stack_file: Path
) -> None:
    crew = Crew(nursery, starts_for(tmp_path, trainer, MESH)[:1])
    deadline = crew.deadline()
    while crew.places()[0][1] < 1:
        deadline.check()
    os.kill(crew.workers[0].pid, signal.SIGUSR1)
    # The outermost frame of the main thread is written last.
    while "in <module>" not in stack_file.read_text():
        deadline.check()
    for place in ("worker.py", "control.py"):
        assert place in stack_file.read_text()


Damage = Callable[[Path], object]
DAMAGES: dict[str, Damage] = {
    "a byte flipped": lambda folder: flip_byte(next(folder.glob("__1_*.distcp"))),
    "a shard cut": lambda folder: os.truncate(next(folder.glob("__3_*.distcp")), 100),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
}


def flip_byte(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.fixture
def two_checkpoints(nursery: Nursery, tmp_path: Path, trainer: dict[str, Any]) -> list[str]:
    """Train six steps, save at 3 and 6; newest first."""
    saving = {**trainer, "checkpoint": {"interval_steps": 3}}
    crew = Crew(nursery, starts_for(tmp_path, saving, MESH, until_step=6))
    crew.watch()
    assert crew.exit_codes() == [0, 0, 0, 0]
    return crew.committed()[::-1]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_by_every_rank(
    nursery: Nursery,
    tmp_path: Path,
    trainer: dict[str, Any],
    two_checkpoints: list[str],
    damage: str,
) -> None:
    newest, older = two_checkpoints
    DAMAGES[damage](checkpoint_dir(tmp_path, newest))
    crew = Crew(
        nursery,
        starts_for(tmp_path, trainer, MESH, attempt=2, until_step=7, checkpoints=(newest, older)),
    )
    crew.watch()
    assert crew.exit_codes() == [0, 0, 0, 0]
    resumed: list[Resumed] = crew.said(Resumed)
    assert [(r.checkpoint, r.step) for r in resumed] == [(older, 3)] * 4
    assert all(len(r.passed_over) == 1 and r.passed_over[0][0] == newest for r in resumed)
    assert [sample.step for sample in crew.steps()] == [4, 5, 6, 7]


def test_without_any_loadable_checkpoint_nothing_is_trained(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any], two_checkpoints: list[str]
) -> None:
    for checkpoint, damage in zip(two_checkpoints, list(DAMAGES.values())[:2], strict=True):
        damage(checkpoint_dir(tmp_path, checkpoint))
    crew = Crew(
        nursery,
        starts_for(tmp_path, trainer, MESH, attempt=2, checkpoints=tuple(two_checkpoints)),
    )
    crew.watch()
    assert crew.exit_codes() == [1, 1, 1, 1]
    assert {f.code for f in crew.failures()} == {"no-usable-checkpoint"}
    assert crew.said(Resumed) == []
    assert crew.steps() == []


def test_a_run_does_not_end_as_finished_when_its_last_state_cannot_be_saved(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any]
) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    crew = Crew(nursery, starts_for(tmp_path, trainer, MESH, until_step=2))
    crew.watch()
    assert crew.exit_codes() == [1, 1, 1, 1]
    assert {f.code for f in crew.failures()} == {"final-save-failed"}
    stages: list[CheckpointStage] = crew.said(CheckpointStage)
    assert [stage.stage for stage in stages] == ["staged", "failed"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"data": {"dir": "/nowhere"}}, "corpus-missing"),
        ({"model": {"vocab": 300}}, "vocab-too-small"),
        ({"seq_len": 32, "micro_batch_size": 4096}, "corpus-too-small"),
        ({"global_batch_size": 12, "micro_batch_size": 4}, "mesh-does-not-fit"),
        ({"precision": "fp8"}, "trainer-section-invalid"),
    ],
)
def test_what_cannot_work_is_refused_with_a_code(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any], change: dict[str, Any], code: str
) -> None:
    crew = Crew(nursery, starts_for(tmp_path, {**trainer, **change}, MESH))
    crew.watch()
    assert crew.exit_codes() == [1, 1, 1, 1]
    assert {f.code for f in crew.failures()} == {code}
    assert sorted(f.rank for f in crew.failures()) == [0, 1, 2, 3]


def test_a_port_that_is_taken_is_named(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any]
) -> None:
    crew = Crew(nursery, starts_for(tmp_path, trainer, Mesh(1, 1)), share_listener=False)
    crew.watch()
    assert crew.exit_codes() == [1]
    assert [f.code for f in crew.failures()] == ["port-taken"]
