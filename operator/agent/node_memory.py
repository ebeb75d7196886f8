"""The agent's side of the memory tier: it holds the buffers, and knows how much its node can give.

What is in them is the workers' business (checkpoints/memory.py). A buffer is a memfd, so it goes
when the agent and its workers have gone, whatever ended them: no run leaves memory behind.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

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


def available_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how much memory this process could still use, by its node and by its cgroup.

    Files that were read or written count for a group until others need the room; of those that
    nobody has touched for a while that is at once, so they are no less free than MemAvailable says.
    """
    free_kib = _field(proc / "meminfo", "MemAvailable:") or 0
    rooms = [_room_bytes(folder, names) for folder, names in _groups(proc, cgroups)]
    return min([free_kib << 10, *(room for room in rooms if room is not None)])


class _Names(NamedTuple):
    """How a version of control groups calls the files, and the field of memory.stat.

    cache: of a group and all those below it, as the limit and what is used are.
    """

    limit: str
    used: str
    cache: str


_VERSION_1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = _Names("memory.max", "memory.current", "inactive_file")


def _groups(proc: Path, cgroups: Path) -> Iterator[tuple[Path, _Names]]:
    """Yield the folders of the groups that this process is in, and of those around them."""
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, names = cgroups, _VERSION_2
        elif "memory" in controllers.split(","):
            root, names = cgroups / "memory", _VERSION_1
        else:
            continue
        # In a container the path may be that of the host, of which only the root is to be seen.
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(root):
                yield folder, names


def _room_bytes(folder: Path, names: _Names) -> int | None:
    """Return how much a group may still use, None where there is no limit."""
    limit, used = _number(folder / names.limit), _number(folder / names.used)
    if limit is None or used is None:
        return None
    cache = _field(folder / "memory.stat", names.cache) or 0
    return max(limit - max(used - cache, 0), 0)


def _field(path: Path, name: str) -> int | None:
    """Return the number behind a name in a file of such lines."""
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text(encoding="ascii").splitlines():
            words = line.split()
            if words and words[0] == name:
                return int(words[1])
    return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None  # "max" is no number: there is no limit.
