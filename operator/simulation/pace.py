"""How fast an attempt trains, given its slowest node, and what each rank shows of that.

Ranks report their own times only while a node of theirs is slow or computes numbers that are off,
and so long that detectors have made up their mind: of a fleet in which all ranks are alike there is
nothing to compare, and a month of it would be nothing but that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from ...logbook.plan import AttemptPlan, Placement
from ...logbook.wire import RankSample
from ..agent.reports import RankSamples
from .training import Weights

if TYPE_CHECKING:
    from .gang import Gang
    from .world import World

WATCHED_STEPS = 120
LEAD_STEPS = 24
"""Corruption sets in so many watched steps after it was ordered: what is usual must be known, as it
is in life, where ranks are watched all the time."""
_SHARES = (("data_s", 0.01), ("forward_s", 0.29), ("backward_s", 0.58), ("optimizer_s", 0.02))
_COMM = 0.1


class Pace:
    """step_s: how long a step takes. is_watched: whether the ranks' own times are told."""

    def __init__(self, world: World, plan: AttemptPlan) -> None:
        self._world = world
        self._plan = plan
        self._watched_steps = 0
        self._is_corrupt = False
        self._lead_steps = 0
        self.step_s = world.times.step_s
        self.look()

    def look(self) -> None:
        """Take in which nodes are slow or off now."""
        trouble, nodes = self._world.trouble, self._plan.nodes
        if not (trouble.slow or trouble.corrupt):
            self.step_s, self._is_corrupt = self._world.times.step_s, False
            return
        slowest = max(trouble.slow.get(node, 1.0) for node in nodes)
        was_corrupt = self._is_corrupt
        self._is_corrupt = any(node in trouble.corrupt for node in nodes)
        if self._is_corrupt and not was_corrupt:
            self._lead_steps = LEAD_STEPS
        if slowest > 1.0 or self._is_corrupt:
            self._watched_steps = WATCHED_STEPS
        # Communication takes no longer where computing does.
        self.step_s = self._world.times.step_s * (_COMM + (1.0 - _COMM) * slowest)

    @property
    def is_watched(self) -> bool:
        return self._watched_steps > 0

    def sickened(self, weights: Weights) -> Weights:
        """Return the weights with what a corrupt node does to them in one step."""
        if not self._is_corrupt or self._lead_steps:
            return weights
        return replace(weights, sickness=weights.sickness + 0.02)

    def tell(self, gang: Gang, step: int) -> None:
        """Let every node report its ranks' own times and numbers of a step."""
        self._watched_steps -= 1
        self._lead_steps = max(self._lead_steps - 1, 0)
        for place in self._plan.placements:
            agent = gang.workers[place.first_rank].agent
            agent.report(
                RankSamples(
                    attempt=gang.attempt, batch=self._batch(place, step), stride=1, dropped_total=0
                )
            )

    def _batch(self, place: Placement, step: int) -> tuple[RankSample, ...]:
        trouble, rng = self._world.trouble, self._world.rng
        base_s, factor = self._world.times.step_s, trouble.slow.get(place.node, 1.0)
        # One rank of a corrupt node is off; its neighbours are sound.
        off = 0.0 if self._lead_steps else trouble.corrupt.get(place.node, 0.0)
        samples = []
        for index in range(place.num_ranks):
            noise = 1.0 + 0.01 * rng.random()
            times = {name: share * base_s * factor * noise for name, share in _SHARES}
            own_s = sum(times.values())
            samples.append(
                RankSample(
                    rank=place.first_rank + index,
                    step=step,
                    step_s=self.step_s,
                    comm_s=max(self.step_s - own_s, 0.0),
                    local_loss=2.0 + 0.02 * rng.random(),
                    local_grad_norm=(0.3 + 0.01 * rng.random()) * (1.0 + off * (index == 0)),
                    found_inf=False,
                    **times,
                )
            )
        return tuple(samples)
