"""Creep: a loss that rises by a few per cent over hundreds of steps, too slowly to be a jump."""

from __future__ import annotations

import math

from ...logbook.findings import Severity
from .config import CreepConfig
from .drift import Drift
from .excursion import Excursion
from .lr_watch import LrWatch
from .point import Point, Signal


class CreepDetector:
    """Warns when the level of the loss has risen, rolls back when the rise stays.

    A jump often heals, a creep of 2 to 4 % over a few hundred steps mostly does not, so this
    detector needs little size but much certainty. Points of an open excursion are left out: they
    are being judged already.
    """

    name = "creep"

    def __init__(self, config: CreepConfig, excursion: Excursion, lr: LrWatch) -> None:
        self._config = config
        self._lr = lr
        self._excursion = excursion
        self._drift = Drift(config.block_points, config.window_blocks, config.ready_blocks)
        self._adoptions = 0
        self._close()

    def _close(self) -> None:
        self._told: Severity | None = None
        self._onset_step = 0
        self._reference = 0.0
        self._peak = 0.0
        self._blocks = 0

    def restarted(self, at_step: int) -> None:
        """Forget the open episode."""
        self._close()
        self._drift.reset()

    def observe(self, point: Point) -> Signal | None:
        """Return a signal when a creep begins, stays, or has gone back."""
        excursion = self._excursion
        if excursion.adoptions != self._adoptions or self._lr.is_raised:
            self._adoptions = excursion.adoptions
            return self._forget()
        loss = point.loss
        if loss is None or excursion.is_open or not -math.inf < loss < math.inf:
            return None
        if not self._drift.observe(point.step, loss):
            return None
        return self._follow() if self._told else self._look()

    def _forget(self) -> Signal | None:
        self._drift.reset()
        if self._told is None:
            return None
        signal = self._signal(Severity.OBSERVE, ended=True)
        self._close()
        return signal

    def _look(self) -> Signal | None:
        drift = self._drift
        if not self._counts():
            return None
        self._told = Severity.WARN
        self._onset_step, self._reference = drift.best_step, drift.best
        self._peak = drift.level
        self._blocks = 0
        return self._signal(Severity.WARN)

    def _counts(self) -> bool:
        """Whether the level has risen enough, and beyond what it usually wanders."""
        drift, config = self._drift, self._config
        nats = config.min_rise_nats * self._excursion.nats_scale
        least = max(config.min_rise_frac * abs(drift.best), nats)
        if drift.z < config.warn_z or drift.level - drift.best < least:
            return False
        # Levels of a running average are alike too, and wander farther than they seem to.
        return drift.z >= config.warn_z * math.sqrt(self._excursion.patience)

    def _follow(self) -> Signal | None:
        level = self._drift.level
        self._peak = max(self._peak, level)
        if level < (self._reference + self._peak) / 2.0:
            signal = self._signal(Severity.OBSERVE, ended=True)
            self._close()
            return signal
        self._blocks += 1
        lasts = self._blocks >= self._config.stay_blocks and self._counts()
        if self._told is Severity.WARN and lasts:
            self._told = Severity.ROLLBACK
            return self._signal(Severity.ROLLBACK)
        return None

    def _signal(self, severity: Severity, *, ended: bool = False) -> Signal:
        level, reference = self._drift.level, self._reference
        return Signal(
            detector=self.name,
            kind="creep",
            severity=severity,
            onset_step=self._onset_step,
            value=level,
            reference=reference,
            message=f"mean loss {level:.4g} is {level / reference - 1.0:+.1%} above its best since "
            f"step {self._onset_step}, {self._drift.z:.0f} times its usual wander",
            ended=ended,
        )
