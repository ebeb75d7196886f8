"""The loop keeps its state in memory, and a new attempt goes on from there, bit for bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from midwatch.logbook.tiers import TierRefused
from midwatch.logbook.wire import Command, Hyper, LrChange, Mesh, Resumed, WorkerStart
from midwatch.tests.support.crew import Crew, Nursery, starts_for
from midwatch.tests.support.memory_nodes import Nodes
from msgspec.structs import replace

MESH = Mesh(dp_shard=2, tp=2)
STEPS = 24


def placed(
    starts: Iterable[WorkerStart], nodes: Nodes, every_steps: int | None = 1
) -> list[WorkerStart]:
    """Give each rank the buffers of its node; two ranks a node."""
    homes = {rank: nodes.order(f"node-{rank // 2}", every_steps=every_steps) for rank in range(4)}
    return [replace(start, local_rank=start.rank % 2, memory=homes[start.rank]) for start in starts]


def by_step(*crews: Crew) -> dict[int, float]:
    losses: dict[int, float] = {}
    for crew in crews:
        for resumed in crew.said(Resumed, 0):
            losses |= {sample.step: sample.loss for sample in resumed.recalled}
        losses |= {sample.step: sample.loss for sample in crew.steps()}
    return losses


@pytest.fixture(scope="module")
def undisturbed(
    nursery: Nursery, tmp_path_factory: pytest.TempPathFactory, trainer: dict[str, Any]
) -> dict[int, float]:
    folder = tmp_path_factory.mktemp("undisturbed")
    crew = Crew(nursery, starts_for(folder, trainer, MESH, until_step=STEPS))
    crew.watch()
    losses = by_step(crew)
    assert sorted(losses) == list(range(1, STEPS + 1))
    return losses


def test_a_killed_attempt_is_continued_from_memory_alone(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any], undisturbed: dict[int, float]
) -> None:
    nodes = Nodes(tmp_path / "memory", 2)
    first = Crew(nursery, placed(starts_for(tmp_path, trainer, MESH), nodes))
    first.watch(lambda crew: any((s.memory_step or 0) >= 10 for s in crew.steps()))
    known = max(s.memory_step or 0 for s in first.steps())
    kill(first, 3)
    second_starts = starts_for(tmp_path, trainer, MESH, attempt=2, until_step=STEPS)
    second = Crew(nursery, placed(second_starts, nodes))
    second.watch()
    assert second.exit_codes() == [0, 0, 0, 0]
    for resumed in second.said(Resumed):
        assert resumed.tier == "memory"
        assert resumed.step >= known
        assert resumed.checkpoint == f"step-{resumed.step:08d}.a0001"
    # Nothing was ever saved to disk but the end, and no step is missing or different.
    saved = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert saved == [f"step-{STEPS:08d}.a0002"]
    losses = by_step(first, second)
    assert {step: losses[step] for step in undisturbed} == undisturbed


def kill(crew: Crew, rank: int) -> None:
    """End one rank by a signal and wait for all: what is left dies of its broken peers."""
    os.kill(crew.workers[rank].pid, signal.SIGKILL)
    crew.watch()
    crew.exit_codes()


def test_changes_in_force_come_back_from_memory_too(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any]
) -> None:
    nodes = Nodes(tmp_path / "memory", 2)
    hyper = Hyper(lr_changes=(LrChange(1, 0.5, "before"),), grad_clip=0.7)
    first = Crew(nursery, placed(starts_for(tmp_path, trainer, MESH, hyper=hyper), nodes))
    first.watch(lambda crew: any((s.memory_step or 0) >= 3 for s in crew.steps()))
    kill(first, 0)
    second = Crew(
        nursery, placed(starts_for(tmp_path, trainer, MESH, attempt=2, hyper=hyper), nodes)
    )
    second.watch(lambda crew: bool(crew.steps()))
    second.order(Command(1, "stop"))
    second.watch()
    resumed, sample = second.said(Resumed, 0)[0], second.steps()[0]
    before = {s.step: s.lr for s in (*first.steps(), *resumed.recalled)}
    assert sample.step == resumed.step + 1
    assert sample.lr == pytest.approx(before[resumed.step], rel=0.5)


def test_a_save_to_disk_refreshes_memory_too(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any]
) -> None:
    """With copies far apart, only the steps that are saved to disk are in memory."""
    section = {**trainer, "checkpoint": {"interval_steps": 4}}
    nodes = Nodes(tmp_path / "memory", 2)
    starts = starts_for(tmp_path, section, MESH, until_step=14)
    crew = Crew(nursery, placed(starts, nodes, every_steps=1000))
    crew.watch()
    assert crew.exit_codes() == [0, 0, 0, 0]
    seen = {s.memory_step for s in crew.steps()}
    assert seen - {None} <= {4, 8, 12}
    assert max(s or 0 for s in seen) >= 8


def test_a_node_without_the_memory_says_so_once_and_trains_on(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any]
) -> None:
    nodes = Nodes(tmp_path / "memory", 2)
    starts = placed(starts_for(tmp_path, trainer, MESH, until_step=8), nodes)
    # Only node-1 is short of it: its ranks keep all others from it, too.
    short = [
        replace(start, memory=replace(start.memory, rank_bytes_max=1 << 16))
        if start.memory is not None and start.rank >= 2
        else start
        for start in starts
    ]
    crew = Crew(nursery, short)
    crew.watch()
    assert crew.exit_codes() == [0, 0, 0, 0]
    told = crew.said(TierRefused)
    assert sorted(refused.rank for refused in told) == [2, 3]
    assert {refused.code for refused in told} == {"memory-too-small"}
    assert "host_frac" in told[0].message
    assert {sample.memory_step for sample in crew.steps()} == {None}
