"""The controller's ports over the simulated world; one set for each life of the controller."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from ...logbook.errors import Fatal
from ...logbook.events import CheckpointCommitted, Event
from ...logbook.notes import render_note
from ...logbook.plan import AttemptPlan, PreflightPlan
from ...logbook.record import Codec, Record
from ...logbook.state import Incident, NodeState, RunState
from ...logbook.wire import Command
from ..agent.reports import AgentReport
from ..fleet import Fleet
from ..ports import NodeGone, PruneResult, Signal, VerifyResult
from ..runtime.names import node_names
from .agent import SimAgent
from .world import World

RECREATE_S = 5.0


class SimCluster:
    """The Cluster and Checkpoints ports, as the Ray runtime has them. wake asks for a tick soon.

    has_beats: heartbeats are really sent; otherwise every agent counts as heard that is not cut
    off, and a look at all nodes is taken only after something has changed.
    """

    def __init__(self, world: World, wake: Callable[[], None]) -> None:
        self.wake = wake
        self._world = world
        self._fleet = Fleet(world.spec.restart.heartbeat_deadline_s)
        self._has_beats = world.times.status_s is not None
        self._names = node_names(world.spec.num_nodes, world.spec.nodes.spares)
        self._signals: list[Signal] = []
        self._known: dict[str, SimAgent] = {}
        self._created_s: dict[str, float] = {}
        self._taken: dict[str, int] = {}
        self._ingested: dict[str, int] = {}
        self._repeated: set[str] = set()
        self._unacknowledged: dict[str, SimAgent] = {}
        self._looked_at: dict[str, NodeState] | None = None
        self._look_s = 0.0

    # --- Cluster ---------------------------------------------------------------------------------

    def poll(self) -> Sequence[Signal]:
        found, self._signals = self._signals, []
        self._taken.update(self._ingested)
        self._ingested.clear()
        if not self._has_beats:
            return found
        return [*found, *self._fleet.silent(self._world.timeline.now_s())]

    def acknowledge(self) -> None:
        for name, agent in list(self._unacknowledged.items()):
            # What it is to repeat first is not acknowledged by what came before it.
            if name not in self._repeated:
                continue
            seq = self._taken.get(name, 0)
            agent.outbox = [report for report in agent.outbox if report.seq > seq]
            del self._unacknowledged[name]

    def maintain(self, state: RunState) -> None:
        elapsed_s = self._world.timeline.elapsed_s
        is_due = self._has_beats or elapsed_s >= self._look_s or self._looked_at is not state.nodes
        if state.status.is_terminal or not is_due:
            return
        self._looked_at, self._look_s = state.nodes, math.inf
        for node in self._names:
            known = state.nodes.get(node)
            if (known is not None and known.quarantined) or self._fleet.is_present(node):
                continue
            if elapsed_s - self._created_s.get(node, -RECREATE_S) < RECREATE_S:
                self._look_s = min(self._look_s, self._created_s[node] + RECREATE_S)
                continue
            self._created_s[node] = elapsed_s
            if not self._has_beats:
                self._look_s = min(self._look_s, elapsed_s + RECREATE_S)
            if self._world.boot_agent(node) and known is not None and known.present:
                self._emit(NodeGone(node, known.incarnation, "its actor is gone"))
            agent = self._world.agents.get(node)
            if agent is not None and agent.is_alive:
                self._world.timeline.later(self._world.times.boot_s, partial(self._meet, node))

    def look_again(self) -> None:
        """A machine may be back: look at all nodes with the next tick."""
        self._look_s = 0.0
        self.wake()

    def start(self, plan: AttemptPlan) -> None:
        self._fleet.rendezvous(plan.placements[0].node, plan.attempt)
        places = {place.node: place for place in plan.placements}
        for agent in self._known.values():
            order = partial(agent.start, plan, places.get(agent.node))
            self._world.wire.order(agent, order)

    def stop(self, attempt: int) -> None:
        for agent in self._known.values():
            self._world.wire.order(agent, partial(agent.stop, attempt))

    def examine(self, plan: PreflightPlan) -> None:
        self._fleet.rendezvous(plan.nodes[0], plan.attempt)
        for agent in self._known.values():
            self._world.wire.order(agent, partial(agent.examine, plan))

    def end_examination(self, number: int) -> None:
        for agent in self._known.values():
            self._world.wire.order(agent, partial(agent.end_examination, number))

    def send(self, attempt: int, command: Command) -> None:
        for agent in self._known.values():
            if agent.lost_commands > 0:
                agent.lost_commands -= 1
            else:
                self._world.wire.order(agent, partial(agent.send, attempt, command))

    # --- Checkpoints -----------------------------------------------------------------------------

    def verify(self, checkpoint: str) -> None:
        reader = next((a for a in self._known.values() if a.is_alive), None)

        def done() -> None:
            if reader is not None and reader.is_alive:
                self._emit(VerifyResult(checkpoint, self._world.disk.problem(checkpoint)))

        wait_s = self._world.storage.wait_s(self._world.timeline.elapsed_s)
        self._world.timeline.later(wait_s + self._world.times.verify_s, done)

    def prune(self, checkpoints: tuple[str, ...]) -> None:
        def done() -> None:
            for name in checkpoints:
                self._world.disk.saved.pop(name, None)
            self._emit(PruneResult(checkpoints))

        self._world.timeline.later(0.2, done)

    def unknown(self, known: Sequence[str]) -> list[CheckpointCommitted]:
        return [
            CheckpointCommitted(
                attempt=saved.attempt,
                checkpoint=saved.id,
                step=saved.step,
                bytes=self._world.setting.sizes.checkpoint_bytes,
                blocked_s=0.0,
                save_s=0.0,
                tags=saved.tags,
            )
            for saved in self._world.disk.saved.values()
            if saved.id not in known
        ]

    # --- what comes back -------------------------------------------------------------------------

    @property
    def has_news(self) -> bool:
        return bool(self._signals)

    def knows(self, agent: SimAgent) -> bool:
        return self._known.get(agent.node) is agent

    def ingest(self, agent: SimAgent, report: AgentReport) -> None:
        """Take a report, unless this controller is no longer the one it was sent to."""
        if self._world.cluster is not self:
            return
        name = agent.identity.agent
        self._unacknowledged[name] = agent
        self._ingested[name] = max(self._ingested.get(name, 0), report.seq)
        up = self._fleet.take(report, self._world.timeline.now_s())
        if up is not None:
            self._emit(up)
        self._emit(report)

    def fell_silent(self, agent: SimAgent, reason: str) -> None:
        """Nothing was heard of an agent for longer than the heartbeat deadline."""
        gone = self._fleet.gone(agent.node, agent.identity.agent, reason)
        if gone is not None:
            self._look_s = 0.0
            self._emit(gone)

    def died(self, agent: SimAgent) -> None:
        """The process of an agent that this controller knew has ended."""
        gone = self._fleet.gone(agent.node, agent.identity.agent, "its process died")
        if gone is not None:
            self._look_s = 0.0
            self._emit(gone)

    def _meet(self, node: str) -> None:
        agent = self._world.agents.get(node)
        current = self._world.cluster is self
        if not current or agent is None or not agent.is_alive or self._world.wire.is_cut(node):
            return
        self._known[node] = agent
        self._fleet.register(agent.identity, self._world.timeline.now_s())
        # An agent learns that there is a new controller when it tells it something, and only then
        # repeats what the old one had not acknowledged.
        if agent.outbox:
            self._world.wire.carry(agent, agent.outbox[-1])
        agent.beat_anew()
        self._world.timeline.later(0.05, lambda: self._repeat(agent))

    def _repeat(self, agent: SimAgent) -> None:
        if self._world.cluster is self:
            self._repeated.add(agent.identity.agent)
            self._world.wire.flush(agent)

    def _emit(self, signal: Signal) -> None:
        if self._world.cluster is self:
            self._signals.append(signal)
            self.wake()


class SimDesk:
    """Requests wait in the world until they are settled; notes and dumps end there."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._taken = 0

    def requests(self) -> Sequence[Event]:
        self._taken = len(self._world.requests)
        return list(self._world.requests)

    def settled(self) -> None:
        del self._world.requests[: self._taken]
        self._taken = 0

    def write_note(self, state: RunState, incident: Incident) -> None:
        self._world.notes[incident.draft.id] = render_note(state, incident)

    def attach(self, name: str, text: str) -> str:
        return f"evidence/{name}"


