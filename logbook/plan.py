"""Where the ranks of an attempt run and what they start from."""

from __future__ import annotations

from functools import cached_property

import msgspec

from .preflight import Thoroughness
from .wire import Hyper, Mesh


class Placement(msgspec.Struct, frozen=True):
    """The contiguous block of ranks that one node carries: [first_rank, first_rank + num_ranks)."""

    node: str
    first_rank: int
    num_ranks: int


class AttemptPlan(msgspec.Struct, frozen=True, dict=True):
    """Everything that defines an attempt, but for the addresses known only when it starts.

    placements:  in rank order; the first holds rank 0 and serves the rendezvous.
    checkpoints: candidates to resume from, best first; empty means a fresh start.
    resume_step: step of the first candidate, 0 for a fresh start.
    memory_since: the nodes' memory may be resumed from, where it holds a whole state saved by this
        attempt or a later one; it goes before the candidates, unless they are newer. None: what is
        in memory must be dropped (a rollback: it is as sick as what it came from).
    validated_step: newest step whose measurement on held-out text is known, 0 before there is one;
        what is resumed from a later step that was to be measured is measured first.
    """

    attempt: int
    mesh: Mesh
    placements: tuple[Placement, ...]
    checkpoints: tuple[str, ...]
    resume_step: int
    hyper: Hyper
    first_command: int = 1
    memory_since: int | None = None
    validated_step: int = 0

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        return tuple(placement.node for placement in self.placements)

    def node_of(self, rank: int) -> str | None:
        """Return the node that carries rank, or None when no node does."""
        for placement in self.placements:
            if placement.first_rank <= rank < placement.first_rank + placement.num_ranks:
                return placement.node
        return None


class PreflightPlan(msgspec.Struct, frozen=True, dict=True):
    """Which nodes one preflight tries out together.

    number:  1 onward in a run; a newer one ends what is left of an older one.
    nodes:   in rank order; each carries ranks_per_node ranks.
    is_gate: the next attempt waits for its outcome; otherwise training goes on meanwhile.
    """

    number: int
    nodes: tuple[str, ...]
    ranks_per_node: int
    thoroughness: Thoroughness
    is_gate: bool

    @property
    def attempt(self) -> int:
        """What stands in the place of an attempt number in orders and reports of this preflight.

        Below zero, so that no attempt is ever taken for a preflight or the other way round.
        """
        return -self.number

    @property
    def world_size(self) -> int:
        return len(self.nodes) * self.ranks_per_node

    @cached_property
    def rank_nodes(self) -> tuple[str, ...]:
        """The node of every rank, by rank."""
        return tuple(node for node in self.nodes for _ in range(self.ranks_per_node))
