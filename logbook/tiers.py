"""What a worker and its agent are told of the tiers that keep a run's state: memory, disk, store.

These types stand in logbook/ because the trainer, checkpoints/ and the operator speak them.
"""

from __future__ import annotations

import msgspec

SLOTS_PER_RANK = 4
"""Buffers that an agent keeps for each local rank: two of its own state, two of a neighbour's."""


class MemoryOrder(msgspec.Struct, frozen=True):
    """How a rank uses the memory tier, whose buffers (memfds) its node's agent keeps.

    ranks_per_node: a rank's state is copied to the rank so many further on, which lives on the
        next node.
    since:       a state in memory that was saved by this attempt or a later one may be loaded.
    every_steps: steps between two copies; None: as often as cost_frac of the training time allows.
    rank_bytes_max: most that the buffers of one local rank may take together; filled in by the
        agent, which knows its node.
    fds: all buffers of the node, SLOTS_PER_RANK for each local rank in turn; filled in by the
        child.
    """

    ranks_per_node: int
    since: int
    every_steps: int | None = None
    cost_frac: float = 0.01
    rank_bytes_max: int = 0
    fds: tuple[int, ...] = ()


class TierRefused(msgspec.Struct, frozen=True, tag="tier-refused"):
    """A rank cannot take part in the memory tier, and so nobody does; training goes on without.

    code: stable, kebab-case; message names figures and cure.
    """

    rank: int
    code: str
    message: str


class Storage(msgspec.Struct, frozen=True, kw_only=True):
    """Where a node keeps its part of each checkpoint, and the store that all parts go to.

    url:        s3://BUCKET/PREFIX, or the absolute path of a folder that all nodes share.
    local_root: this node's own folder; checkpoints/ID/ below it is its part of a checkpoint.
    run_id:     sets this run apart from another of the same name; "" accepts any.
    The rest is as in the spec's checkpoints.store. Credentials never stand here: every process
    finds its own by the standard chain.
    """

    url: str
    local_root: str
    run_id: str = ""
    endpoint_url: str | None = None
    region: str | None = None
    path_style: bool = False
    ca_bundle: str | None = None
    part_mib: int = 16
    concurrency: int = 4
    bandwidth_mib_s: float | None = None
    timeout_s: float = 60.0
    retry_max_s: float = 60.0
