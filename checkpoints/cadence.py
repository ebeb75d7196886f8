"""When the next copy of the state goes to memory: as often as asked, or as its cost allows."""

from __future__ import annotations

import math

_WEIGHT = 0.2


class Cadence:
    """Decides from measured times; one per rank, and the slowest rank's word counts.

    every_steps: fixed distance; None chooses the smallest at which copies cost at most cost_frac of
        the training time.
    """

    def __init__(self, every_steps: int | None, cost_frac: float) -> None:
        self._every_steps = every_steps
        self._cost_frac = cost_frac
        self._step_s = math.nan
        self._cost_s = math.nan
        self._takes_s = 0.0

    def step_done(self, step_s: float) -> None:
        """Take in the time of one step."""
        self._step_s = _smoothed(self._step_s, step_s)

    def copy_done(self, cost_s: float, takes_s: float) -> None:
        """Take in what a copy cost the training, and how long it took beside it."""
        self._cost_s = _smoothed(self._cost_s, cost_s)
        self._takes_s = takes_s

    @property
    def interval_steps(self) -> int:
        """Steps from one copy to the next. Until something is measured, the next step is good."""
        if self._every_steps is not None:
            return self._every_steps
        if math.isnan(self._cost_s) or math.isnan(self._step_s) or self._step_s <= 0.0:
            return 1
        return max(1, math.ceil(self._cost_s / (self._cost_frac * self._step_s)))

    def is_due(self, since_steps: int, until_save_steps: int) -> bool:
        """Whether to copy now.

        since_steps:      steps since the last copy.
        until_save_steps: steps until the state is saved to disk, which copies it as well: a copy
            that would not be done by then would only make that save wait.
        """
        if since_steps < self.interval_steps:
            return False
        in_the_way = not math.isnan(self._step_s) and (
            self._takes_s > until_save_steps * self._step_s
        )
        return self._every_steps is not None or not in_the_way


def _smoothed(known: float, value: float) -> float:
    return value if math.isnan(known) else known + _WEIGHT * (value - known)
