"""Unrest: a loss that jumps up and down, so that no single excursion of it lasts."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

from ...logbook.findings import Severity
from .config import UnrestConfig
from .excursion import Excursion


class Unrest:
    """Looks at the last points together, healed or not.

    A divergence may oscillate: each excursion heals, and half of the points are high all the same.
    Separate spikes make few points high, however large they are.

    high_points, onset_step: how many of the last window_points were high; step of the first such.
    rise: how far the loss was above its reference on the mean of those window_points, as a share.
    severity: what that comes to; None while there is no unrest.
    """

    def __init__(self, config: UnrestConfig, excursion: Excursion) -> None:
        self._config = config
        self._excursion = excursion
        self._highs: deque[tuple[int, int, float]] = deque()
        self.severity: Severity | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the past."""
        self._highs.clear()
        self._began: int | None = None
        self.severity = None

    @property
    def is_watching(self) -> bool:
        """Whether a point is to be shown though the excursion is closed."""
        return bool(self._highs)

    def observe(self, step: int, count: int) -> None:
        """Take the point that the excursion was just shown, the count-th of the run."""
        excursion, highs = self._excursion, self._highs
        if excursion.is_open and excursion.is_high:
            reference = excursion.reference
            # No further up than twice: one point of a thousand times the loss is still one point.
            level = min(excursion.latest, 2.0 * reference) if reference > 0.0 else reference
            rise = (level - reference) / abs(reference) if reference else 0.0
            highs.append((count, step, rise if rise == rise else 1.0))
        while highs and highs[0][0] <= count - self._config.window_points:
            highs.popleft()
        self._judge(count)

    def _judge(self, count: int) -> None:
        config = self._config
        if not self._is_unrest():
            self._began = self.severity = None
            return
        if self._began is None:
            self._began = count
        lasts = count - self._began >= config.window_points
        self.severity = Severity.ROLLBACK if lasts else Severity.WARN

    def _is_unrest(self) -> bool:
        config = self._config
        if self.high_points < config.high_frac * config.window_points:
            return False
        if self._returns() < config.min_returns:
            return False
        return self.rise >= config.min_rise_frac * self._excursion.patience

    def _returns(self) -> int:
        """How often the loss came down and went up again. One excursion that lasts is no unrest."""
        counts = [count for count, _, _ in self._highs]
        return sum(after - before > 1 for before, after in pairwise(counts))

    @property
    def high_points(self) -> int:
        """How many of the last points were high."""
        return len(self._highs)

    @property
    def onset_step(self) -> int:
        """Step of the first high one of the last points."""
        return self._highs[0][1]

    @property
    def rise(self) -> float:
        """How far the last points were above the reference on their mean, as a share of it."""
        return sum(rise for _, _, rise in self._highs) / self._config.window_points
