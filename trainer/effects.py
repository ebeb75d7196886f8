"""What an order does to a run: pure functions, so that all ranks come to the same result.

That holds for errors as well: an order that cannot be carried out is refused by every rank alike
and leaves the run as it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from msgspec.structs import replace

from ..logbook.errors import ConfigError
from ..logbook.hyper import ONCE, Command, Hyper, LrChange, Setting
from ..logbook.parameters import GROUPS, PARAMETERS, parse_range, values_of
from ..logbook.wire import Mesh
from .config import TrainConfig
from .data.sampler import data_step_for
from .schedule import factor_for_lr


@dataclass(frozen=True)
class Effect:
    """What a command does: a changed hyper, a save, a stop, or an error and nothing at all.

    at_step is the first step under it, until_step the first no longer under it (None: for good).
    phase: "scheduled" where at_step is still to come.
    """

    hyper: Hyper
    at_step: int
    is_changed: bool = False
    is_save: bool = False
    is_stop: bool = False
    error: str = ""
    phase: str = "applied"
    until_step: int | None = None


def plan_effect(
    command: Command, hyper: Hyper, next_step: int, config: TrainConfig, mesh: Mesh
) -> Effect:
    """Return what a command just taken does to a run whose next step is next_step."""
    try:
        if not command.at_step:
            return _effect(command, hyper, next_step, config, mesh)
        first = _first_step(command)
        if first < next_step:
            raise ConfigError(
                "step-passed",
                f"{command.kind} was meant for step {command.at_step}, the next one is {next_step}",
                remedy="Name a later step.",
            )
        effect = _effect(command, hyper, first, config, mesh)
        if first == next_step:
            return effect
        waiting = replace(hyper, scheduled=(*hyper.scheduled, command))
        return Effect(waiting, first, True, phase="scheduled", until_step=effect.until_step)
    except ConfigError as error:
        return Effect(hyper, next_step, error=f"{error.code}: {error.message}")


def due_commands(hyper: Hyper, next_step: int) -> list[Command]:
    """Return the scheduled commands whose step has come, in the order in which they were given."""
    return [command for command in hyper.scheduled if _first_step(command) <= next_step]


def plan_due(command: Command, hyper: Hyper, config: TrainConfig, mesh: Mesh) -> Effect:
    """Return what a scheduled command does; it is then no longer scheduled.

    It counts from its own step, also where the run goes on behind that: a state from there was
    made under it.
    """
    left = replace(hyper, scheduled=tuple(c for c in hyper.scheduled if c != command))
    first = _first_step(command)
    try:
        effect = _effect(command, left, first, config, mesh)
    except ConfigError as error:
        return Effect(left, first, True, error=f"{error.code}: {error.message}")
    return Effect(
        effect.hyper, first, True, effect.is_save, effect.is_stop, until_step=effect.until_step
    )


def save_interval_steps(hyper: Hyper, config: TrainConfig) -> int:
    """Return after how many steps the state is saved."""
    return hyper.save_interval_steps or config.checkpoint.interval_steps


def is_save_due(step: int, hyper: Hyper, config: TrainConfig) -> bool:
    """Whether the state after step is to be saved, by the interval alone.

    A function of the step and of changes agreed by all ranks, so that no rank saves alone, and a
    restart saves where an undisturbed run would have.
    """
    return step % save_interval_steps(hyper, config) == 0


def _first_step(command: Command) -> int:
    """The first step that finds a scheduled command carried out."""
    return command.at_step + 1 if command.kind in ONCE else command.at_step


def _effect(command: Command, hyper: Hyper, step: int, config: TrainConfig, mesh: Mesh) -> Effect:
    """Raises ConfigError where the command is impossible."""
    until = step + command.for_steps if command.for_steps else None
    match command.kind:
        case "lr" | "lr-factor":
            changed = _with_rate(command, hyper, step, until, config)
        case "grad-clip" | "optimizer" | "scaler":
            changed = _with_settings(command, hyper, step, until, config)
        case "save-interval":
            changed = replace(hyper, save_interval_steps=_whole(command))
        case "skip":
            changed = _with_skip(command, hyper, step, config, mesh)
        case "revert":
            changed = _reverted(command, hyper, step)
        case "checkpoint":
            return Effect(hyper, step, is_save=True)
        case "stop" | "pause":
            return Effect(hyper, step, is_save=True, is_stop=True)
        case _:
            raise ConfigError("unknown-command", f"no command is called {command.kind!r}")
    return Effect(changed, step, is_changed=True, until_step=until)


def _with_rate(
    command: Command, hyper: Hyper, step: int, until: int | None, config: TrainConfig
) -> Hyper:
    factor, before = _positive(command.kind, command.value), hyper.lr_changes
    if command.kind == "lr":
        before = _cleared(before, step, until)
        factor = factor_for_lr(step, factor, config.optimizer, config.schedule, before)
    if not (math.isfinite(factor) and factor > 0.0):
        raise ConfigError(
            "value-out-of-range",
            f"the factor {factor} on the remaining schedule is not a finite number above 0",
            remedy="Give a value nearer to the current rate.",
        )
    return replace(hyper, lr_changes=(*before, LrChange(step, factor, command.cause, until)))


def _cleared(changes: tuple[LrChange, ...], step: int, until: int | None) -> tuple[LrChange, ...]:
    """Let no other change begin or end while a rate holds that was asked for as such.

    What would begin later was made at steps that the run has gone back from since; what would end
    meanwhile would move the rate under whoever set it last.
    """
    kept = []
    for change in changes:
        begins, ends = change.from_step, change.until_step
        if begins > step and until is None:
            continue
        if until is not None and step < begins < until:
            if ends is not None and ends <= until:
                continue
            change = replace(change, from_step=until)
        elif begins <= step and ends is not None and step < ends < (until or math.inf):
            if begins == step:
                continue
            change = replace(change, until_step=step)
        kept.append(change)
    return tuple(kept)


def _with_settings(
    command: Command, hyper: Hyper, step: int, until: int | None, config: TrainConfig
) -> Hyper:
    made = []
    for name, value in values_of(command.kind, command.value, command.values).items():
        if name not in GROUPS.get(command.kind, (command.kind,)):
            raise ConfigError("unknown-parameter", f"{command.kind} has no parameter {name!r}")
        _check_setting(name, value, config)
        ends = None if PARAMETERS[name].is_momentary else until
        made.append(Setting(name, value, step, command.cause, ends))
    return replace(hyper, settings=(*hyper.settings, *made))


def _check_setting(name: str, value: float, config: TrainConfig) -> None:
    """Refuse what no optimizer or scaler could work with; the spec's limits are narrower."""
    if PARAMETERS[name].needs_scaler and config.precision != "fp16":
        raise ConfigError("no-loss-scaler", f"{config.precision} training has no {name}")
    sound = math.isfinite(value) and value >= 0.0
    if name in ("beta1", "beta2"):
        sound = sound and value < 1.0
    elif name != "weight-decay":
        sound = sound and value > 0.0
    scaler = config.loss_scaler
    if not sound or (name == "loss-scale-floor" and value > scaler.max):
        raise ConfigError(
            "value-out-of-range",
            f"{name} {value} is no value that training could go on with",
            remedy="Give a value within the limits of the run spec.",
        )


