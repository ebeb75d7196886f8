"""Level shift: an excursion of the loss that does not heal within its window is a divergence."""

from __future__ import annotations

from ...logbook.findings import Severity
from .config import LevelShiftConfig
from .excursion import Excursion
from .point import Point, Signal
from .unrest import Unrest

_RANK = {None: 0, Severity.OBSERVE: 1, Severity.WARN: 2, Severity.ROLLBACK: 3}


class LevelShiftDetector:
    """Warns, then calls for a rollback, as an excursion outlives its healing window.

    Excursions that heal and come back at once, over and over, are taken together.
    """

    name = "level-shift"

    def __init__(self, config: LevelShiftConfig, excursion: Excursion) -> None:
        self._config = config
        self._excursion = excursion
        self._unrest = Unrest(config.unrest, excursion)
        self._told: Severity | None = None
        self._count = 0

    def observe(self, point: Point) -> Signal | None:
        """Return a signal when an excursion reaches its warning or rollback age, or ends."""
        excursion, unrest = self._excursion, self._unrest
        if point.loss is not None:
            self._count += 1
            if excursion.is_open or unrest.is_watching:
                unrest.observe(point.step, self._count)
        if not excursion.is_open and unrest.severity is None:
            if self._told is None:
                return None
            self._told = None
            return self._signal(Severity.OBSERVE, "loss is back in its usual range", ended=True)
        severity = self._severity() if excursion.is_open else None
        if _RANK[severity] > _RANK[self._told]:
            return self._tell(severity, self._lasting(), excursion.onset_step)
        if _RANK[unrest.severity] > _RANK[self._told]:
            return self._tell(unrest.severity, self._restless(), unrest.onset_step)
        return None

    def restarted(self, at_step: int) -> None:
        """Forget the open episode."""
        self._told = None
        self._unrest.reset()

    def _severity(self) -> Severity | None:
        excursion, config = self._excursion, self._config
        if excursion.points < config.warn_points or not excursion.is_high:
            return None
        patience = excursion.patience
        if excursion.points < patience * config.warn_points:
            return None
        if excursion.high_points < config.high_frac * excursion.points:
            return None
        if excursion.height() < config.least_z * excursion.wander:
            return None
        if excursion.points >= patience * config.rollback_points:
            return Severity.ROLLBACK
        return Severity.WARN

    def _tell(self, severity: Severity | None, message: str, onset_step: int) -> Signal:
        assert severity is not None
        self._told = severity
        return self._signal(severity, message, onset_step)

    def _lasting(self) -> str:
        excursion = self._excursion
        return (
            f"loss {excursion.latest:.4g} has not come back to {excursion.reference:.4g} "
            f"in {excursion.points} points"
        )

    def _restless(self) -> str:
        unrest, window = self._unrest, self._config.unrest.window_points
        return (
            f"loss was high in {unrest.high_points} of the last {window} points, "
            f"{unrest.rise:+.0%} on their mean above {self._excursion.reference:.4g}"
        )

    def _signal(
        self, severity: Severity, message: str, onset_step: int = 0, *, ended: bool = False
    ) -> Signal:
        excursion = self._excursion
        return Signal(
            detector=self.name,
            kind="level-shift",
            severity=severity,
            onset_step=onset_step,
            value=excursion.latest,
            reference=excursion.reference,
            message=message,
            ended=ended,
        )
