"""When things fail: draws from a failure model, in virtual time, from a seed of its own."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import msgspec

from ..runtime.names import node_names
from .failure_models import CORRUPTION, HOUR_S, Cause, FailureModel
from .pace import LEAD_STEPS
from .strikes import BREAKS, Chance, Strikes
from .traces import CLUSTER, Trace, TraceEntry, lay_out
from .training import Fragility
from .world import World

INFANT_S = 600.0
SAME_AGAIN = "same machine again"
FRAGILE_STEPS = 400
FRAGILE_FACTOR = 0.95


class Strike(msgspec.Struct, frozen=True):
    """Something that really happened. node: where; "" for the whole cluster or its store.

    hurts: whether the run could not go on as it was.
    """

    time_s: float
    cause: str
    node: str
    hurts: bool


class Nature:
    """Lets a failure model loose on a world. strikes: what happened so far."""

    def __init__(self, world: World, model: FailureModel, chance: Chance, seed: int) -> None:
        self.strikes: list[Strike] = []
        self._world = world
        self._model = model
        self._rng = random.Random(f"{seed}/nature")
        self._doing = Strikes(world, chance, self._rng)
        spec = world.spec
        self._names = node_names(spec.num_nodes, spec.nodes.spares)
        self._gpus = len(self._names) * spec.nodes.ranks_per_node
        self._mesh_gpus = spec.num_nodes * spec.nodes.ranks_per_node
        lemons = round(model.lemon_frac * len(self._names))
        self._lemons = set(self._rng.sample(self._names, lemons))
        self._broken: dict[str, str] = {}
        self._causes = [(cause, cause.per_gpu_hour) for cause in model.causes]

    def let_loose(self) -> None:
        """Begin: arm every kind of event that can happen."""
        model = self._model
        # Nodes are drawn evenly and thinned by their weight, so the rate is that of the heaviest.
        drawn_per_gpu_hour = model.per_gpu_hour * model.drawn_frac
        self._every(drawn_per_gpu_hour * self._gpus * self._heaviest, self._fail_somewhere)
        self._every(model.groups_per_hour(self._mesh_gpus), self._take_group)
        self._every(model.per_hour_outages, self._take_cluster)
        self._every(model.per_hour_store, self._take_store)
        self._every(model.per_gpu_hour_slow * self._gpus, self._slow_down)

    def follow(self, trace: Trace, seed: int) -> None:
        """Arm every failure of a record."""
        for entry in lay_out(trace, self._names, seed):
            self._world.timeline.later(entry.at_s, partial(self._repeat, entry))

    def _repeat(self, entry: TraceEntry) -> None:
        if entry.effect == CLUSTER:
            self.take_cluster(entry.for_s)
        else:
            self.strike(entry.effect, entry.effect, entry.node)

    @property
    def _heaviest(self) -> float:
        return self._model.lemon_multiple if self._model.lemon_frac else 1.0

    def is_new(self, node: str) -> None:
        """A node runs on another machine: that may be a lemon, or fail soon, or both."""
        model = self._model
        self._broken.pop(node, None)
        self._lemons.discard(node)
        if model.lemon_frac and self._rng.random() < model.lemon_frac:
            self._lemons.add(node)
        if model.infant_frac and self._rng.random() < model.infant_frac:
            after_s = self._rng.uniform(0.0, INFANT_S)
            self._world.timeline.later(after_s, lambda: self._strike(self._cause(), node))

    def is_same(self, node: str) -> None:
        """A node was given back on the machine that had failed: it fails again once it works."""
        after_s = self._rng.uniform(0.0, INFANT_S)
        self._world.timeline.later(after_s, lambda: self._fail_again(node))

    def _fail_again(self, node: str) -> None:
        effect = self._broken.get(node)
        if effect is None:
            return
        if self._doing.rank_on(node) is None:
            self.is_same(node)
        else:
            self.strike(SAME_AGAIN, effect, node)

    def _every(self, per_hour: float, action: Callable[[], None]) -> None:
        if per_hour <= 0.0:
            return

        def again() -> None:
            action()
            self._world.timeline.later(self._rng.expovariate(per_hour / HOUR_S), again)

        self._world.timeline.later(self._rng.expovariate(per_hour / HOUR_S), again)

    # --- what happens ----------------------------------------------------------------------------

    def _fail_somewhere(self) -> None:
        node = self._rng.choice(self._names)
        weight = self._model.lemon_multiple if node in self._lemons else 1.0
        if self._rng.random() * self._heaviest < weight:
            self._strike(self._cause(), node)

    def _cause(self) -> Cause:
        causes, weights = zip(*self._causes, strict=True)
        found: Cause = self._rng.choices(causes, weights)[0]
        return found

    def _strike(self, cause: Cause, node: str) -> None:
        self.strike(cause.name, cause.effect, node)

    def _take_group(self) -> None:
        """Hosts of one rack or switch go at once."""
        count = self._rng.randint(2, max(self._model.group_max, 2))
        first = self._rng.randrange(len(self._names))
        for index in range(count):
            node = self._names[(first + index) % len(self._names)]
            self._note("host group", node, self._doing.host(node))

    def _take_cluster(self) -> None:
        self.take_cluster(self._model.outage_hours * HOUR_S)

    def strike(self, cause: str, effect: str, node: str) -> None:
        """Let a cause take effect on a node, and write it down."""
        hurts = self._doing.strike(effect, node)
        if effect in BREAKS:
            self._broken[node] = effect
        lead_s = LEAD_STEPS * self._world.times.step_s if effect == CORRUPTION else 0.0
        self.strikes.append(Strike(self._world.timeline.now_s() + lead_s, cause, node, hurts))

    def take_cluster(self, for_s: float) -> None:
        """Let every machine go at once, for so long."""
        for node in self._names:
            self._world.lose_machine(node, for_s)
        self._note("cluster outage", "", True)

    def _take_store(self) -> None:
        now_s, storage = self._world.timeline.elapsed_s, self._world.storage
        for_s = self._doing.chance.draw_s(self._model.store_minutes * 60.0, self._rng)
        storage.down_until_s = max(storage.down_until_s, now_s + for_s)
        self._note("storage outage", "", False)

    def _slow_down(self) -> None:
        node = self._rng.choice(self._names)
        self._doing.slow(node, self._model.slow_factor)
        self._note("slow node", node, False)

    def _note(self, cause: str, node: str, hurts: bool) -> None:
        self.strikes.append(Strike(self._world.timeline.now_s(), cause, node, hurts))


def fragile_stretches(model: FailureModel, num_steps: int, seed: int) -> tuple[Fragility, ...]:
    """Return the stretches of a run in which the scheduled rate is more than it bears."""
    rng = random.Random(f"{seed}/fragile")
    rate = model.divergences_per_1000_steps / 1000.0
    found: list[Fragility] = []
    step = rng.expovariate(rate) if rate > 0 else num_steps
    while step < num_steps:
        found.append(Fragility(int(step), int(step) + FRAGILE_STEPS, FRAGILE_FACTOR))
        step += FRAGILE_STEPS + rng.expovariate(rate)
    return tuple(found)