def _with_skip(command: Command, hyper: Hyper, step: int, config: TrainConfig, mesh: Mesh) -> Hyper:
    found = parse_range(command.target)
    if found is None:
        raise ConfigError("value-out-of-range", f"{command.target!r} is no range FIRST:LAST")
    first, last, is_samples = found
    if is_samples:
        batch = config.sequences_per_step(mesh)
        first, last = first // batch, -(-last // batch)
    if command.value and last - first > command.value:
        raise ConfigError(
            "range-too-long",
            f"{command.target} is {last - first} data steps, of at most {command.value:g}",
            remedy="Leave out less, or raise limits.skip_steps_max of the run spec.",
        )
    coming = data_step_for(step - 1, hyper.skipped)
    if first < coming:
        # A range behind the position would shift the position itself.
        raise ConfigError(
            "data-passed",
            f"data step {first} is behind: step {step} trains on data step {coming}",
            remedy="Only data that is still to come can be left out; roll back for what is not.",
        )
    return replace(hyper, skipped=(*hyper.skipped, (first, last)))


def _reverted(command: Command, hyper: Hyper, step: int) -> Hyper:
    if not hyper.stands(command.target, step):
        raise ConfigError("nothing-to-revert", f"no change of {command.target!r} is in force")
    return hyper.without(command.target, step)


def _positive(kind: str, value: float) -> float:
    if math.isfinite(value) and value > 0.0:
        return value
    raise ConfigError(
        "value-out-of-range",
        f"{kind} {value} is not a finite number above 0",
        remedy="Give a positive value.",
    )


def _whole(command: Command) -> int:
    if _positive(command.kind, command.value) == int(command.value):
        return int(command.value)
    raise ConfigError(
        "value-out-of-range",
        f"{command.kind} {command.value} is not a whole number of steps",
        remedy="Give a whole number from 1 on.",
    )
