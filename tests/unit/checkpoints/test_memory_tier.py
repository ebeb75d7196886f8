"""Real ranks keep their states in memory; nodes are lost, bits flipped, meshes changed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from midwatch.checkpoints.dcp import COPY_NOW, Saver, load_first
from midwatch.checkpoints.dcp_memory import MemorySource
from midwatch.checkpoints.memory import Generation
from midwatch.logbook.wire import Mesh

from tests.support.memory_nodes import ROOMY_BYTES, Nodes
from tests.support.ranks import run_ranks
from tests.unit.checkpoints import models

MESH = Mesh(2, 2)
STEPS = 5
PER_NODE = 2


def node_of(rank: int) -> str:
    return f"node-{rank // PER_NODE}"


def keep_states(rank: int, folder: str, steps: int, room: int = ROOMY_BYTES) -> list[Any]:
    """Train a pretended run of so many steps; return (levels seen, digest of the last state)."""
    nodes = Nodes(Path(folder), PER_NODE)
    saver = Saver(
        models.saver_config(folder, rank, MESH), memory=nodes.order(node_of(rank), room=room)
    )
    state = models.sharded_state(MESH, 1)
    levels = [saver.memory_level(1, 100)]
    saver.prepare(state)
    for step in range(1, steps + 1):
        for key, value in models.sharded_state(MESH, step).items():
            copy_into(state, key, value)
        if room == ROOMY_BYTES:
            outcome = saver.keep(state, models.header(step)).result(30.0)
            assert outcome.stage == "kept"
            assert saver.memory_step == step
        else:
            assert saver.save(state, models.header(step)).result(30.0).stage == "committed"
        levels.append(saver.memory_level(step + 1, 100))
    saver.close()
    return [levels, models.digest(state)]


def copy_into(state: dict[str, Any], key: str, value: Any) -> None:
    """Overwrite in place: the tensors of a trainer's state stay the same from step to step."""
    import torch
    from torch.distributed.tensor import DTensor

    if isinstance(value, dict):
        for name, inner in value.items():
            copy_into(state[key], name, inner)
    elif isinstance(value, DTensor):
        state[key].to_local().copy_(value.to_local())
    elif isinstance(value, torch.Tensor):
        state[key].copy_(value)
    else:
        state[key] = value


def resume(
    rank: int, folder: str, mesh: Mesh, placed: dict[int, str], oldest: int = 0, since: int = 0
) -> list[Any]:
    """Resume with ranks on the named nodes; return (id, tier, repaired, digest) or why not."""
    per_node = mesh.world_size // len(set(placed.values()))
    nodes = Nodes(Path(folder), per_node)
    order = nodes.order(placed[rank], since=since)
    saver = Saver(models.saver_config(folder, rank, mesh, attempt=2), memory=order)
    assert saver.memory is not None
    state = models.wipe(models.sharded_state(mesh, 99))
    found = saver.memory.find(state, oldest)
    if not isinstance(found, MemorySource):
        return [found]
    report = load_first([(found.manifest.id, found.opened)], state, rank=rank)
    digest = models.digest(state)
    assert saver.keep(state, models.header(50)).result(30.0).stage == "kept"
    return [report.checkpoint, report.tier, sorted(report.repaired), digest]


@pytest.fixture(scope="module")
def expected() -> dict[int, dict[str, str]]:
    return {step: run_ranks(state_digest, 4, step)[0] for step in (STEPS - 1, STEPS)}


def state_digest(rank: int, step: int) -> dict[str, str]:
    return models.digest(models.sharded_state(MESH, step))


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    results = run_ranks(keep_states, 4, str(folder), STEPS)
    assert all(levels[0] == 0 and set(levels[1:]) == {COPY_NOW} for levels, _ in results)
    return folder


@pytest.fixture
def kept(memory: Path, tmp_path: Path) -> Nodes:
    shutil.copytree(memory, tmp_path / "memory")
    return Nodes(tmp_path / "memory", PER_NODE)


SAME = {rank: node_of(rank) for rank in range(4)}
LAST = f"step-{STEPS:08d}.a0001"


def test_each_node_holds_its_own_states_and_its_neighbours(kept: Nodes) -> None:
    for node in ("node-0", "node-1"):
        last_two = {Generation(STEPS, 1), Generation(STEPS - 1, 1)}
        assert set(kept.held(node)) == {(g, rank) for g in last_two for rank in range(4)}


