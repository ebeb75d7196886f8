"""Non-finite values: a loss or gradient that is NaN, infinite, or has vanished from the log."""

from __future__ import annotations

import math

from ...logbook.findings import Severity
from .config import NonFiniteConfig
from .excursion import Excursion
from .point import Point, Signal

_PRESENCE_POINTS = 50
_QUIET_WEIGHT = 0.34
_LEAK = 0.2
# An episode is over after so many finite points; a NaN now and then is one episode, not many.
_END_POINTS = 25
_SPARSE_GAP_STEPS = 4
_RANK = {None: 0, Severity.OBSERVE: 1, Severity.WARN: 2, Severity.ROLLBACK: 3}


class NonFiniteDetector:
    """Counts non-finite points with a leak, so that NaN at every third point adds up too.

    A gradient that overflowed under a dynamic scaler is the scaler's business: the step was
    skipped and the scale comes down. A non-finite loss, or a skip without any scaler, is ours.
    A loss that vanishes from a log that used to carry it in every point counts in full during an
    excursion, and for less in a quiet run, where the log may merely have become coarser.
    """

    name = "non-finite"

    def __init__(self, config: NonFiniteConfig, excursion: Excursion) -> None:
        self._config = config
        self._excursion = excursion
        self._points = 0
        self._present_points = 0
        self._is_always_logged = False
        self.restarted(0)

    def restarted(self, at_step: int) -> None:
        """Forget the open episode."""
        self._level = 0.0
        self._count = 0
        self._missing = 0
        self._span_points = 0
        self._finite_points = 0
        self._onset_step = at_step
        self._told: Severity | None = None

    def observe(self, point: Point) -> Signal | None:
        """Return a signal at the first non-finite point, as they add up, and when they are over."""
        loss = point.loss
        if loss is not None and -math.inf < loss < math.inf and self._is_quiet(point.grad_norm):
            return None
        weight, value, what = self._judge(point)
        self._span_points += 1
        if weight <= 0.0:
            return self._leak()
        self._finite_points = 0
        if self._level <= 0.0:
            self._onset_step = point.step
            self._count = 0
            self._span_points = 1
        self._level += weight
        self._count += 1
        severity = self._severity(point.step)
        if severity is None or _RANK[severity] <= _RANK[self._told]:
            return None
        self._told = severity
        return self._signal(severity, value, f"{what} for {self._count} points")

    def _is_quiet(self, norm: float | None) -> bool:
        """The way nearly every point takes: nothing open, nothing to learn, nothing wrong."""
        if self._told is not None or self._level > 0.0:
            return False
        if self._missing or not self._is_always_logged:
            return False
        return norm is None or -math.inf < norm < math.inf

    def _judge(self, point: Point) -> tuple[float, float, str]:
        """Return how much this point counts, its value, and what is wrong with it."""
        loss, norm = point.loss, point.grad_norm
        self._count_presence(loss is not None)
        if loss is not None:
            if not math.isfinite(loss):
                return 1.0, loss, "loss is not finite"
            self._reappear()
        elif self._is_always_logged and not point.skipped:
            self._missing += 1
            weight = 1.0 if self._excursion.is_open else _QUIET_WEIGHT
            return weight, math.nan, "loss has vanished from the log"
        if norm is not None and not math.isfinite(norm) and point.loss_scale is None:
            return 1.0, norm, "gradient norm is not finite"
        return 0.0, math.nan, ""

    def _reappear(self) -> None:
        """A loss that was only missing is back: it was not NaN, and is learned about anew."""
        if self._missing:
            self._level = min(self._level, 0.5)
            self._missing = 0
            self._is_always_logged = False

    def _count_presence(self, present: bool) -> None:
        """Learn from the first points whether the loss is in every one, or only in some."""
        if self._is_always_logged:
            return
        self._points += 1
        self._present_points += present
        if self._points >= _PRESENCE_POINTS:
            least = self._config.presence_frac * self._points
            self._is_always_logged = self._present_points >= least
            self._points = self._present_points = 0

    def _leak(self) -> Signal | None:
        self._level = max(0.0, self._level - _LEAK)
        self._finite_points += 1
        if self._level > 0.0 or self._told is None or self._finite_points < _END_POINTS:
            return None
        self._told = None
        return self._signal(Severity.OBSERVE, 0.0, "values are finite again", ended=True)

    def _severity(self, step: int) -> Severity | None:
        config = self._config
        span_steps = step - self._onset_step + 1
        if self._level >= config.rollback_points:
            return Severity.ROLLBACK
        far_apart = span_steps >= _SPARSE_GAP_STEPS * self._span_points
        sparse = far_apart and span_steps >= 2 * config.rollback_points
        if sparse and self._level >= config.sparse_points:
            return Severity.ROLLBACK
        if self._level >= config.warn_points:
            return Severity.WARN
        return Severity.OBSERVE if self._level >= 1.0 else None

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
