"""Whether the learning rate is on its way up: then the loss may rise without being ill."""

from __future__ import annotations

from collections import deque

from .config import LrWatchConfig


class LrWatch:
    """Compares the rate with what it was some points ago: warm-up, or a restart of the schedule.

    In a coarse log the rate before a warm-up stays in sight for long after it: what the loss does
    then is no longer the rise's doing, so a rise counts for a bounded span of steps only.
    """

    def __init__(self, config: LrWatchConfig) -> None:
        self._factor = config.rise_factor
        self._hold_steps = config.hold_steps
        self._rates: deque[float] = deque(maxlen=config.window_points)
        self._grew_step = 0
        self.is_raised = False

    def observe(self, step: int, lr: float) -> None:
        """Take the learning rate of one point."""
        rates = self._rates
        if rates and lr > rates[-1]:
            self._grew_step = step
        rates.append(lr)
        self.is_raised = lr > self._factor * rates[0] and step - self._grew_step <= self._hold_steps

    def restarted(self) -> None:
        """Forget the past rates: the run goes on under another schedule."""
        self._rates.clear()
        self.is_raised = False
