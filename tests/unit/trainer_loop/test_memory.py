"""The loop keeps its state in memory, and a new attempt goes on from there, bit for bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from midwatch.checkpoints.manifest import checkpoint_id
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


class SavesOnly:
    """Attempts of one run that copy to memory no state but those that they are to save."""

    def __init__(self, nursery: Nursery, folder: Path, trainer: dict[str, Any], why: str) -> None:
        self.folder = folder
        self._nursery = nursery
        self.nodes = Nodes(folder / "memory", 2)
        interval_steps = 4 if why == "interval" else 10_000
        section = {"steps": 10_000, "checkpoint": {"interval_steps": interval_steps}}
        self._trainer = {**trainer, **section}
        self._ordered: list[int] = []
        self._is_ordering = why == "order"

    def attempt(self, number: int, *checkpoints: str) -> Crew:
        starts = starts_for(
            self.folder, self._trainer, MESH, attempt=number, checkpoints=checkpoints
        )
        return Crew(self._nursery, placed(starts, self.nodes, every_steps=1000))

    def has_state(self, crew: Crew) -> bool:
        """Whether memory has a state; while it has none, order a save now and then."""
        step = max((sample.step for sample in crew.steps()), default=0)
        if self._is_ordering and (not self._ordered or step >= self._ordered[-1] + 10):
            self._ordered.append(step)
            crew.order(Command(len(self._ordered), "checkpoint"))
        return any(sample.memory_step for sample in crew.steps())

    def stopped_soon(self, number: int, *checkpoints: str) -> tuple[Crew, Resumed]:
        crew = self.attempt(number, *checkpoints)
        crew.watch(lambda crew: bool(crew.steps()))
        crew.order(Command(1, "stop"))
        crew.watch()
        assert crew.exit_codes() == [0, 0, 0, 0]
        return crew, crew.said(Resumed, 0)[0]


@pytest.mark.parametrize("why", ["interval", "order"])
def test_a_save_that_only_memory_has_is_made_again(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any], why: str
) -> None:
    run = SavesOnly(nursery, tmp_path, trainer, why)
    # No save of the first attempt comes to its end, as when it dies in each of them.
    blocked = tmp_path / "checkpoints"
    blocked.touch()
    first = run.attempt(1)
    first.watch(run.has_state)
    kill(first, 3)
    blocked.unlink()
    second, resumed = run.stopped_soon(2)
    assert resumed.tier == "memory"
    saved = checkpoint_id(resumed.step, 2)
    assert second.committed()[0] == saved
    # It is the state that training went on from; that it is in memory, too, is no cause to save it.
    if why == "interval":
        for node in ("node-0", "node-1"):
            run.nodes.lose(node)
    third, again = run.stopped_soon(3, saved)
    assert (again.tier, again.step) == ("disk" if why == "interval" else "memory", resumed.step)
    assert third.steps()[0].loss == second.steps()[0].loss
    assert checkpoint_id(resumed.step, 3) not in third.committed()


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
