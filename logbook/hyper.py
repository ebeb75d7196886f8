"""Every change made to a run, as a pure function of the step.

A change names the step from which it holds and, where it was made for a while only, the step from
which it no longer does. What is in force at a step therefore follows from the step alone: a restart
needs nothing but the changes, and after going back to an earlier step the run goes through them
again as it did before. They are in the folded state and in every start command, so no load of a
checkpoint can undo one in silence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec.structs import replace


class LrChange(msgspec.Struct, frozen=True):
    """From from_step on the remaining schedule is multiplied by factor.

    from_step is the first step that uses the factor, until_step the first that no longer does;
    cause is the id of the intervention or decision that made the change.
    """

    from_step: int
    factor: float
    cause: str
    until_step: int | None = None


class Setting(msgspec.Struct, frozen=True):
    """A parameter (parameters.PARAMETERS) has this value from from_step on, up to until_step.

    Of several in force the one made last holds. A momentary one strikes at from_step only.
    """

    parameter: str
    value: float
    from_step: int
    cause: str
    until_step: int | None = None


class Command(msgspec.Struct, frozen=True):
    """An order to every rank of a run; seq is run-wide, starts at 1 and never repeats.

    Ranks take a command at the first step boundary at which all of them have received it (the
    highest seq received is agreed in the same all-reduce that votes on non-finite gradients).
    kind and value:
        "lr-factor"   multiply the remaining schedule by value
        "lr"          make the learning rate of the next step equal value, as a factor of the
                      remaining schedule
        "grad-clip"   clip at value from the next step on
        "optimizer", "scaler"  set the parameters in values, by their names
        "save-interval"  save after every step that value, a whole number, divides
        "skip"        leave out the data steps in target, "FIRST:LAST" (LAST not included); or the
                      data steps that hold the samples in "samples FIRST:LAST"; at most value of
                      them, where it is not 0
        "revert"      take the change made by the cause in target back
        "checkpoint"  save now; value unused
        "stop", "pause"  finish the current step, save, exit 0; value unused
    at_step: 0 is at once. Else a change holds from that step on, and what happens once happens when
        that step is completed. for_steps: 0 is for good; else for so many steps.
    An agent's own order stands outside that sequence, has seq wire.ASIDE and is answered at once,
    by a thread, also while the rank waits in a collective:
        "trace"       say where the rank stands in its collectives (CollectiveTrace)
    """

    seq: int
    kind: str
    value: float = 0.0
    cause: str = ""
    values: dict[str, float] = {}
    target: str = ""
    at_step: int = 0
    for_steps: int = 0


ONCE = ("checkpoint", "stop", "pause")
"""Kinds of command that happen once, instead of changing what later steps run under."""


class Hyper(msgspec.Struct, frozen=True):
    """Every change made to a run since it was submitted; goes into every start command.

    skipped: half-open ranges [first, last) of data steps that the sampler leaves out.
    grad_clip: what held before clips were settings; None keeps the trainer's configuration.
    loss_scale: None keeps the scaler state of the checkpoint; a value resets the scaler at start.
    save_interval_steps: None saves as often as the trainer's configuration says.
    settings: values of single parameters, in the order in which they were made.
    scheduled: commands that all ranks hold and whose step has not come.
    """

    lr_changes: tuple[LrChange, ...] = ()
    grad_clip: float | None = None
    skipped: tuple[tuple[int, int], ...] = ()
    loss_scale: float | None = None
    save_interval_steps: int | None = None
    settings: tuple[Setting, ...] = ()
    scheduled: tuple[Command, ...] = ()

    def value_at(self, parameter: str, step: int) -> float | None:
        """Return what a parameter is set to at a step, None where nobody has set it."""
        for setting in reversed(self.settings):
            if setting.parameter == parameter and holds_at(setting, step):
                return setting.value
        return self.grad_clip if parameter == "grad-clip" else None

    def struck_at(self, parameter: str, step: int) -> float | None:
        """Return the value of a momentary setting that strikes at a step, None without one."""
        for setting in reversed(self.settings):
            if (setting.parameter, setting.from_step) == (parameter, step):
                return setting.value
        return None

    def factor_at(self, step: int) -> float:
        """Return what the scheduled learning rate of a step is multiplied by."""
        return math.prod(c.factor for c in self.lr_changes if holds_at(c, step))

    @property
    def num_changes(self) -> int:
        """How many entries there are: they grow with every change and are sent in one frame."""
        made = len(self.lr_changes) + len(self.settings)
        return made + len(self.skipped) + len(self.scheduled)

    def begun_at(self, step: int) -> Iterator[str]:
        """Yield the cause of each change whose first step this is."""
        yield from _unique(c.cause for c in self._changes() if c.from_step == step)

    def ended_at(self, step: int) -> Iterator[str]:
        """Yield the cause of each change whose last step was the one before."""
        yield from _unique(
            c.cause for c in self._changes() if c.until_step == step and c.from_step < step
        )

    def stands(self, cause: str, step: int) -> bool:
        """Whether a change of this cause holds at a step, or at a later one."""
        return any(c.cause == cause for c in self.scheduled) or any(
            c.cause == cause and (c.until_step is None or c.until_step > step)
            for c in self._changes()
        )

    def without(self, cause: str, step: int) -> Hyper:
        """Return the changes with those of a cause taken back from a step on."""
        return replace(
            self,
            lr_changes=_cut(self.lr_changes, cause, step),
            settings=_cut(self.settings, cause, step),
            scheduled=tuple(c for c in self.scheduled if c.cause != cause),
        )

    def _changes(self) -> Iterator[LrChange | Setting]:
        yield from self.lr_changes
        yield from self.settings


def holds_at(change: LrChange | Setting, step: int) -> bool:
    """Whether a change is in force at a step."""
    is_over = change.until_step is not None and step >= change.until_step
    return change.from_step <= step and not is_over


def _cut(changes: tuple[Any, ...], cause: str, step: int) -> tuple[Any, ...]:
    """What a cause changed before step stays in force up to it: those steps were made so."""
    kept = []
    for change in changes:
        if change.cause != cause or (change.until_step is not None and change.until_step <= step):
            kept.append(change)
        elif change.from_step < step:
            kept.append(replace(change, until_step=step))
    return tuple(kept)


def _unique(causes: Iterator[str]) -> Iterator[str]:
    yield from dict.fromkeys(causes)