def test_the_same_ranks_resume_bit_for_bit(kept: Nodes, expected: dict) -> None:
    for result in run_ranks(resume, 4, str(kept.folder), MESH, SAME):
        assert result == [LAST, "memory", [], expected[STEPS]]


@pytest.mark.parametrize("lost", ["node-0", "node-1"])
def test_a_spare_gets_what_the_lost_node_held_from_its_neighbour(
    kept: Nodes, expected: dict, lost: str
) -> None:
    kept.lose(lost)
    placed = {rank: "spare" if node == lost else node for rank, node in SAME.items()}
    for result in run_ranks(resume, 4, str(kept.folder), MESH, placed):
        assert result == [LAST, "memory", [], expected[STEPS]]


def test_two_lost_nodes_are_more_than_memory_survives(kept: Nodes) -> None:
    kept.lose("node-0")
    kept.lose("node-1")
    placed = {rank: f"new-{rank // PER_NODE}" for rank in range(4)}
    assert run_ranks(resume, 4, str(kept.folder), MESH, placed) == [[""]] * 4


@pytest.mark.parametrize("mesh", [Mesh(1, 2), Mesh(4, 1), Mesh(1, 4), Mesh(2, 1), Mesh(1, 1)])
def test_any_mesh_resumes_from_memory(kept: Nodes, expected: dict, mesh: Mesh) -> None:
    """Fewer ranks than before: all of them on the nodes that are left."""
    count = mesh.world_size
    placed = {rank: node_of(rank) for rank in range(count)}
    if count == 1:
        # One rank looks after the buffers of both local ranks of its node.
        placed = {0: "node-0"}
    for result in run_ranks(resume, count, str(kept.folder), mesh, placed):
        assert result[:3] == [LAST, "memory", []]
        assert result[3] == expected[STEPS]


def test_a_damaged_own_state_is_replaced_by_the_neighbours_copy(
    kept: Nodes, expected: dict
) -> None:
    newest = Generation(STEPS, 1)
    (own,) = kept.held("node-0")[newest, 1]
    kept.flip(own)
    for result in run_ranks(resume, 4, str(kept.folder), MESH, SAME):
        checkpoint, tier, repaired, digest = result
        assert (checkpoint, tier, digest) == (LAST, "memory", expected[STEPS])
        assert [name for name, _ in repaired] == ["__1_0.distcp"]


def test_with_every_copy_damaged_the_generation_before_is_taken(
    kept: Nodes, expected: dict
) -> None:
    for node in ("node-0", "node-1"):
        (path,) = kept.held(node)[Generation(STEPS, 1), 1]
        kept.flip(path)
    for result in run_ranks(resume, 4, str(kept.folder), MESH, SAME):
        assert result[0] == f"step-{STEPS - 1:08d}.a0001"
        assert result[3] == expected[STEPS - 1]


def test_a_generation_that_one_rank_never_finished_is_not_taken(
    kept: Nodes, expected: dict
) -> None:
    for node in ("node-0", "node-1"):
        (path,) = kept.held(node)[Generation(STEPS, 1), 3]
        path.write_bytes(b"")
    for result in run_ranks(resume, 4, str(kept.folder), MESH, SAME):
        assert result[0] == f"step-{STEPS - 1:08d}.a0001"
        assert result[3] == expected[STEPS - 1]


def test_what_is_missing_is_said(kept: Nodes) -> None:
    for node in ("node-0", "node-1"):
        for (_, rank), paths in kept.held(node).items():
            if rank == 2:
                paths[0].write_bytes(b"")
    for (reason,) in run_ranks(resume, 4, str(kept.folder), MESH, SAME):
        assert "[memory-incomplete]" in reason
        assert f"ranks [2] after step {STEPS}" in reason


def test_a_newer_checkpoint_on_disk_goes_before_memory(kept: Nodes) -> None:
    results = run_ranks(resume, 4, str(kept.folder), MESH, SAME, STEPS + 1)
    assert results == [[""]] * 4


def test_states_of_attempts_before_the_fence_are_not_seen(kept: Nodes) -> None:
    assert run_ranks(resume, 4, str(kept.folder), MESH, SAME, 0, 2) == [[""]] * 4


def test_a_node_with_too_little_memory_does_without_and_still_saves(tmp_path: Path) -> None:
    for levels, _ in run_ranks(keep_states, 4, str(tmp_path), 2, 1000):
        assert levels == [0, 0, 0]
    assert (tmp_path / "checkpoints" / "step-00000002.a0001" / "manifest.json").is_file()
