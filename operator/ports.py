"""The edges of the controller: everything it can see or do outside its own state.

The Ray runtime implements these for real clusters; the simulator and the tests implement them
over a seeded world. Nothing here blocks: actions are handed over, and what comes of them arrives
later as a signal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from ..health.nodes.evidence import Sign
from ..health.nodes.lemons import Failure, MachineIdentity
from ..logbook.events import CheckpointCommitted, Event, InterventionRequested
from ..logbook.plan import AttemptPlan, PreflightPlan
from ..logbook.record import Record
from ..logbook.state import Incident, RunState
from ..logbook.wire import Command
from .agent.reports import AgentReport


class NodeUp(msgspec.Struct, frozen=True):
    """An agent's forkserver is ready: the node can carry slots ranks."""

    node: str
    agent: str
    host: str
    slots: int
    pid: int
    machine: MachineIdentity = MachineIdentity("")


class NodeGone(msgspec.Struct, frozen=True):
    """The cluster knows that an agent's process is dead, or it has been silent for too long."""

    node: str
    agent: str
    reason: str


class VerifyResult(msgspec.Struct, frozen=True):
    """A checkpoint was read back. error "" means that every byte is sound."""

    checkpoint: str
    error: str


class PruneResult(msgspec.Struct, frozen=True):
    """These checkpoints are gone from the store; others that were to go with them may follow."""

    checkpoints: tuple[str, ...]


class CommitFound(msgspec.Struct, frozen=True):
    """A committed checkpoint lies on the nodes whose commit nobody may have told of."""

    commit: CheckpointCommitted


class NodeSigns(msgspec.Struct, frozen=True):
    """What the cluster itself says of a node: conditions, taints, health states, metrics.

    Told by whoever can read the cluster, as often as it looks; time_s is when it looked.
    """

    node: str
    signs: tuple[Sign, ...]
    time_s: float


Signal = AgentReport | NodeUp | NodeGone | VerifyResult | PruneResult | CommitFound | NodeSigns


class Clock(Protocol):
    """Where the controller gets the time; seconds since the epoch."""

    def now_s(self) -> float: ...


class Cluster(Protocol):
    """The nodes and their agents."""

    def poll(self) -> Sequence[Signal]:
        """Return what arrived since the last call, in order."""
        ...

    def maintain(self, state: RunState) -> None:
        """See to it that every node that may be used has an agent; called first in every tick.

        A node that the state takes for present and whose agent is gone is told as NodeGone.
        """
        ...

    def start(self, plan: AttemptPlan) -> None:
        """Make this attempt the current one on every node; older workers die first.

        Idempotent by attempt. Raises Retryable when a rendezvous address is not known yet.
        """
        ...

    def stop(self, attempt: int) -> None:
        """Kill the workers of this and every older attempt on every node."""
        ...

    def examine(self, plan: PreflightPlan) -> None:
        """Run a preflight on its nodes; what is left of older ones is ended everywhere.

        Idempotent by number. Raises Retryable when a rendezvous address is not known yet.
        """
        ...

    def end_examination(self, number: int) -> None:
        """Kill the workers of this and every older preflight on every node."""
        ...

    def send(self, attempt: int, command: Command) -> None:
        """Hand a command to every rank of the attempt."""
        ...

    def acknowledge(self) -> None:
        """Everything returned by poll so far is journaled; agents need not keep it."""
        ...


class Checkpoints(Protocol):
    """The checkpoint store of the run; results of verify and prune arrive through Cluster.poll."""

    def verify(self, checkpoint: str) -> None: ...

    def prune(self, checkpoints: tuple[str, ...]) -> None: ...

    def unknown(self, known: Sequence[str]) -> list[CheckpointCommitted]:
        """Return committed checkpoints that the journal has not heard of (their reporter died)."""
        ...


class RunJournal(Protocol):
    """The write-ahead log; logbook.journal.Journal is the real one."""

    @property
    def epoch(self) -> int: ...

    def append(
        self, events: Sequence[tuple[float, int, Event]], sync: bool = False
    ) -> list[Record[Event]]: ...


class Desk(Protocol):
    """Where requests of people come in, and where incident notes and dumps are laid down."""

    def requests(self) -> Sequence[Event | InterventionRequested]:
        """Return requests that arrived since the last call, as events to journal."""
        ...

    def settled(self) -> None:
        """The requests returned last are journaled and need not be kept."""
        ...

    def write_note(self, state: RunState, incident: Incident) -> None:
        """Write or rewrite the note of an incident."""
        ...

    def attach(self, name: str, text: str) -> str:
        """Keep a piece of evidence (a stack dump); return the path under which it lies."""
        ...


class Lemons(Protocol):
    """What is remembered of machines and GPUs across runs."""

    def verdict(self, machine: MachineIdentity) -> str:
        """Return why a machine must not be used, "" when it may be."""
        ...

    def record(self, failure: Failure) -> None:
        """Remember a failure; the same one again changes nothing."""
        ...

    def release(self, machine: MachineIdentity, by: str) -> None:
        """Forgive a machine and its GPUs."""
        ...


class NoLemons:
    """Remembers nothing: for a run whose machines have no identity."""

    def verdict(self, machine: MachineIdentity) -> str:
        return ""

    def record(self, failure: Failure) -> None:
        return None

    def release(self, machine: MachineIdentity, by: str) -> None:
        return None


class Ports(msgspec.Struct, frozen=True):
    """All edges of one controller."""

    clock: Clock
    journal: RunJournal
    cluster: Cluster
    checkpoints: Checkpoints
    desk: Desk
    lemons: Lemons = NoLemons()
