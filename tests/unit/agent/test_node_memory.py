"""An agent's buffers outlive its workers, reach the next ones, and go when they must."""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec
import pytest
from midwatch.logbook.tiers import SLOTS_PER_RANK, MemoryOrder
from midwatch.logbook.wire import WorkerStart
from midwatch.operator.agent import node_memory
from midwatch.operator.agent.node_memory import NodeMemory, available_bytes
from midwatch.operator.agent.plan import LocalPlan
from midwatch.operator.agent.reports import WorkersStarted
from midwatch.tests.support.agents import Site, site, worker_start

MEMORY = MemoryOrder(ranks_per_node=2, since=0)


def remembering(plan: LocalPlan, keeps: bool) -> LocalPlan:
    starts = tuple(msgspec.structs.replace(start, memory=MEMORY) for start in plan.workers)
    return msgspec.structs.replace(plan, workers=starts, keeps_memory=keeps)


def buffers(agent: Site, attempt: int, rank: int) -> list[str]:
    """Return the names (with inode) of the memory buffers that a worker was born with."""
    agent.wait_log(attempt, rank, "buffers")
    line = re.search(r"^buffers (.*)$", agent.log(attempt, rank), re.MULTILINE)
    assert line is not None
    return line[1].split()


def test_every_worker_gets_all_buffers_of_its_node(tmp_path: Path) -> None:
    with site(tmp_path, memory_frac=0.1) as agent:
        agent.supervisor.start(remembering(agent.plan(1), keeps=True))
        first, second = (buffers(agent, 1, rank) for rank in (0, 1))
    assert first == second
    assert len(set(first)) == 2 * SLOTS_PER_RANK


def test_the_next_attempt_gets_the_same_buffers_unless_told_to_drop_them(tmp_path: Path) -> None:
    with site(tmp_path, memory_frac=0.1) as agent:
        found = []
        for attempt, keeps in ((1, True), (2, True), (3, False)):
            agent.supervisor.start(remembering(agent.plan(attempt), keeps=keeps))
            found.append(buffers(agent, attempt, 0))
    first, second, third = found
    assert first == second
    assert not set(first) & set(third)


def test_a_spare_drops_its_buffers_as_well(tmp_path: Path) -> None:
    with site(tmp_path, memory_frac=0.1) as agent:
        agent.supervisor.start(remembering(agent.plan(1), keeps=True))
        agent.supervisor.start(agent.plan(2, ranks=()))
        agent.recorder.wait(WorkersStarted, lambda r: r.attempt == 2)
        assert not [link for link in links(os.getpid()) if "midwatch-state" in link]


def links(pid: int) -> list[str]:
    folder = Path(f"/proc/{pid}/fd")
    return [os.readlink(path) for path in folder.iterdir() if path.is_symlink()]


def test_a_rank_is_told_its_share_of_what_the_node_can_give() -> None:
    memory = NodeMemory(4000)
    start: WorkerStart = msgspec.structs.replace(worker_start(1, 0, 0, 2), memory=MEMORY)
    known, fds = memory.order(start, 2)
    assert known.memory is not None
    assert known.memory.rank_bytes_max == 2000
    assert len(fds) == 2 * SLOTS_PER_RANK
    assert memory.order(start, 1)[1] == fds, "what a smaller attempt leaves stays readable"
    memory.drop()
    assert all(not os.path.exists(f"/proc/self/fd/{fd}") for fd in fds)


def test_a_worker_without_an_order_gets_no_buffers() -> None:
    start = worker_start(1, 0, 0, 2)
    assert NodeMemory(4000).order(start, 2) == (start, ())


def test_available_memory_heeds_the_control_group(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plenty = available_bytes()
    assert plenty > 0
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    monkeypatch.setattr(node_memory, "_cgroups", lambda: [tmp_path])
    assert available_bytes() == 600_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes() > 600_000
