"""What is known of each node; part of state.py, through which everybody reads it."""

from __future__ import annotations

import msgspec

from .events import FindingSeen


class NodeState(msgspec.Struct, frozen=True):
    """One node. quarantined holds the reason, "" when it may be used.

    machine, gpus, lemon: as in events.NodeJoined.
    evict, drain: the finding that wants it replaced now, or at the next restart.
    examined: incarnation that a preflight, or training itself, has tried out last.
    joined_s: when its agent of the moment joined.
    suspicion: why it must be tried out again, "" when there is no reason to.
    """

    node: str
    incarnation: str
    host: str
    slots: int
    pid: int = 0
    present: bool = True
    quarantined: str = ""
    num_hangs: int = 0
    num_losses: int = 0
    machine: str = ""
    gpus: tuple[tuple[str, str], ...] = ()
    lemon: str = ""
    evict: FindingSeen | None = None
    drain: FindingSeen | None = None
    examined: str = ""
    suspicion: str = ""
    joined_s: float = 0.0

    @property
    def is_usable(self) -> bool:
        return self.present and not self.quarantined

    @property
    def is_blamed(self) -> bool:
        """Whether anything is held against it that a release forgives."""
        is_marked = self.evict is not None or self.drain is not None
        return bool(self.quarantined or self.lemon or self.num_hangs) or is_marked
