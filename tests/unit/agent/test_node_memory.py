"""An agent's buffers outlive its workers, reach the next ones, and go when they must."""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec
import pytest
from midwatch.logbook.tiers import SLOTS_PER_RANK, MemoryOrder
from midwatch.logbook.wire import WorkerStart
from midwatch.operator.agent.node_memory import NodeMemory, available_bytes
from midwatch.operator.agent.plan import LocalPlan
from midwatch.operator.agent.reports import AttemptStopped, WorkersStarted
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


def test_a_preflight_leaves_the_buffers_to_the_next_attempt(tmp_path: Path) -> None:
    with site(tmp_path, memory_frac=0.1) as agent:
        agent.supervisor.start(remembering(agent.plan(1), keeps=True))
        first = buffers(agent, 1, 0)
        agent.supervisor.stop(1, 0.0)
        agent.recorder.wait(AttemptStopped, lambda r: r.attempt == 1)
        agent.supervisor.start(agent.plan(-1))
        agent.recorder.wait(WorkersStarted, lambda r: r.attempt == -1)
        agent.supervisor.start(remembering(agent.plan(2), keeps=True))
        assert buffers(agent, 2, 0) == first


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


MIB = 1 << 20


class Machine:
    """What a process finds of its node and its control groups."""

    def __init__(self, folder: Path, groups: str, available: int = 200_000 * MIB) -> None:
        self.proc, self.cgroups = folder / "proc", folder / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "meminfo").write_text(
            f"MemTotal: {1 << 30} kB\nMemAvailable: {available >> 10} kB\n"
        )
        (self.proc / "self" / "cgroup").write_text(groups)

    def group(self, path: str, **files: int | str) -> None:
        folder = self.cgroups / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / f"memory.{name}").write_text(f"{content}\n")

    @property
    def available_mib(self) -> int:
        return available_bytes(self.proc, self.cgroups) // MIB


def test_this_machine_has_memory() -> None:
    assert available_bytes() > 0


def test_without_a_limit_the_node_counts(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/job/run\n", available=900 * MIB)
    assert machine.available_mib == 900
    machine.group("job/run", max="max", current=400 * MIB)
    assert machine.available_mib == 900


def test_available_memory_heeds_the_control_group_and_those_around_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/job/run\n")
    machine.group("job/run", max=1000 * MIB, current=400 * MIB)
    assert machine.available_mib == 600
    machine.group("job", max=1000 * MIB, current=900 * MIB)
    assert machine.available_mib == 100
    machine.group("job", max=1000 * MIB, current=1001 * MIB)
    assert machine.available_mib == 0


def test_files_that_the_group_has_read_are_room(tmp_path: Path) -> None:
    """A pod of 64 GiB that has read its corpus: 4 GiB are its own, all the rest is cache."""
    machine = Machine(tmp_path, "0::/pod\n")
    stat = f"anon {4096 * MIB}\nfile 61000000000\ninactive_file {60_000 * MIB}\nactive_file 1"
    machine.group("pod", max=65_536 * MIB, current=65_516 * MIB, stat=stat)
    assert machine.available_mib == 60_020
    # What is in memory files, as the tier's own buffers are, is not.
    machine.group("pod", stat=f"shmem {60_000 * MIB}\ninactive_anon {60_000 * MIB}")
    assert machine.available_mib == 20


@pytest.mark.parametrize("path", ["/pod", "/kubepods/of/the/host"])
def test_control_groups_of_the_first_version(tmp_path: Path, path: str) -> None:
    """In a container the root is often its own group, whatever the process is told."""
    machine = Machine(
        tmp_path, f"11:cpu,cpuacct:{path}\n4:memory:{path}\n1:name=systemd:/x\n0::/\n"
    )
    stat = f"inactive_file 1\ntotal_inactive_file {500 * MIB}\n"
    names = {"limit_in_bytes": 1000 * MIB, "usage_in_bytes": 900 * MIB, "stat": stat}
    machine.group("memory/pod" if path == "/pod" else "memory", **names)
    assert machine.available_mib == 600
    machine.group("memory", limit_in_bytes=0x7FFFFFFFFFFFF000, usage_in_bytes=100 * MIB)
    assert machine.available_mib == (600 if path == "/pod" else 200_000)
