"""What commands do to the simulated ranks of an attempt, and when, as the trainer's loop does.

One set of values stands for all ranks: they agree on every command before any of them takes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from ...logbook.hyper import ONCE
from ...logbook.plan import AttemptPlan
from ...logbook.wire import Command, Hyper, WorkerMessage
from .rules import ScalerState, due_commands, lr_at, plan_due, plan_effect, save_interval_steps
from .sayings import applied, turned
from .training import Weights

Say = Callable[[Callable[[int], WorkerMessage]], None]


class Steering:
    """The changes in force in one attempt. say: lets every rank say something."""

    def __init__(self, plan: AttemptPlan, config: Any, say: Say) -> None:
        self.hyper = plan.hyper
        self.interval_steps = save_interval_steps(plan.hyper, config)
        self._mesh = plan.mesh
        self._config = config
        self._say = say

    @property
    def is_plain(self) -> bool:
        """Whether nothing was ever changed, so that no step has anything to say."""
        return self.hyper == Hyper()

    def take(self, commands: list[Command], weights: Weights) -> tuple[Weights, bool, bool]:
        """Return the weights, whether to save, and whether to stop, after commands and due ones."""
        config, next_step = self._config, weights.step + 1
        effects, told = [], set()
        for command in commands:
            effect = plan_effect(command, self.hyper, next_step, config, self._mesh)
            weights = self._apply(command, effect, weights)
            effects.append(effect)
            told.add(command.cause)
        for command in due_commands(self.hyper, next_step):
            effect = plan_due(command, self.hyper, config, self._mesh)
            weights = self._apply(command, effect, weights)
            effects.append(effect)
            told.add(command.cause)
        weights = self._tell_turns(told, weights)
        return weights, any(e.is_save for e in effects), any(e.is_stop for e in effects)

    def catch_up(self, weights: Weights) -> Weights:
        """Return the weights after what fell due before the step that is resumed from."""
        told = set()
        for command in due_commands(self.hyper, weights.step + 1):
            if command.kind not in ONCE:
                effect = plan_due(command, self.hyper, self._config, self._mesh)
                weights = self._apply(command, effect, weights)
                told.add(command.cause)
        return self._tell_turns(told, weights)

    def readback(self, weights: Weights) -> dict[str, float]:
        """Return what each rank reads from its optimizer for the next step."""
        config, step = self._config, weights.step + 1
        optimizer = config.optimizer

        def at(parameter: str, otherwise: float) -> float:
            value = self.hyper.value_at(parameter, step)
            return otherwise if value is None else value

        return {
            "lr": lr_at(step, optimizer, config.schedule, self.hyper.lr_changes),
            "grad_clip": at("grad-clip", optimizer.grad_clip),
            "beta1": at("beta1", optimizer.beta1),
            "beta2": at("beta2", optimizer.beta2),
            "eps": at("eps", optimizer.eps),
            "weight_decay": at("weight-decay", optimizer.weight_decay),
            "loss_scale": weights.scaler.scale,
            "loss_scale_floor": at("loss-scale-floor", config.loss_scaler.floor),
            "save_interval_steps": float(save_interval_steps(self.hyper, config)),
        }

    def _apply(self, command: Command, effect: Any, weights: Weights) -> Weights:
        previous = self.readback(weights)
        self.hyper = effect.hyper
        self.interval_steps = save_interval_steps(self.hyper, self._config)
        weights = self._with_scale(weights)
        self._say(applied(command, previous, self.readback(weights), effect))
        return weights

    def _tell_turns(self, told: set[str], weights: Weights) -> Weights:
        next_step = weights.step + 1
        weights = self._with_scale(weights)
        turns = [(c, "applied") for c in self.hyper.begun_at(next_step) if c not in told]
        turns += [(c, "expired") for c in self.hyper.ended_at(next_step)]
        for cause, phase in turns:
            self._say(turned(next_step, self.readback(weights), phase, cause))
        return weights

    def _with_scale(self, weights: Weights) -> Weights:
        scale = self.hyper.struck_at("loss-scale", weights.step + 1)
        return weights if scale is None else replace(weights, scaler=ScalerState(scale))
