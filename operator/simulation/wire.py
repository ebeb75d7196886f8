"""The network between agents and controller: in order for one agent, not across agents."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..agent.reports import AgentReport

if TYPE_CHECKING:
    from .agent import SimAgent
    from .edges import SimCluster
    from .world import World


class Wire:
    """Carries reports and orders.

    extra_s: added delay by node. held: until when a node is cut off. duplicates: how many of the
    next reports arrive twice. shuffled: how many of the next reports may overtake earlier ones.
    """

    def __init__(self, world: World) -> None:
        self.extra_s: dict[str, float] = {}
        self.held: dict[str, float] = {}
        self.duplicates = 0
        self.shuffled = 0
        self._world = world
        self._last_s: dict[str, float] = {}

    def is_cut(self, node: str) -> bool:
        return self.held.get(node, 0.0) > self._world.timeline.elapsed_s

    def carry(self, agent: SimAgent, report: AgentReport) -> None:
        """Bring a report to the controller, if there is one that knows the agent."""
        cluster = self._world.cluster
        if cluster is None or not cluster.knows(agent) or self.is_cut(agent.node):
            return
        self._arrive(cluster, agent, report, self._delay_s(agent))
        if self.duplicates > 0:
            self.duplicates -= 1
            self._arrive(cluster, agent, report, self._delay_s(agent) + 1.0)

    def flush(self, agent: SimAgent) -> None:
        """Send again all that was never acknowledged: a new controller, or the end of a cut."""
        for report in list(agent.outbox):
            self.carry(agent, report)

    def cut(self, node: str, for_s: float) -> None:
        """Cut a node off; what is ordered and said meanwhile arrives when the cut heals."""
        until_s = self._world.timeline.elapsed_s + for_s
        self.held[node] = max(self.held.get(node, 0.0), until_s)
        self._world.timeline.later(for_s + 0.001, lambda: self._healed(node))
        if self._world.times.status_s is None:
            deadline_s = self._world.spec.restart.heartbeat_deadline_s
            self._world.timeline.later(deadline_s, lambda: self._unheard(node, deadline_s))

    def order(self, agent: SimAgent, action: Callable[[], None]) -> None:
        """Bring an order to an agent, in order."""
        wait_s = max(self.held.get(agent.node, 0.0) - self._world.timeline.elapsed_s, 0.0)
        self._world.timeline.later(wait_s + self._world.times.wire_s / 2, action)

    def _unheard(self, node: str, deadline_s: float) -> None:
        """Where heartbeats are understood: a node that is still cut off has been missed by now."""
        agent, cluster = self._world.agents.get(node), self._world.cluster
        if agent is not None and cluster is not None and agent.is_alive and self.is_cut(node):
            cluster.fell_silent(agent, f"silent for {deadline_s:.1f} s")

    def _healed(self, node: str) -> None:
        agent = self._world.agents.get(node)
        if agent is not None and agent.is_alive and not self.is_cut(node):
            self.flush(agent)

    def _delay_s(self, agent: SimAgent) -> float:
        delay_s = self._world.rng.uniform(0.2, 1.0) * self._world.times.wire_s
        if self.extra_s:
            delay_s += self.extra_s.get(agent.node, 0.0)
        if self.shuffled > 0:
            self.shuffled -= 1
            return delay_s + self._world.rng.uniform(0.0, 1.0)
        elapsed_s = self._world.timeline.elapsed_s
        arrival_s = max(self._last_s.get(agent.node, 0.0), elapsed_s + delay_s)
        self._last_s[agent.node] = arrival_s
        return arrival_s - elapsed_s

    def _arrive(
        self, cluster: SimCluster, agent: SimAgent, report: AgentReport, delay_s: float
    ) -> None:
        self._world.timeline.later(delay_s, lambda: cluster.ingest(agent, report))
