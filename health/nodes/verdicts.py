"""The two words every judgement about a node or a failure ends in: what to do, and whose fault.

They are shared by the XID table, the kernel log, the failure-text rules, the NVML judge and the
cluster evidence, so that one policy can read all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class Action(StrEnum):
    """What a judgement asks for, mildest first.

    IGNORE    nothing is wrong.
    WATCH     write it down; it counts in the lemon memory when it repeats.
    RESTART   a new attempt on the same nodes.
    ROLLBACK  a new attempt from an earlier checkpoint, as the numeric policy sees fit.
    STOP      hold the run for a person: an identical retry would fail the same way.
    DRAIN     leave the node (or GPU) out at the next restart.
    EVICT     replace the node now.

    The catalogue of XID actions uses IGNORE, WATCH, DRAIN and EVICT only.
    """

    IGNORE = "ignore"
    WATCH = "watch"
    RESTART = "restart"
    ROLLBACK = "rollback"
    STOP = "stop"
    DRAIN = "drain"
    EVICT = "evict"


class Blame(StrEnum):
    """Whose fault it is, as far as the evidence tells."""

    NODE = "node"
    NETWORK = "network"
    STORAGE = "storage"
    CODE = "code"
    DATA = "data"
    PREEMPTION = "preemption"
    UNKNOWN = "unknown"


_NODE_SCALE = (Action.IGNORE, Action.WATCH, Action.DRAIN, Action.EVICT)


def strongest(actions: Iterable[Action]) -> Action:
    """Return the strongest node action of several; IGNORE of none.

    Raises: ValueError when an action is not a node action (a bug of ours).
    """
    return max(actions, key=_NODE_SCALE.index, default=Action.IGNORE)
