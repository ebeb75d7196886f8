"""The seeded world in which the real controller runs: nodes, wire, storage, people; virtual time.

    timeline.py   virtual time
    training.py   what a learning rate does to weights; the disk
    gang.py       the workers of one attempt
    agent.py      a node agent
    world.py      the whole, and what can be done to it
    edges.py      the controller's ports over it
    night.py      drives Controller.tick() through a night, crashes included
    checkers.py   what must hold after every tick
    faults.py     faults as data, and seeded lists of them

Nothing here decides anything: it carries out orders, and suffers faults.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
from midwatch.checkpoints.manifest import checkpoint_id
from midwatch.health.nodes.lemons import MachineIdentity
from midwatch.logbook.events import Event
from midwatch.logbook.plan import AttemptPlan
from midwatch.logbook.wire import StepSample
from midwatch.operator.agent.reports import AgentReport
from midwatch.operator.spec import RunSpec
from midwatch.trainer.config import TrainConfig

from .agent import SimAgent
from .gang import Gang, Life
from .timeline import Timeline
from .training import Disk, Physics

if TYPE_CHECKING:
    from .edges import SimCluster


class Times(msgspec.Struct, frozen=True):
    """How long things take, in virtual seconds; *_exit and death are upper bounds of a draw."""

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


class Trouble:
    """What faults have prepared for the nodes: starts that fail, take long or cannot be made.

    preload_errors: by node, why the workers' code cannot be loaded there.
    sick: by node, the check of a preflight that fails there. mute: nodes whose preflight never
        answers. no_preflights: nodes on which its workers die at once.
    """

    def __init__(self, times: Times) -> None:
        self.failing_starts: dict[str, int] = {}
        self.slow_starts: dict[str, float] = {}
        self.preload_errors: dict[str, str] = {}
        self.sick: dict[str, str] = {}
        self.mute: set[str] = set()
        self.no_preflights: set[str] = set()
        self._times = times

    def start_fails(self, node: str) -> bool:
        left = self.failing_starts.get(node, 0)
        self.failing_starts[node] = max(left - 1, 0)
        return left > 0

    def examination_s(self, node: str) -> float:
        return self._times.preflight_s

    def start_delay_s(self, node: str) -> float:
        return self._times.fork_s + self.slow_starts.pop(node, 0.0)


class Storage:
    """What faults have prepared for saves: some fail, some take long, some outlive their ranks."""

    def __init__(self, times: Times) -> None:
        self.failing_saves = 0
        self.slow_saves_s: list[float] = []
        self.late_commits = 0
        self._times = times

    def fails(self) -> bool:
        self.failing_saves -= 1
        return self.failing_saves >= 0

    def save_s(self) -> float:
        return self.slow_saves_s.pop() if self.slow_saves_s else self._times.save_s

    def lands_late(self) -> bool:
        self.late_commits -= 1
        return self.late_commits >= 0


class Wire:
    """The network between agents and controller: in order for one agent, not across agents.

    extra_s: added delay by node. held: until when a node is cut off. duplicates: how many of the
    next reports arrive twice.
    """

    def __init__(self, world: World) -> None:
        self.extra_s: dict[str, float] = {}
        self.held: dict[str, float] = {}
        self.duplicates = 0
        self._world = world
        self._last_s: dict[str, float] = {}

    def is_cut(self, node: str) -> bool:
        return self.held.get(node, 0.0) > self._world.timeline.now_s()

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
        until_s = self._world.timeline.now_s() + for_s
        self.held[node] = max(self.held.get(node, 0.0), until_s)
        self._world.timeline.later(for_s + 0.001, lambda: self._healed(node))

    def order(self, agent: SimAgent, action: Callable[[], None]) -> None:
        """Bring an order to an agent, in order."""
        now_s = self._world.timeline.now_s()
        wait_s = max(self.held.get(agent.node, 0.0) - now_s, 0.0)
        self._world.timeline.later(wait_s + self._world.times.wire_s / 2, action)

    def _healed(self, node: str) -> None:
        agent = self._world.agents.get(node)
        if agent is not None and agent.is_alive and not self.is_cut(node):
            self.flush(agent)

    def _delay_s(self, agent: SimAgent) -> float:
        now_s = self._world.timeline.now_s()
        delay_s = self._world.rng.uniform(0.2, 1.0) * self._world.times.wire_s
        delay_s += self.extra_s.get(agent.node, 0.0)
        arrival_s = max(self._last_s.get(agent.node, 0.0), now_s + delay_s)
        self._last_s[agent.node] = arrival_s
        return arrival_s - now_s

    def _arrive(
        self, cluster: SimCluster, agent: SimAgent, report: AgentReport, delay_s: float
    ) -> None:
        self._world.timeline.later(delay_s, lambda: cluster.ingest(agent, report))


class World:
    """Everything outside the controller. cluster: the ports of the controller of the moment."""

    def __init__(
        self, spec: RunSpec, config: TrainConfig, seed: int, physics: Physics, times: Times
    ) -> None:
        self.spec = spec
        self.config = config
        self.physics = physics
        self.times = times
        self.rng = random.Random(seed)
        self.timeline = Timeline()
        self.trouble = Trouble(times)
        self.storage = Storage(times)
        self.wire = Wire(self)
        self.disk = Disk()
        self.agents: dict[str, SimAgent] = {}
        self.machines: dict[str, MachineIdentity] = {}
        self.gangs: dict[int, Gang] = {}
        self.absent: dict[str, float] = {}
        self.examined: list[tuple[int, str]] = []
        self.samples: dict[int, StepSample] = {}
        self.trained_total = 0
        self.requests: list[Event] = []
        self.notes: dict[str, str] = {}
        self.cluster: SimCluster | None = None
        self._lives = 0
        self._pids = 1000

    # --- for the parts ---------------------------------------------------------------------------

    def next_pid(self) -> int:
        self._pids += 1
        return self._pids

    def gang(self, plan: AttemptPlan) -> Gang:
        """Return the gang of an attempt; its first agent to fork makes it."""
        return self.gangs.setdefault(plan.attempt, Gang(self, plan))

    def trained(self, gang: Gang, sample: StepSample) -> None:
        """Note a step that was really made."""
        self.samples[sample.step] = sample
        self.trained_total += 1

    def checkpoint_id(self, step: int, attempt: int) -> str:
        return checkpoint_id(step, attempt)

    def boot_agent(self, node: str) -> bool:
        """A new life of a node's agent, unless its machine is not there or one lives already."""
        absent = self.absent.get(node, 0.0) > self.timeline.elapsed_s
        known = self.agents.get(node)
        if absent or (known is not None and known.is_alive):
            return False
        self._lives += 1
        self.agents[node] = SimAgent(self, node, self._lives)
        return True

    # --- what can be done to it ------------------------------------------------------------------

    @property
    def live_gang(self) -> Gang | None:
        """The youngest gang that has a worker alive."""
        for attempt in sorted(self.gangs, reverse=True):
            if any(w.life is not Life.GONE for w in self.gangs[attempt].workers.values()):
                return self.gangs[attempt]
        return None

    def kill_worker(self, rank: int, signal: int = 9, report_after_s: float = 0.0) -> bool:
        """Kill one worker; its agent knows at once, but may be slow to say so."""
        gang = self.live_gang
        worker = gang.workers.get(rank) if gang is not None else None
        if gang is None or worker is None or worker.life is Life.GONE:
            return False
        agent, at = worker.agent, worker
        gang.lose(rank)
        self.timeline.later(report_after_s, lambda: agent.on_exit(gang, at, signal=signal))
        return True

    def stop_worker(self, rank: int) -> bool:
        """SIGSTOP one worker: alive, silent, and everybody waits for it."""
        gang = self.live_gang
        worker = gang.workers.get(rank) if gang is not None else None
        if worker is None or worker.life is not Life.ALIVE:
            return False
        worker.life = Life.STOPPED
        return True

    def kill_agent(self, node: str, known_after_s: float | None = None) -> bool:
        """Kill an agent; the cluster learns of it some time later."""
        agent = self.agents.get(node)
        if agent is None or not agent.is_alive:
            return False
        agent.die()
        delay_s = known_after_s
        if delay_s is None:
            delay_s = self.rng.uniform(0.05, self.times.death_s)
        self.timeline.later(delay_s, lambda: self._learn_of_death(agent))
        return True

    def _learn_of_death(self, agent: SimAgent) -> None:
        if self.cluster is not None:
            self.cluster.died(agent)

    def ask(self, request: Any) -> None:
        """A person lays a request on the desk."""
        self.requests.append(request)
        if self.cluster is not None:
            self.cluster.wake()
