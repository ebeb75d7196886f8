"""What each cause of failure does to the simulated world."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec

from ...health.nodes.xid import explain
from ...logbook.findings import Finding, Severity
from . import failure_models as fm
from .world import World

XID_GPU_LOST = 79
SICK = "memory"
"""The check of a preflight that fails where a GPU is broken."""
_CUDA = "CUDA error: uncorrectable ECC error encountered"
_BUG = "RuntimeError: shape mismatch in the data pipeline"


class Chance(msgspec.Struct, frozen=True):
    """How long what breaks stays broken, in seconds; each is drawn around its median.

    repair_s: until a machine that went down boots again. flap_s: of a network port.
    """

    repair_s: float = 4 * 3600.0
    flap_s: float = 120.0
    spread: float = 0.7

    def draw_s(self, median_s: float, rng: random.Random) -> float:
        """Return a duration around a median, log-normally spread."""
        return median_s * rng.lognormvariate(0.0, self.spread)


class Strikes:
    """Strikes at a node of the world; rng decides the details."""

    def __init__(self, world: World, chance: Chance, rng: random.Random) -> None:
        self.world = world
        self.chance = chance
        self.rng = rng

    def strike(self, effect: str, node: str) -> bool:
        """Let a cause take effect on a node; return whether it hurt anybody."""
        return EFFECTS[effect](self, node)

    # --- what each does ---------------------------------------------------------------------------

    def rank_on(self, node: str) -> int | None:
        """Return a rank of the live attempt on a node, None where it carries none."""
        gang = self.world.live_gang
        place = None
        if gang is not None:
            place = next((p for p in gang.plan.placements if p.node == node), None)
        if place is None:
            return None
        return place.first_rank + self.rng.randrange(place.num_ranks)

    def kill(self, node: str) -> bool:
        rank = self.rank_on(node)
        return rank is not None and self.world.kill_worker(rank)

    def gpu(self, node: str) -> bool:
        # A GPU that fell off the bus stays bad until people have replaced it; a host that went down
        # is away instead.
        self.world.trouble.sick[node] = SICK
        rank = self.rank_on(node)
        fact = explain(XID_GPU_LOST)
        finding = Finding(
            detector="xid",
            kind=f"xid-{fact.code}",
            severity=Severity.WARN,
            step=0,
            onset_step=0,
            value=float(fact.code),
            reference=0.0,
            message=f"XID {fact.code}: {fact.name}",
            action=str(fact.action),
        )
        self.world.find(node, finding)
        return rank is not None and self.world.fail_worker(rank, "worker-raised", _CUDA)

    def software(self, node: str) -> bool:
        rank = self.rank_on(node)
        return rank is not None and self.world.fail_worker(rank, "worker-raised", _BUG)

    def host(self, node: str) -> bool:
        carried = self.rank_on(node) is not None
        self.world.lose_machine(node, self.chance.draw_s(self.chance.repair_s, self.rng))
        return carried

    def network(self, node: str) -> bool:
        self.world.wire.cut(node, self.chance.draw_s(self.chance.flap_s, self.rng))
        gang = self.world.live_gang
        carried = self.rank_on(node) is not None
        if carried and gang is not None and gang.is_training:
            gang.freeze()
        return carried

    def hang(self, node: str) -> bool:
        rank = self.rank_on(node)
        return rank is not None and self.world.stop_worker(rank)

    def corruption(self, node: str) -> bool:
        self.world.corrupt(node, by=20.0)
        return self.rank_on(node) is not None

    def ssd(self, node: str) -> bool:
        self.world.storage.failing_saves = max(self.world.storage.failing_saves, 0) + 1
        return False

    def slow(self, node: str, factor: float) -> None:
        self.world.slow_down(node, factor)


BREAKS = (fm.GPU, fm.HOST)
"""Effects that break a machine: the same one given back fails again."""
EFFECTS: dict[str, Callable[[Strikes, str], bool]] = {
    fm.KILL: Strikes.kill,
    fm.GPU: Strikes.gpu,
    fm.SOFTWARE: Strikes.software,
    fm.HOST: Strikes.host,
    fm.NETWORK: Strikes.network,
    fm.HANG: Strikes.hang,
    fm.CORRUPTION: Strikes.corruption,
    fm.SSD: Strikes.ssd,
}
