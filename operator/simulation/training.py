"""A model of training that a learning rate can make sick, and the disk that keeps its states.

One number says how sick the weights are. Below 1 it heals by itself under a rate that the run can
bear; from 1 on it only grows, whatever the rate, as real divergences do, and only older weights
help. Loss, gradient norm, activation norm and loss scale all follow from it. The schedule, the
effect of commands and the loss scaler are the trainer's own code.
"""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING, Any

import msgspec

from ...checkpoints.manifest import checkpoint_id
from ...logbook.wire import CheckpointTags, Hyper, StepSample
from .rules import ScalerState, TrainConfig, advance, data_step_for, lr_at

if TYPE_CHECKING:
    from .world import Setting

NO_RETURN = 1.0
_LARGEST_FP16 = 65_504.0
_GROWTH = 1.3


class Fragility(msgspec.Struct, frozen=True):
    """From first_step to before last_step, rates above `factor` of the schedule make it sick.

    climb: by so much a step; 0 lets it grow by the half, as a rate far above does.
    """

    first_step: int
    last_step: int
    factor: float
    climb: float = 0.0


class Physics(msgspec.Struct, frozen=True):
    """What this run can bear.

    bearable: multiple of the scheduled rate above which the weights sicken.
    fragile: stretches in which less is bearable. poison: data steps that sicken at any rate.
    bumps: (step, sickness) that heals by itself: a spike.
    loss_gain: how much of the sickness the loss shows; 0 leaves it to the loss scaler to tell.
    nan_from: sickness from which the loss is not finite.
    no_return: sickness from which it only grows. heal: what a bearable step leaves of it.
    """

    seed: int = 0
    bearable: float = 4.0
    fragile: tuple[Fragility, ...] = ()
    poison: frozenset[int] = frozenset()
    bumps: tuple[tuple[int, float], ...] = ()
    loss_gain: float = 1.0
    nan_from: float = 1e9
    no_return: float = NO_RETURN
    heal: float = 0.7

    @property
    def surely_bearable(self) -> float:
        """A multiple that is bearable in any stretch."""
        return min([self.bearable, *(f.factor for f in self.fragile)])


class Weights(msgspec.Struct, frozen=True):
    """Everything that a checkpoint holds."""

    step: int = 0
    sickness: float = 0.0
    scaler: Any = ScalerState(64.0)


def train_config(steps: int, interval_steps: int) -> Any:
    """Return a trainer section for a simulated run."""
    return TrainConfig.model_validate(
        {
            "preset": "tiny",
            "steps": steps,
            "data": {"dir": "simulated"},
            "checkpoint": {"interval_steps": interval_steps},
        }
    )


def train_one(weights: Weights, hyper: Hyper, setting: Setting) -> tuple[Weights, StepSample]:
    """Return the weights after one more step, and what the step reports, but for its time. Pure."""
    config, physics, step_s = setting.config, setting.physics, setting.times.step_s
    step = weights.step + 1
    data_step = data_step_for(weights.step, hyper.skipped)
    lr = scheduled = lr_at(step, config.optimizer, config.schedule)
    if hyper.lr_changes:
        lr = lr_at(step, config.optimizer, config.schedule, hyper.lr_changes)
    scale = weights.scaler.scale
    grad_norm = (0.5 + 0.5 * weights.sickness) * (1.0 + 0.05 * _noise(physics, step, "grad"))
    found_inf = grad_norm * (1.0 + weights.sickness) * scale > _LARGEST_FP16
    sample = StepSample(
        step=step,
        time_s=0.0,
        loss=_loss(weights, physics, step),
        grad_norm=math.inf if found_inf else grad_norm,
        lr=lr,
        activation_norm=_activation_norm(weights, physics, step),
        found_inf=found_inf,
        skipped=found_inf,
        loss_scale=scale,
        tokens=setting.sizes.step_tokens,
        data_step=data_step,
        step_s=step_s,
        tokens_per_s=setting.sizes.step_tokens / step_s,
        model_tflops_per_device=setting.sizes.device_tflops,
    )
    sickness = weights.sickness
    if not found_inf:
        sickness = _next_sickness(sickness, lr / scheduled, step, data_step, physics)
    return Weights(step, sickness, advance(weights.scaler, found_inf, config.loss_scaler)), sample


