"""Growth of a norm, by a jump that stays or by a bend of its trend."""

from __future__ import annotations

import math

from ...logbook.findings import Severity
from .config import NormConfig
from .drift import Drift
from .excursion import Excursion
from .lr_watch import LrWatch
from .point import Point, Signal

_RANK = {None: 0, Severity.OBSERVE: 1, Severity.WARN: 2}


class NormGrowth:
    """What the grad-norm and activation-norm detectors share; works on logarithms.

    Norms climb for weeks in healthy runs, so growth as such says nothing. News is a jump that
    stays, or growth well in excess of what it was before.
    """

    def __init__(self, name: str, kind: str, config: NormConfig, lr: LrWatch) -> None:
        self.name = name
        self._kind = kind
        self._config = config
        self._lr = lr
        self._excursion = Excursion(config.jump, lr)
        self._drift = Drift(config.block_points, config.window_blocks, config.ready_blocks)
        self._close()

    def restarted(self, at_step: int) -> None:
        """Forget the open episode and the trend; keep what is known about the usual size."""
        self._excursion.restarted(at_step)
        self._drift.reset()
        self._close()

    def _close(self) -> None:
        self._told: Severity | None = None
        self._onset_step = 0
        self._reference = 0.0
        self._bent = False
        self._healed_below = -math.inf

    def follow(self, point: Point, norm: float | None) -> Signal | None:
        """Take the norm of one point; return a signal when growth begins, gets worse or ends."""
        if norm is None or not 0.0 < norm < math.inf or point.skipped:
            return None
        value = math.log(norm)
        excursion = self._excursion
        excursion.observe(point.step, value)
        if self._lr.is_raised:
            self._drift.reset()
        elif not excursion.is_open and self._drift.observe(point.step, value):
            self._bend()
        if self._told is None and not excursion.is_open and not self._bent:
            return None
        severity, reason = self._judge(point.step)
        if severity is None:
            return self._end(norm)
        if _RANK[severity] <= _RANK[self._told]:
            return None
        if self._told is None and excursion.is_open:
            self._onset_step = excursion.onset_step
            self._reference = excursion.reference
        self._told = severity
        return self._signal(severity, norm, reason)

    def _bend(self) -> None:
        """Open, or close, the part of an episode that comes from the trend."""
        if self._bent:
            self._bent = self._drift.level > self._healed_below
            return
        span = self._config.span_blocks
        excess, z = self._drift.growth(span)
        if z >= self._config.bend_z and excess >= self._config.bend_rise:
            self._bent = True
            self._onset_step = self._drift.step_of(span)
            self._reference = self._drift.level - excess
            self._healed_below = self._drift.level - excess / 2

    def _judge(self, step: int) -> tuple[Severity | None, str]:
        config, excursion = self._config, self._excursion
        if excursion.is_open:
            rise = excursion.height()
            if rise >= config.warn_rise and self._stays(step):
                return Severity.WARN, f"up {math.expm1(rise):.0%} for {excursion.points} points"
            high = excursion.peak - excursion.reference >= config.note_rise
            if high or excursion.high_points >= config.note_points:
                return Severity.OBSERVE, "jumped"
            return self._told, "jumped"
        if self._bent:
            rise = self._drift.level - self._reference
            severity = Severity.WARN if rise >= config.bend_warn_rise else Severity.OBSERVE
            return severity, f"grew {math.expm1(rise):.1%} more than before"
        return None, ""

    def _stays(self, step: int) -> bool:
        config, excursion = self._config, self._excursion
        points = excursion.high_points
        if points >= config.warn_points:
            return True
        span = step - excursion.onset_step
        return points >= config.sparse_points and span >= config.sparse_steps

    def _end(self, norm: float) -> Signal | None:
        if self._told is None:
            return None
        signal = self._signal(Severity.OBSERVE, norm, "back to its usual size", ended=True)
        self._close()
        return signal

    def _signal(
        self, severity: Severity, norm: float, reason: str, *, ended: bool = False
    ) -> Signal:
        reference = math.exp(self._reference)
        return Signal(
            detector=self.name,
            kind=self._kind,
            severity=severity,
            onset_step=self._onset_step,
            value=norm,
            reference=reference,
            message=f"{self.name} {norm:.4g} against {reference:.4g}: {reason}",
            ended=ended,
        )
