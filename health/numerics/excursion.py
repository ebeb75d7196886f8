"""The loss against its own recent past: the one reference that spike and level shift share."""

from __future__ import annotations

import math
from collections import deque

from .config import SpikeConfig
from .window import SortedWindow

_MAD_TO_SIGMA = 1.4826
_Q75_TO_SIGMA = 1.0 / 1.1503
_UPPER_Q75_TO_SIGMA = 1.0 / 0.6745
# A second difference x1 - (x0 + x2) / 2 of independent noise has sqrt(1.5) times its deviation.
_SECOND_DIFFERENCE = 1.0 / math.sqrt(1.5)
_CADENCE_CHANGE = 4
_CADENCE_GAPS = 3
# Below this ratio of point-to-point noise to spread, the log is a running average. Recorded raw
# logs stay above 0.5 in 99 % of their points, the same logs smoothed with 0.9 below it in 99 %.
_SMOOTHED_RATIO = 0.5
_MAX_ECHO_POINTS = 100
_LEAST_CENTRE_POINTS = 5


class Excursion:
    """Follows the loss and knows whether it is out of the ordinary, since when and how far.

    Ordinary points feed a short median (the centre, which keeps up with a falling loss) and a
    longer window of second differences (the noise, which a steady fall leaves alone). While an
    excursion is open both stand still, so a bad stretch never becomes the reference it is judged
    by.
    The noise is the larger of two robust estimates, from the median and from the upper quartile of
    the differences: the second keeps a heavy-tailed log (one rank's batch, short sequences) quiet.
    In a log that is a running average one bad point echoes for many: such a log is known by its
    small second differences, and an excursion gets the time in which its peak would fade by itself.
    An excursion opens on one point far above the centre, or on a run of points each of which is
    only fairly high: a shift of a few noise units is seen that way.
    """

    def __init__(self, config: SpikeConfig) -> None:
        self._config = config
        self._centre = SortedWindow(config.centre_points)
        self._noise = SortedWindow(config.noise_points)
        self._above = SortedWindow(config.noise_points)
        self._recent: deque[float] = deque(maxlen=config.heal_points)
        self._accepted: deque[int] = deque(maxlen=config.centre_points)
        self._before = self._last = math.nan
        self._gap = self._long_gaps = 0
        self._last_step = 0
        self._run_points = 0
        self._run_onset = 0
        self.is_open = False
        self.reference = math.nan
        self.threshold = math.inf
        self._heal_level = math.inf
        self.onset_step = 0
        self.points = 0
        self.high_points = 0
        self.peak = -math.inf
        self.latest = math.nan
        self._memory = 0.0
        self._rates: deque[float] = deque(maxlen=config.lr_window_points)
        self.lr_raised = False
        self.adoptions = 0

    def observe(self, step: int, loss: float, lr: float | None = None) -> None:
        """Take one loss; NaN and infinity count as infinitely high."""
        if lr is not None:
            self._follow_lr(lr)
        level = loss if math.isfinite(loss) else math.inf
        self.latest = loss
        self._follow_cadence(step)
        if self.is_open:
            self._continue(level)
        elif self._is_ready():
            self._judge(step, level)
        elif level < math.inf:
            self._accept(step, level)

    def close(self) -> None:
        """Forget the open excursion and keep the reference."""
        self.is_open = False
        self.points = self.high_points = self._run_points = 0

    def restarted(self, at_step: int) -> None:
        """Forget the open excursion, and a reference taken from a part of the run that is undone.

        A run rolled back to an early step starts from the higher loss it had there; what the loss
        had come down to since must not make that an excursion. The noise is kept.
        """
        self.close()
        if self._accepted and at_step < self._accepted[0]:
            self._centre.clear()
            self._accepted.clear()
            self._before = self._last = math.nan
        self._rates.clear()
        self.lr_raised = False

    def adopt(self) -> None:
        """Forget everything: what comes now is the new normal."""
        self.close()
        self._centre.clear()
        self._noise.clear()
        self._above.clear()
        self._before = self._last = math.nan
        self.adoptions += 1

    def _follow_lr(self, lr: float) -> None:
        rates = self._rates
        rates.append(lr)
        self.lr_raised = lr > self._config.lr_rise_factor * rates[0]

    def _follow_cadence(self, step: int) -> None:
        """Take the noise anew when the log changes from, say, every step to every 500th.

        One long gap is a hole in the log, or skipped steps; a cadence takes several. An excursion
        that began with them is judged by noise that no longer applies, and is dropped.
        """
        gap = step - self._last_step
        self._last_step = step
        if gap <= 0:
            return
        if not self._gap or gap < _CADENCE_CHANGE * self._gap:
            self._gap, self._long_gaps = gap, 0
            return
        self._long_gaps += 1
        if self._long_gaps >= _CADENCE_GAPS and self.points <= _CADENCE_GAPS:
            self._gap, self._long_gaps = gap, 0
            self.adopt()

    def _is_ready(self) -> bool:
        return (
            len(self._noise) >= self._config.ready_points
            and len(self._centre) >= _LEAST_CENTRE_POINTS
        )

    def _judge(self, step: int, level: float) -> None:
        config = self._config
        centre = self._centre.median()
        sigma = max(self._jitter(), self._spread())
        frac = config.lr_rise_frac if self.lr_raised else config.min_rise_frac
        least = max(frac * abs(centre), config.min_rise_nats)
        threshold = centre + max(config.open_z * sigma, least)
        fair = centre + max(config.heal_z * sigma, least)
        if level > fair:
            if not self._run_points:
                self._run_onset = step
            self._run_points += 1
        else:
            self._run_points = max(0, self._run_points - 2)
        if level <= threshold and self._run_points < config.run_points:
            self._accept(step, level)
            return
        self.is_open = True
        self.reference, self.threshold, self._heal_level = (
            centre,
            threshold,
            centre + max(config.heal_z * sigma, least / 2),
        )
        self.onset_step = self._run_onset
        self.points = self.high_points = self._run_points
        self.peak = level
        self._memory = self._memory_of_log()
        # The points before the onset were ordinary, so healing starts from a full window.
        self._recent.extend([centre] * config.heal_points)
        self._recent.extend([level] * self._run_points)

    @property
    def is_high(self) -> bool:
        """Whether the latest point is above the level at which the excursion counts as healed."""
        return not self.latest <= self._heal_level

    def middle(self) -> float:
        """Return the median of the last points, the open excursion's present height."""
        return sorted(self._recent)[len(self._recent) >> 1]

    def echo_points(self) -> int:
        """Return for how many points the peak would be seen though it lasted only one.

        0 in a raw log. In a running average with memory m it fades as m**points.
        """
        rise, healed = self.peak - self.reference, self._heal_level - self.reference
        if self._memory <= 0.0 or rise <= healed:
            return 0
        points = math.log(rise / healed) / -math.log(self._memory)
        return int(min(points, _MAX_ECHO_POINTS))

    def _continue(self, level: float) -> None:
        self.points += 1
        self.high_points += level > self._heal_level
        self.peak = max(self.peak, level)
        self._recent.append(level)
        if self.points > self._config.adopt_points:
            self.adopt()
        elif level <= self._heal_level and self.middle() <= self._heal_level:
            self.close()

    def _accept(self, step: int, level: float) -> None:
        self._accepted.append(step)
        second = self._last - (self._before + level) / 2
        if second == second:
            self._noise.push(abs(second) * _SECOND_DIFFERENCE)
        self._before, self._last = self._last, level
        if len(self._centre):
            self._above.push(level - self._centre.median())
        self._centre.push(level)

    def _jitter(self) -> float:
        """Noise from point to point."""
        noise = self._noise
        return max(_MAD_TO_SIGMA * noise.median(), _Q75_TO_SIGMA * noise.quantile(0.75))

    def _spread(self) -> float:
        """Noise about the centre, on the upper side, where a fall does not show."""
        return _UPPER_Q75_TO_SIGMA * self._above.quantile(0.75)

    def _memory_of_log(self) -> float:
        """Return m if the log looks like a running average x = m * x_before + (1 - m) * raw.

        The ratio of jitter to spread falls as m grows: 0.43, 0.34 and 0.31 in recorded logs that
        were averaged with m = 0.8, 0.9 and 0.95; a straight line through these is used.
        """
        spread = self._spread()
        ratio = self._jitter() / spread if spread > 0.0 else 1.0
        return min(0.96, 1.316 - 1.2 * ratio) if ratio < _SMOOTHED_RATIO else 0.0
