"""The agent's side of the memory tier: it holds the buffers, and knows how much its node can give.

What is in them is the workers' business (checkpoints/memory.py). A buffer is a memfd, so it goes
when the agent and its workers have gone, whatever ended them: no run leaves memory behind.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from ...logbook.tiers import SLOTS_PER_RANK, MemoryOrder
from ...logbook.wire import WorkerStart


class NodeMemory:
    """The buffers of one node.

    bytes_max: most that all of them may take together.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._fds: list[int] = []

    def order(self, start: WorkerStart, num_ranks: int) -> tuple[WorkerStart, tuple[int, ...]]:
        """Return a start order that knows this node's memory, and the buffers to hand over.

        The descriptors stay ours. Raises: OSError when none can be opened.
        """
        memory = start.memory
        if memory is None:
            return start, ()
        while len(self._fds) < num_ranks * SLOTS_PER_RANK:
            self._fds.append(os.memfd_create("midwatch-state", os.MFD_CLOEXEC))
        share = self._bytes_max // num_ranks
        known: MemoryOrder = msgspec.structs.replace(memory, rank_bytes_max=share)
        return msgspec.structs.replace(start, memory=known), tuple(self._fds)

    def drop(self) -> None:
        """Give all memory back: what is in it must not be resumed from."""
        for fd in self._fds:
            with contextlib.suppress(OSError):
                os.close(fd)
        self._fds = []


def available_bytes() -> int:
    """Return how much memory this process could still use, by its node and by its cgroup."""
    free = _meminfo("MemAvailable")
    for folder in _cgroups():
        limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
        if limit is not None and used is not None:
            free = min(free, max(limit - used, 0))
    return free


def _meminfo(field: str) -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        if name == field:
            return int(rest.split()[0]) << 10
    return 0


def _cgroups() -> list[Path]:
    """Return the folders of this process's cgroup (version 2) and of those around it."""
    root = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            if line.startswith("0::"):
                own = root / line[3:].lstrip("/")
                return [own, *(parent for parent in own.parents if parent.is_relative_to(root))]
    return []


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None  # "max" is no number: there is no limit.
