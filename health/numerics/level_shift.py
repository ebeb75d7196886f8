"""Level shift: an excursion of the loss that does not heal within its window is a divergence."""

from __future__ import annotations

from ...logbook.findings import Severity
from .config import LevelShiftConfig
from .excursion import Excursion
from .point import Point, Signal


class LevelShiftDetector:
    """Warns, then calls for a rollback, as an excursion outlives its healing window."""

    name = "level-shift"

    def __init__(self, config: LevelShiftConfig, excursion: Excursion) -> None:
        self._config = config
        self._excursion = excursion
        self._told: Severity | None = None

    def observe(self, point: Point) -> Signal | None:
        """Return a signal when an excursion reaches its warning or rollback age, or ends."""
        excursion = self._excursion
        if not excursion.is_open:
            ended = self._told is not None
            self._told = None
            return self._signal(Severity.OBSERVE, ended=True) if ended else None
        severity = self._severity()
        if severity is None or severity is self._told:
            return None
        if self._told is Severity.ROLLBACK:
            return None
        self._told = severity
        return self._signal(severity)

    def restarted(self, at_step: int) -> None:
        """Forget the open episode."""
        self._told = None

    def _severity(self) -> Severity | None:
        excursion, config = self._excursion, self._config
        if excursion.points < config.warn_points or not excursion.is_high:
            return None
        if excursion.high_points < config.high_frac * excursion.points:
            return None
        if excursion.height() < config.least_z * excursion.wander:
            return None
        if excursion.points >= config.rollback_points:
            return Severity.ROLLBACK
        return Severity.WARN

    def _signal(self, severity: Severity, *, ended: bool = False) -> Signal:
        excursion = self._excursion
        return Signal(
            detector=self.name,
            kind="level-shift",
            severity=severity,
            onset_step=excursion.onset_step,
            value=excursion.latest,
            reference=excursion.reference,
            message=f"loss {excursion.latest:.4g} has not come back to {excursion.reference:.4g} "
            f"in {excursion.points} points",
            ended=ended,
        )
