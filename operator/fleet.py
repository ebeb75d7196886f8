"""What the controller holds in memory about its agents: who is up, where, and since when silent.

None of it is journaled: a restarted controller learns it again from the next heartbeats.
"""

from __future__ import annotations

import msgspec

from ..health.nodes.lemons import MachineIdentity
from ..logbook.errors import Retryable
from .agent.reports import AgentReport, AgentStatus
from .ports import NodeGone, NodeUp


class Identity(msgspec.Struct, frozen=True):
    """One life of one agent. agent is unique to the process; slots: ranks it can carry.

    machine: what it runs on, by its hardware.
    """

    node: str
    agent: str
    host: str
    slots: int
    pid: int
    machine: MachineIdentity = MachineIdentity("")


class _Member(msgspec.Struct):
    identity: Identity
    seen_s: float
    is_up: bool = False
    is_gone: bool = False
    rendezvous: tuple[str, int] | None = None
    serving: tuple[int, str, int] = (0, "", 0)


class Fleet:
    """Agents by node. heartbeat_deadline_s: silence after which an agent counts as lost."""

    def __init__(self, heartbeat_deadline_s: float) -> None:
        self._deadline_s = heartbeat_deadline_s
        self._members: dict[str, _Member] = {}
        self._looked_s: float | None = None

    def register(self, identity: Identity, now_s: float) -> None:
        """An agent process exists; it is up once its forkserver is ready.

        It has answered just now, so one that was given up for its silence counts again.
        """
        known = self._members.get(identity.node)
        if known is None or known.is_gone or known.identity.agent != identity.agent:
            self._members[identity.node] = _Member(identity, now_s)

    def take(self, report: AgentReport, now_s: float) -> NodeUp | None:
        """Note a report; return NodeUp the first time its agent is ready to start workers."""
        member = self._members.get(report.node)
        if member is None or member.identity.agent != report.agent or member.is_gone:
            return None
        member.seen_s = now_s
        if not isinstance(report, AgentStatus):
            return None
        if report.rendezvous_port:
            member.rendezvous = (report.rendezvous_host, report.rendezvous_port)
        member.serving = (report.attempt, report.rendezvous_host, report.serving_port)
        if report.forkserver != "ready" or member.is_up:
            return None
        member.is_up = True
        who = member.identity
        return NodeUp(who.node, who.agent, who.host, who.slots, who.pid, who.machine)

    def gone(self, node: str, agent: str, reason: str) -> NodeGone | None:
        """The agent's process is known to be dead; None when that was known already."""
        member = self._members.get(node)
        if member is None or member.identity.agent != agent or member.is_gone:
            return None
        member.is_gone = True
        return NodeGone(node, agent, reason)

    def silent(self, now_s: float) -> list[NodeGone]:
        """Return the agents whose silence has passed the deadline, each once; called every tick."""
        if self._looked_s is not None and now_s - self._looked_s > self._deadline_s / 2:
            # It was this side that slept: what it did not hear is no evidence of silence.
            self._excuse(now_s)
        self._looked_s = now_s
        found = []
        for node, member in self._members.items():
            age_s = now_s - member.seen_s
            if member.is_up and not member.is_gone and age_s > self._deadline_s:
                member.is_gone = True
                reason = f"silent for {age_s:.1f} s, deadline {self._deadline_s:.1f} s"
                found.append(NodeGone(node, member.identity.agent, reason))
        return found

    def _excuse(self, now_s: float) -> None:
        for member in self._members.values():
            member.seen_s = now_s

    def is_present(self, node: str) -> bool:
        """Whether an agent of this node exists and is not known to be gone."""
        member = self._members.get(node)
        return member is not None and not member.is_gone

    def rendezvous(self, node: str, attempt: int) -> tuple[str, int]:
        """Return the address at which a rank 0 on node can be met; used up by the caller.

        Where that rank of this attempt serves already, ordered by a controller that was lost before
        it had told all nodes, the others must meet it there.

        Raises: Retryable[no-rendezvous] until the node's next heartbeat has named a fresh one.
        """
        member = self._members.get(node)
        if member is not None and member.serving[0] == attempt and member.serving[2]:
            return member.serving[1:]
        if member is None or member.rendezvous is None:
            raise Retryable("no-rendezvous", f"{node} has not named an address yet", delay_s=0.1)
        address, member.rendezvous = member.rendezvous, None
        return address
