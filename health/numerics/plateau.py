"""Plateau: a loss that no longer falls. Alone it is a note; next to another sign it weighs."""

from __future__ import annotations

import math

from ...logbook.findings import Severity
from .config import PlateauConfig
from .point import Point, Signal


class PlateauDetector:
    """Says once that the loss has stopped falling, and once that it falls again."""

    name = "plateau"

    def __init__(self, config: PlateauConfig) -> None:
        self._config = config
        self.restarted(0)

    def restarted(self, at_step: int) -> None:
        """Forget the open episode."""
        self._sum = 0.0
        self._count = 0
        self._best = math.inf
        self._best_step = at_step
        self._stalled_points = 0
        self._told = False

    def observe(self, point: Point) -> Signal | None:
        """Return a signal when a plateau is reached or left."""
        loss = point.loss
        if loss is None or not math.isfinite(loss):
            return None
        self._sum += loss
        self._count += 1
        if self._count < self._config.block_points:
            return None
        mean, points = self._sum / self._count, self._count
        self._sum, self._count = 0.0, 0
        return self._compare(point.step, mean, points)

    def _compare(self, step: int, mean: float, points: int) -> Signal | None:
        if mean < self._best - self._config.min_gain_frac * abs(self._best):
            told, self._told = self._told, False
            signal = self._signal(mean, ended=True) if told else None
            self._best, self._best_step, self._stalled_points = mean, step, 0
            return signal
        if self._best == math.inf:
            self._best, self._best_step = mean, step
        self._stalled_points += points
        if self._told or self._stalled_points < self._config.stall_points:
            return None
        self._told = True
        return self._signal(mean)

    def _signal(self, mean: float, *, ended: bool = False) -> Signal:
        return Signal(
            detector=self.name,
            kind="plateau",
            severity=Severity.OBSERVE,
            onset_step=self._best_step,
            value=mean,
            reference=self._best,
            message=f"mean loss {mean:.4g}, no better than {self._best:.4g} "
            f"since step {self._best_step}",
            ended=ended,
        )
