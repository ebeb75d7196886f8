"""Non-finite values: a loss or gradient that is NaN, infinite, or has vanished from the log."""

from __future__ import annotations

import math

from ...logbook.findings import Severity
from .config import NonFiniteConfig
from .point import Point, Signal

_PRESENCE_POINTS = 50


class NonFiniteDetector:
    """Counts non-finite points with a leak, so that NaN at every other point adds up too.

    A gradient that overflowed under a dynamic scaler is the scaler's business: the step was
    skipped and the scale comes down. A non-finite loss, or a skip without any scaler, is ours.
    """

    name = "non-finite"

    def __init__(self, config: NonFiniteConfig) -> None:
        self._config = config
        self._points = 0
        self._present_points = 0
        self.restarted(0)

    def restarted(self, at_step: int) -> None:
        self._level = 0.0
        self._onset_step = at_step
        self._told: Severity | None = None

    def observe(self, point: Point) -> Signal | None:
        """Return a signal at the first non-finite point, as they add up, and when they are over."""
        bad, value, what = self._judge(point)
        if not bad:
            return self._leak(point)
        if self._level <= 0.0:
            self._onset_step = point.step
        self._level += 1.0
        severity = self._severity(point.step)
        if severity is self._told or self._told is Severity.ROLLBACK:
            return None
        self._told = severity
        return self._signal(severity, value, f"{what} for {self._level:g} points")

    def _judge(self, point: Point) -> tuple[bool, float, str]:
        loss, norm = point.loss, point.grad_norm
        self._count_presence(loss is not None)
        if loss is not None:
            if not math.isfinite(loss):
                return True, loss, "loss is not finite"
        elif self._is_always_logged and not point.skipped:
            return True, math.nan, "loss has vanished from the log"
        if norm is not None and not math.isfinite(norm) and point.loss_scale is None:
            return True, norm, "gradient norm is not finite"
        return False, math.nan, ""

    def _count_presence(self, present: bool) -> None:
        """Learn from the first points whether the loss is in every one, or only in some."""
        if self._points < _PRESENCE_POINTS:
            self._points += 1
            self._present_points += present
        elif present and not self._is_always_logged:
            self._points = self._present_points = 0

    @property
    def _is_always_logged(self) -> bool:
        least = self._config.presence_frac * _PRESENCE_POINTS
        return self._points >= _PRESENCE_POINTS and self._present_points >= least

    def _leak(self, point: Point) -> Signal | None:
        if self._level <= 0.0:
            return None
        self._level -= 0.5
        if self._level > 0.0 or self._told is None:
            return None
        self._told = None
        return self._signal(Severity.OBSERVE, 0.0, "values are finite again", ended=True)

    def _severity(self, step: int) -> Severity:
        config = self._config
        span = step - self._onset_step + 1
        if self._level >= config.rollback_points:
            return Severity.ROLLBACK
        if self._level >= config.sparse_points and span >= 2 * config.rollback_points:
            return Severity.ROLLBACK
        return Severity.WARN if self._level >= config.warn_points else Severity.OBSERVE

    def _signal(
        self, severity: Severity, value: float, message: str, *, ended: bool = False
    ) -> Signal:
        return Signal(
            detector=self.name,
            kind="non-finite",
            severity=severity,
            onset_step=self._onset_step,
            value=value,
            reference=0.0,
            message=message,
            ended=ended,
        )
