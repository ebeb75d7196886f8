"""Gradient norm growth: in several recorded divergences it led the loss by one to many steps."""

from __future__ import annotations

from .config import NormConfig
from .lr_watch import LrWatch
from .norm import NormGrowth
from .point import Point, Signal


class GradNormDetector(NormGrowth):
    """Follows the gradient norm before clipping.

    The norm of a skipped step is left out: some frameworks print the previous one there.
    """

    name = "grad-norm"

    def __init__(self, config: NormConfig, lr: LrWatch) -> None:
        super().__init__(self.name, "grad-norm-growth", config, lr)

    def observe(self, point: Point) -> Signal | None:
        """Return a signal when the gradient norm jumps or bends upward, and when that is over."""
        return self.follow(point, point.grad_norm)
