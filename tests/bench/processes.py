"""What /proc says of processes: who descends from whom, and how much CPU time they have had."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
LOOK_S = 0.002


def descendants(pid: int) -> list[int]:
    """Return the processes below pid, parents before their children."""
    found, at = [pid], 0
    while at < len(found):
        found += _children(found[at])
        at += 1
    return found[1:]


def _children(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []


def environ_of(pid: int) -> dict[str, str]:
    """Return the environment a process was started with; empty once it is gone."""
    words = _read(pid, "environ").split("\0")
    return dict(word.split("=", 1) for word in words if "=" in word)


def command_of(pid: int) -> str:
    """Return the command line of a process, or its title if it has given itself one."""
    return _read(pid, "cmdline").replace("\0", " ").strip()


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process and its reaped children; 0.0 once it is gone."""
    fields = _read(pid, "stat").rpartition(")")[2].split()
    # utime, stime, cutime, cstime are fields 14 to 17 of the line; the first two were cut off.
    return sum(map(int, fields[11:15])) / TICKS_PER_S if fields else 0.0


def parent_of(pid: int) -> int:
    """Return the parent of a process, 0 once it is gone."""
    fields = _read(pid, "stat").rpartition(")")[2].split()
    return int(fields[1]) if fields else 0


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""


@dataclass
class Usage:
    """CPU time that named groups of processes take over some steps.

    cores: by group, the share of one core; step_s: seconds a step. Both from stop() on.
    """

    groups: Mapping[str, Collection[int]]
    cores: dict[str, float] = field(default_factory=dict)
    step_s: float = 0.0

    def __post_init__(self) -> None:
        self._before = self._cpu_s()
        self._began_s = time.monotonic()

    def stop(self, num_steps: int, took_s: float) -> Usage:
        """Take the second reading, and note that num_steps steps took took_s; return self."""
        span_s = time.monotonic() - self._began_s
        after = self._cpu_s()
        self.cores = {name: (after[name] - self._before[name]) / span_s for name in self.groups}
        self.step_s = took_s / num_steps
        return self

    def _cpu_s(self) -> dict[str, float]:
        return {name: sum(map(cpu_s, pids)) for name, pids in self.groups.items()}


def wait_gone(pids: Iterable[int], timeout_s: float = 60.0) -> float:
    """Wait until none of these processes exists; return when that was, in seconds since the epoch.

    A process that has ended counts until it is reaped.
    """
    left = list(pids)
    deadline_s = time.monotonic() + timeout_s
    while left := [pid for pid in left if os.path.exists(f"/proc/{pid}")]:
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"processes {left} still exist after {timeout_s:g} s")
        time.sleep(LOOK_S)
    return time.time()
