"""Whether the learning rate is on its way up: then the loss may rise without being ill."""

from __future__ import annotations

from collections import deque

from .config import LrWatchConfig


class LrWatch:
    """Compares the rate with what it was some points ago: warm-up, or a restart of the schedule."""

    def __init__(self, config: LrWatchConfig) -> None:
        self._factor = config.rise_factor
        self._rates: deque[float] = deque(maxlen=config.window_points)
        self.is_raised = False

    def observe(self, lr: float) -> None:
        """Take the learning rate of one point."""
        rates = self._rates
        rates.append(lr)
        self.is_raised = lr > self._factor * rates[0]

    def restarted(self) -> None:
        """Forget the past rates: the run goes on under another schedule."""
        self._rates.clear()
        self.is_raised = False
