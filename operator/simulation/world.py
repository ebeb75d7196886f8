"""The seeded world in which the real controller runs: nodes, wire, storage, people; virtual time.

    timeline.py     virtual time
    rules.py        the trainer's own code, by name
    training.py     what a learning rate does to weights; the disk
    memory_tier.py  what the nodes' memory gives back
    conditions.py   how long things take, and what faults have prepared
    gang.py         the workers of one attempt
    agent.py        a node agent
    wire.py         the network between agents and controller
    world.py        the whole, and what can be done to it
    edges.py        the controller's ports over it
    drive.py        turns the controller, and ends it and starts it again

Nothing here decides anything: it carries out orders, and suffers faults.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import msgspec

from ...checkpoints.manifest import RECENT_STEPS, checkpoint_id
from ...health.nodes.lemons import MachineIdentity
from ...logbook.events import Event
from ...logbook.findings import Finding
from ...logbook.plan import AttemptPlan
from ...logbook.wire import StepSample
from ..spec import RunSpec
from .agent import SimAgent
from .conditions import Sizes, Storage, Times, Trouble
from .gang import Gang, Life
from .memory_tier import MemoryTier
from .timeline import Timeline
from .training import Disk, Physics
from .wire import Wire

if TYPE_CHECKING:
    from .edges import SimCluster

KEPT_GANGS = 3


class Setting(msgspec.Struct, frozen=True):
    """What a world is made with. config: the trainer section, as the trainer's model.

    keeps_samples: remember every step that was made, for whoever compares curves.
    """

    spec: RunSpec
    config: Any
    seed: int = 0
    physics: Physics = Physics()
    times: Times = Times()
    sizes: Sizes = Sizes()
    keeps_samples: bool = True

    @property
    def recalled_steps(self) -> int:
        """How many steps a saved state tells of: all that the trainer's do, where anybody looks."""
        return RECENT_STEPS if self.keeps_samples else 16


class World:
    """Everything outside the controller. cluster: the ports of the controller of the moment."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.spec = setting.spec
        self.config = setting.config
        self.physics = setting.physics
        self.times = setting.times
        self.rng = random.Random(setting.seed)
        self.timeline = Timeline()
        self.trouble = Trouble(self.times)
        self.storage = Storage(self.times)
        self.wire = Wire(self)
        self.disk = Disk()
        self.memory = MemoryTier(self.spec, self.times)
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

    def next_pids(self, count: int = 1) -> range:
        self._pids += count
        return range(self._pids - count + 1, self._pids + 1)

    def gang(self, plan: AttemptPlan) -> Gang:
        """Return the gang of an attempt; its first agent to fork makes it."""
        known = self.gangs.get(plan.attempt)
        if known is not None:
            return known
        for attempt in sorted(self.gangs)[: -(KEPT_GANGS - 1)]:
            if not self.gangs[attempt].num_left:
                del self.gangs[attempt]
        self.gangs[plan.attempt] = Gang(self, plan)
        return self.gangs[plan.attempt]

    def trained(self, gang: Gang, sample: StepSample) -> None:
        """Note a step that was really made."""
        if self.setting.keeps_samples:
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
            if self.gangs[attempt].num_left:
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

    def fail_worker(self, rank: int, code: str, message: str) -> bool:
        """Let one worker end by itself, with last words."""
        gang = self.live_gang
        if gang is None or rank not in gang.workers:
            return False
        return gang.fail(rank, code, message)

    def stop_worker(self, rank: int) -> bool:
        """SIGSTOP one worker: alive, silent, and everybody waits for it."""
        gang = self.live_gang
        return gang is not None and gang.stop_worker(rank)

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

    def lose_machine(self, node: str, for_s: float) -> bool:
        """Let a machine go down with all that is on it; nothing boots on it for some time."""
        self.absent[node] = max(self.absent.get(node, 0.0), self.timeline.elapsed_s + for_s)
        self.timeline.later(for_s + 0.001, self._look_again)
        return self.kill_agent(node)

    def find(self, node: str, *findings: Finding) -> None:
        """Let a node's agent see something on its own node."""
        agent = self.agents.get(node)
        if agent is not None:
            agent.find(*findings)

    def slow_down(self, node: str, factor: float) -> None:
        """Let a node's ranks compute factor times as long; everybody waits for them."""
        self.trouble.slow[node] = factor
        if self.live_gang is not None:
            self.live_gang.pace_changed()

    def corrupt(self, node: str, by: float) -> None:
        """Let a node compute numbers that are off, and sicken the weights with them."""
        self.trouble.corrupt[node] = by
        if self.live_gang is not None:
            self.live_gang.pace_changed()

    def ask(self, request: Any) -> None:
        """A person lays a request on the desk."""
        self.requests.append(request)
        if self.cluster is not None:
            self.cluster.wake()

    def _learn_of_death(self, agent: SimAgent) -> None:
        if self.cluster is not None:
            self.cluster.died(agent)

    def _look_again(self) -> None:
        if self.cluster is not None:
            self.cluster.look_again()
