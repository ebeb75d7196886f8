"""Activation norm trend: the norm of the last layer's output turned upward before OPT diverged."""

from __future__ import annotations

from .config import NormConfig
from .lr_watch import LrWatch
from .norm import NormGrowth
from .point import Point, Signal


class ActivationNormDetector(NormGrowth):
    """Follows a smooth series, in which a few per cent tell."""

    name = "activation-norm"

    def __init__(self, config: NormConfig, lr: LrWatch) -> None:
        super().__init__(self.name, "activation-norm-trend", config, lr)

    def observe(self, point: Point) -> Signal | None:
        """Return a signal when the activation norm jumps or bends upward, and when it is over."""
        return self.follow(point, point.activation_norm)
