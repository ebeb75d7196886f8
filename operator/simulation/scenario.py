"""A scenario: a run, what fails around it, who mends it, and for how long it is watched."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

from ..spec import RunSpec
from .conditions import Sizes, Times
from .drive import Turning
from .failure_models import FailureModel, model_named
from .nature import fragile_stretches
from .people import Crew
from .rules import TrainConfig
from .strikes import Chance
from .traces import Trace
from .training import Physics
from .world import Setting

DAY_S = 86_400.0
GPUS_PER_NODE = 8
# Of a run of hundreds of nodes and hundreds of gigabytes of state; a spec names none of them.
LARGE = Times(
    step_s=20.0,
    load_s=60.0,
    save_s=60.0,
    blocked_s=1.0,
    preload_s=30.0,
    boot_s=5.0,
    fork_s=1.0,
    rendezvous_s=300.0,
    peer_exit_s=60.0,
    wire_s=0.05,
    verify_s=60.0,
    preflight_s=60.0,
    status_s=None,
    memory_copy_s=0.5,
    memory_load_s=10.0,
)
CALM = Turning(tick_s=1.0, calm_s=60.0, turn_s=0.1, restart_s=10.0)


class Scenario(msgspec.Struct, frozen=True):
    """Everything that a simulated run follows from, but for its seed.

    horizon_s: how long it is watched, if it does not end before. trace: recorded failures, struck
    besides what the model draws.
    """

    spec: RunSpec
    config: Any
    model: FailureModel
    horizon_s: float
    times: Times = LARGE
    sizes: Sizes = Sizes()
    chance: Chance = Chance()
    crew: Crew = Crew()
    turning: Turning = CALM
    trace: Trace | None = None

    def setting(self, seed: int) -> Setting:
        """Return the world of one seed."""
        fragile = fragile_stretches(self.model, self.config.steps, seed)
        recorded = self.trace.fragile if self.trace is not None else ()
        physics = Physics(seed=seed, fragile=(*fragile, *recorded))
        return Setting(
            self.spec, self.config, seed, physics, self.times, self.sizes, keeps_samples=False
        )


class Size(msgspec.Struct, frozen=True):
    """The figures that a scenario without a spec is made of. interval_steps: between saves."""

    gpus: int = 992
    days: float = 60.0
    spares: int = 8
    interval_steps: int = 150
    bytes_per_gpu: int = 1_700_000_000


def sized_scenario(
    size: Size, model: FailureModel | str, times: Times = LARGE, crew: Crew | None = None
) -> Scenario:
    """Return the scenario of a run of so many GPUs. Raises: as the spec and failure model do."""
    per_node = min(size.gpus, GPUS_PER_NODE)
    horizon_s = size.days * DAY_S
    # More than can be made in that time, so that the run outlasts it.
    steps = int(horizon_s / times.step_s) + 1000
    trainer = {
        "preset": "175B",
        "steps": steps,
        "data": {"dir": "simulated"},
        "schedule": {"decay_steps": steps},
        "checkpoint": {"interval_steps": size.interval_steps},
    }
    spec = RunSpec.model_validate(
        {
            "name": f"simulated-{size.gpus}",
            "mesh": {"dp_shard": size.gpus // per_node, "tp": per_node},
            "nodes": {
                "ranks_per_node": per_node,
                "spares": size.spares,
                "preflight": "quick" if size.gpus <= 4096 else "off",
            },
            "trainer": trainer,
        }
    )
    return spec_scenario(spec, model, horizon_s, times, crew=crew, per_gpu=size.bytes_per_gpu)


def spec_scenario(
    spec: RunSpec,
    model: FailureModel | str,
    horizon_s: float,
    times: Times = LARGE,
    *,
    crew: Crew | None = None,
    per_gpu: int = 1_700_000_000,
) -> Scenario:
    """Return the scenario of a run spec. per_gpu: bytes of state on one GPU."""
    config = TrainConfig.model_validate(spec.trainer)
    spec = spec.model_copy(update={"trainer": config.model_dump(mode="json")})
    tokens = config.global_batch_size * config.seq_len
    sizes = Sizes(per_gpu * spec.world_size, tokens, 150.0)
    return Scenario(
        spec=spec,
        config=config,
        model=model_named(model) if isinstance(model, str) else model,
        horizon_s=horizon_s,
        times=times,
        sizes=sizes,
        crew=crew or Crew(),
    )


def with_spares(scenario: Scenario, spares: int) -> Scenario:
    """Return the scenario with another number of spares."""
    nodes = scenario.spec.nodes.model_copy(update={"spares": spares})
    return replace(scenario, spec=scenario.spec.model_copy(update={"nodes": nodes}))


def with_interval(scenario: Scenario, steps: int) -> Scenario:
    """Return the scenario with another number of steps between saves."""
    checkpoint = scenario.config.checkpoint.model_copy(update={"interval_steps": steps})
    config = scenario.config.model_copy(update={"checkpoint": checkpoint})
    spec = scenario.spec.model_copy(update={"trainer": config.model_dump(mode="json")})
    return replace(scenario, spec=spec, config=config)
