"""The memory tier in the simulated world: what the nodes' memory still gives back, and when.

A copy lays the state of each node's ranks in that node's memory and in the next node's. What a node
holds goes with its agent. Two generations are kept, as the four buffers of a rank do.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ...checkpoints.cadence import Cadence
from ...checkpoints.memory import Generation
from ...logbook.plan import AttemptPlan
from ...logbook.wire import StepSample
from ..spec import RunSpec
from .conditions import Times
from .training import Weights

KEPT = 2


class Copy(msgspec.Struct, frozen=True):
    """A state in memory. lives: of the agents that hold it, in the order of their ranks.

    recent: the last steps before it, oldest first.
    """

    generation: Generation
    weights: Weights
    lives: tuple[str, ...]
    recent: tuple[StepSample, ...]


class MemoryTier:
    """What the nodes' memory holds. copies_total: made so far."""

    def __init__(self, spec: RunSpec, times: Times) -> None:
        memory = spec.checkpoints.memory
        self.copies_total = 0
        self.is_on = memory.mode != "off" and times.memory_copy_s is not None
        self._copies: list[Copy] = []
        cadence = Cadence(memory.every_steps, memory.cost_frac)
        if times.memory_copy_s is not None:
            cadence.step_done(times.step_s)
            cadence.copy_done(times.memory_copy_s, times.memory_copy_s)
        self.every_steps = cadence.interval_steps

    def is_due(self, step: int) -> bool:
        return self.is_on and step % self.every_steps == 0

    def lay_down(self, copy: Copy) -> None:
        """Keep a copy in the place of the oldest."""
        self.copies_total += 1
        self._copies = [*self._copies, copy][-KEPT:]

    def drop(self) -> None:
        """Forget everything: an attempt was told not to trust it."""
        self._copies = []

    def newest(self, plan: AttemptPlan, lives: Mapping[str, str]) -> Copy | None:
        """Return the newest whole state that the nodes of a plan hold, None where there is none.

        lives: the agent of the moment by node. A checkpoint that is newer than that goes first.
        """
        if plan.memory_since is None:
            return None
        holders = frozenset(lives[node] for node in plan.nodes if node in lives)
        for copy in reversed(self._copies):
            is_wanted = copy.generation.attempt >= plan.memory_since
            if is_wanted and copy.generation.step >= plan.resume_step and _is_whole(copy, holders):
                return copy
        return None


def _is_whole(copy: Copy, holders: frozenset[str]) -> bool:
    """Whether every node's part is on that node or on the one after it."""
    lives = copy.lives
    following = (*lives[1:], *lives[:1])
    pairs = zip(lives, following, strict=True)
    return all(own in holders or other in holders for own, other in pairs)