class MemoryJournal:
    """The journal without a disk: the same lines, decoded from the same bytes.

    epoch: of the newest writer; an older one is turned away, as by the lease of the real one.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.lines: list[bytes] = []
        self._codec: Codec[Event] = Codec(Event)

    def reopen(self) -> MemoryWriter:
        """Open it for the next controller."""
        self.epoch += 1
        return MemoryWriter(self, self.epoch)

    def append(
        self, events: Sequence[tuple[float, int, Event]], sync: bool = False
    ) -> list[Record[Event]]:
        first = len(self.lines) + 1
        lines = [
            self._codec.encode(first + index, time_s, attempt, self.epoch, event)
            for index, (time_s, attempt, event) in enumerate(events)
        ]
        self.lines += lines
        return [self._codec.decode(line[:-1]) for line in lines]

    def records(self) -> list[Record[Event]]:
        return [self._codec.decode(line[:-1]) for line in self.lines]


class MemoryWriter:
    """One controller's hold on the journal."""

    def __init__(self, journal: MemoryJournal, epoch: int) -> None:
        self.epoch = epoch
        self._journal = journal

    def append(
        self, events: Sequence[tuple[float, int, Event]], sync: bool = False
    ) -> list[Record[Event]]:
        if self.epoch != self._journal.epoch:
            raise Fatal("journal-fenced", f"epoch {self._journal.epoch} has taken over.")
        return self._journal.append(events, sync)

    def records(self) -> list[Record[Event]]:
        return self._journal.records()