def tags_of(sample: StepSample) -> CheckpointTags:
    """Return the health tags of a checkpoint taken right after a step."""
    return CheckpointTags(
        loss=sample.loss,
        grad_norm=sample.grad_norm,
        activation_norm=sample.activation_norm,
        loss_scale=sample.loss_scale,
        lr=sample.lr,
    )


def _next_sickness(
    sickness: float, multiple: float, step: int, data_step: int, physics: Physics
) -> float:
    if data_step in physics.poison:
        return sickness + 2.0
    bump = sum(amount for at, amount in physics.bumps if at == step)
    if bump:
        return sickness + bump
    if not sickness and multiple <= physics.surely_bearable:
        return 0.0
    if sickness >= physics.no_return:
        return min(sickness * _GROWTH, 1e12)
    met = [f for f in physics.fragile if f.first_step <= step < f.last_step]
    bearable = min([physics.bearable, *(f.factor for f in met)])
    if multiple <= bearable * (1 + 1e-9):
        return sickness * physics.heal
    climb = max((f.climb for f in met), default=0.0)
    # A rate just above what is bearable does not sicken a run faster than one far above.
    return sickness + climb if climb else (sickness + 0.05) * 1.5


def _loss(weights: Weights, physics: Physics, step: int) -> float:
    if weights.sickness >= physics.nan_from:
        return math.nan
    healthy = 4.0 + 5.0 * math.exp(-step / 150.0) + 0.02 * _noise(physics, step, "loss")
    return healthy + physics.loss_gain * min(weights.sickness, 10.0)


def _activation_norm(weights: Weights, physics: Physics, step: int) -> float:
    noise = 0.01 * _noise(physics, step, "activation")
    return 100.0 * (1.0 - 2e-4 * min(step, 2000)) + noise + min(weights.sickness, 1e6)


def _noise(physics: Physics, step: int, what: str) -> float:
    """Return a number in [-1, 1) that follows from the seed and the step alone."""
    return zlib.crc32(f"{physics.seed}/{step}/{what}".encode()) / 2**31 - 1.0


class Saved(msgspec.Struct):
    """A committed checkpoint. is_corrupt: a bit has rotted, which only reading it back shows.

    misread_loads: so many loads find a bad copy although there is a sound one. is_unfit: it loads,
    but no step can be made from what is in it. recent: the last steps before it, oldest first.
    """

    id: str
    step: int
    attempt: int
    weights: Weights
    tags: CheckpointTags
    recent: tuple[StepSample, ...] = ()
    is_corrupt: bool = False
    misread_loads: int = 0
    is_unfit: bool = False


class Disk:
    """The checkpoint store that all nodes share. ever: every id that was ever committed.

    loads_total: of whole states, so far.
    """

    def __init__(self) -> None:
        self.saved: dict[str, Saved] = {}
        self.ever: set[str] = set()
        self.loads_total = 0

    def commit(
        self,
        weights: Weights,
        attempt: int,
        tags: CheckpointTags,
        recent: tuple[StepSample, ...] = (),
    ) -> Saved:
        """Make a checkpoint appear."""
        name = checkpoint_id(weights.step, attempt)
        self.saved[name] = Saved(name, weights.step, attempt, weights, tags, recent)
        self.ever.add(name)
        return self.saved[name]

    def problem(self, name: str) -> str:
        """Return what reading a checkpoint back would say; "" means that it is sound."""
        found = self.saved.get(name)
        if found is None:
            return "checkpoint-missing: no manifest"
        return "shard-corrupt: SHA-256 differs" if found.is_corrupt else ""

    def load(self, candidates: tuple[str, ...]) -> tuple[Saved | None, tuple[tuple[str, str], ...]]:
        """Return the first sound candidate and why each before it was passed over."""
        passed: list[tuple[str, str]] = []
        for name in candidates:
            problem = self.problem(name)
            found = self.saved.get(name)
            if found is not None and found.misread_loads > 0:
                found.misread_loads -= 1
                problem = "rank 1: [shard-checksum] not the bytes that were written"
            if not problem:
                return self.saved[name], tuple(passed)
            passed.append((name, problem))
        return None, tuple(passed)
