"""The loss against its own recent past: the one reference that spike and level shift share."""

from __future__ import annotations

import math
from collections import deque

from .config import SpikeConfig
from .window import SortedWindow

_MAD_TO_SIGMA = 1.4826
_Q90_TO_SIGMA = 1.0 / 1.645


class Excursion:
    """Follows the loss and knows whether it is out of the ordinary, since when and how far.

    Ordinary points feed a short median (the centre, which keeps up with a falling loss) and a
    longer window of distances to it (the noise). While an excursion is open both stand still, so
    a bad stretch never becomes the reference it is judged by.
    The noise is the larger of two robust estimates, from the median and from the 90 % quantile of
    the distances: the second keeps a heavy-tailed log (one rank's batch, short sequences) quiet.
    """

    def __init__(self, config: SpikeConfig) -> None:
        self._config = config
        self._centre = SortedWindow(config.centre_points)
        self._noise = SortedWindow(config.noise_points)
        self._recent: deque[float] = deque(maxlen=config.heal_points)
        self.is_open = False
        self.reference = math.nan
        self.threshold = math.inf
        self._heal_level = math.inf
        self.onset_step = 0
        self.points = 0
        self.high_points = 0
        self.peak = -math.inf
        self.latest = math.nan

    def observe(self, step: int, loss: float) -> None:
        """Take one loss, NaN and infinity included, which count as infinitely high."""
        level = loss if math.isfinite(loss) else math.inf
        self.latest = loss
        if self.is_open:
            self._continue(level)
        elif len(self._noise) >= self._config.ready_points:
            self._judge(step, level)
        elif level < math.inf:
            self._accept(level)

    def close(self) -> None:
        """Forget the open excursion and keep the reference."""
        self.is_open = False
        self.points = self.high_points = 0

    def adopt(self) -> None:
        """Forget everything: what comes now is the new normal."""
        self.close()
        self._centre.clear()
        self._noise.clear()

    def _judge(self, step: int, level: float) -> None:
        centre = self._centre.median()
        sigma = self._sigma()
        least = max(
            self._config.min_rise_frac * abs(centre),
            self._config.min_rise_nats,
        )
        if level <= centre + max(self._config.open_z * sigma, least):
            self._accept(level)
            return
        self.is_open = True
        self.reference = centre
        self.threshold = centre + max(self._config.open_z * sigma, least)
        self._heal_level = centre + max(self._config.heal_z * sigma, least / 2)
        self.onset_step = step
        self.points = self.high_points = 1
        self.peak = level
        self._recent.clear()
        # The points before the onset were ordinary, so healing starts from a full window.
        self._recent.extend([centre] * (self._config.heal_points - 1))
        self._recent.append(level)

    def _continue(self, level: float) -> None:
        self.points += 1
        self.high_points += level > self._heal_level
        self.peak = max(self.peak, level)
        self._recent.append(level)
        if self.points > self._config.adopt_points:
            self.adopt()
        elif level <= self._heal_level:
            middle = sorted(self._recent)[len(self._recent) >> 1]
            if middle <= self._heal_level:
                self.close()

    def _accept(self, level: float) -> None:
        if len(self._centre):
            self._noise.push(abs(level - self._centre.median()))
        self._centre.push(level)

    def _sigma(self) -> float:
        noise = self._noise
        return max(_MAD_TO_SIGMA * noise.median(), _Q90_TO_SIGMA * noise.quantile(0.9))
