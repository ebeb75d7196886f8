"""How long things take in the simulated world, and what faults have prepared for them."""

from __future__ import annotations

import msgspec


class Times(msgspec.Struct, frozen=True):
    """How long things take, in virtual seconds; *_exit and death are upper bounds of a draw.

    status_s: period of the agents' heartbeats; None lets them be understood, so that time can jump:
        an agent counts as heard unless it is cut off or dead.
    memory_copy_s: how long training stands still for a copy to memory; None: the nodes have no
        memory for it. memory_load_s: a load from there.
    preload_again_s: a node's agent that comes up on a machine that has loaded it before.
    """

    step_s: float = 0.5
    load_s: float = 0.3
    save_s: float = 1.0
    blocked_s: float = 0.0
    preload_s: float = 1.0
    boot_s: float = 0.5
    fork_s: float = 0.05
    rendezvous_s: float = 20.0
    peer_exit_s: float = 0.15
    death_s: float = 3.0
    wire_s: float = 0.02
    verify_s: float = 1.5
    preflight_s: float = 4.0
    status_s: float | None = 1.0
    memory_copy_s: float | None = None
    memory_load_s: float = 0.1


class Sizes(msgspec.Struct, frozen=True):
    """How large things are. checkpoint_bytes: of all ranks together; step_tokens: of one step.

    device_tflops: what one device makes of the model while it trains.
    """

    checkpoint_bytes: int = 1000
    step_tokens: int = 4096
    device_tflops: float = 0.1


class Trouble:
    """What faults have prepared for the nodes: starts that fail, take long or cannot be made.

    preload_errors: by node, why the workers' code cannot be loaded there.
    drivers_open_s: by node, when its driver answers and the node knows what it runs on.
    sick: by node, the check of a preflight that fails there. mute: nodes whose preflight never
        answers. no_preflights: nodes on which its workers die at once.
    slow: by node, how many times as long its ranks compute.
    corrupt: by rank, by how much what it computes is off.
    """

    def __init__(self, times: Times) -> None:
        self.failing_starts: dict[str, int] = {}
        self.slow_starts: dict[str, float] = {}
        self.preload_errors: dict[str, str] = {}
        self.drivers_open_s: dict[str, float] = {}
        self.sick: dict[str, str] = {}
        self.mute: set[str] = set()
        self.no_preflights: set[str] = set()
        self.slow: dict[str, float] = {}
        self.corrupt: dict[str, float] = {}
        self._times = times

    def start_fails(self, node: str) -> bool:
        left = self.failing_starts.get(node, 0)
        self.failing_starts[node] = max(left - 1, 0)
        return left > 0

    def examination_s(self, node: str) -> float:
        return self._times.preflight_s

    def start_delay_s(self, node: str) -> float:
        return self._times.fork_s + self.slow_starts.pop(node, 0.0)

    def repaired(self, node: str) -> None:
        """The machine of a node was mended or changed: what was wrong with it is gone."""
        for known in (self.failing_starts, self.slow_starts, self.sick, self.slow, self.corrupt):
            known.pop(node, None)


class Storage:
    """What faults have prepared for saves: some fail, some take long, some outlive their ranks.

    down_until_s: virtual second before which the store answers nobody.
    """

    def __init__(self, times: Times) -> None:
        self.failing_saves = 0
        self.slow_saves_s: list[float] = []
        self.late_commits = 0
        self.down_until_s = 0.0
        self._times = times

    def fails(self, elapsed_s: float) -> bool:
        self.failing_saves -= 1
        return self.failing_saves >= 0 or elapsed_s < self.down_until_s

    def save_s(self) -> float:
        return self.slow_saves_s.pop() if self.slow_saves_s else self._times.save_s

    def lands_late(self) -> bool:
        self.late_commits -= 1
        return self.late_commits >= 0

    def wait_s(self, elapsed_s: float) -> float:
        """Return how long a load or a reading back waits for the store to answer again."""
        return max(self.down_until_s - elapsed_s, 0.0)
