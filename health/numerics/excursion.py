"""A series that leaves its usual range and has not come back; spike and level shift share one."""

from __future__ import annotations

import math
from collections import deque

from .baseline import Baseline
from .config import SpikeConfig
from .lr_watch import LrWatch

# Recorded logs of single points stay below it, at 0.3 to 1.2; running averages over ten lie at 2.5
# to 3. There a bad point echoes for some thirty, which is four times the usual patience.
_ALIKE = 1.6
_PATIENCE_PER_LIKENESS = 2.2
_PATIENCE_MAX = 5.0


class Excursion:
    """Follows a series and knows whether it is out of the ordinary, since when and how far.

    An excursion opens on one point far above the centre, or on a run of points each of which is
    only fairly high: a shift of a few noise units is seen that way. While it is open the baseline
    stands still, so a bad stretch never becomes the reference it is judged by.

    onset_step, points, high_points: where it began, its length, and how much of that was high.
    reference, threshold, peak, latest: centre before it, level that opened it, highest and latest.
    adoptions: how often a lasting excursion, or a new cadence, was taken for the new normal.
    """

    def __init__(self, config: SpikeConfig, lr: LrWatch) -> None:
        self._config = config
        self._lr = lr
        self._baseline = Baseline(config.centre_points, config.noise_points, config.ready_points)
        self._recent: deque[float] = deque(maxlen=config.heal_points)
        self._run_points = self._run_onset = 0
        self._heal_level = math.inf
        self.is_open = False
        self.adoptions = 0
        self.onset_step = self.points = self.high_points = 0
        self.reference = self.latest = math.nan
        self.threshold = math.inf
        self.peak = -math.inf

    def observe(self, step: int, value: float) -> None:
        """Take one value; NaN and infinity count as infinitely high."""
        level = value if -math.inf < value < math.inf else math.inf
        self.latest = value
        baseline = self._baseline
        # An excursion that began with the new cadence was judged by noise that no longer applies.
        if baseline.has_new_cadence(step) and self.points <= self._config.run_points:
            self.adopt()
        if self.is_open:
            self._continue(level)
        elif baseline.is_ready:
            self._judge(step, level)
        else:
            self._judge_early(step, level)

    def close(self) -> None:
        """Forget the open excursion and keep the reference."""
        self.is_open = False
        self.points = self.high_points = self._run_points = 0

    def restarted(self, at_step: int) -> None:
        """Forget the open excursion, and a reference from a part of the run that is undone."""
        self.close()
        self._baseline.rewind(at_step)

    def adopt(self) -> None:
        """Forget everything: what comes now is the new normal."""
        self.close()
        self._baseline.clear()
        self.adoptions += 1

    def _judge(self, step: int, level: float) -> None:
        config, baseline = self._config, self._baseline
        centre, sigma = baseline.centre, baseline.sigma
        rise = level - centre
        odd = rise > config.heal_z * sigma and rise > (least := self._least(centre))
        if odd:
            if not self._run_points:
                self._run_onset = step
            self._run_points += 1
            if rise > config.open_z * sigma or self._run_points >= config.run_points:
                self._open(level, centre, least)
                return
        elif self._run_points:
            self._run_points = max(0, self._run_points - 2)
        baseline.accept(step, level, odd=odd)

    def _judge_early(self, step: int, level: float) -> None:
        """Judge a point before the reference is complete: at the beginning, or after a restart.

        Only a large rise counts then, over the few points there are, or over what the loss was
        before the step that the run went back to: one that resumes sick is not to be learned from.
        """
        config, baseline = self._config, self._baseline
        reference, unsure = baseline.recalled, 1.0
        if reference != reference and baseline.num_points >= config.early_points:
            reference, unsure = baseline.centre, 2.0
        if reference == reference:
            least = config.early_factor * self._least(reference)
            if level - reference > max(unsure * config.open_z * baseline.sigma, least):
                self._run_points, self._run_onset = 1, step
                self._open(level, reference, least)
                return
        if level < math.inf:
            baseline.accept(step, level)

    def _least(self, centre: float) -> float:
        """Return the smallest rise that counts at all."""
        config = self._config
        frac = config.lr_rise_frac if self._lr.is_raised else config.min_rise_frac
        return max(frac * abs(centre), config.min_rise_nats * self.nats_scale)

    def _open(self, level: float, centre: float, least: float) -> None:
        config, sigma = self._config, self._baseline.sigma
        self.is_open = True
        self.reference = centre
        self.threshold = centre + max(config.open_z * sigma, least)
        self._heal_level = centre + max(config.heal_z * sigma, least / 2)
        self.onset_step = self._run_onset
        self.points = self.high_points = self._run_points
        self.peak = level
        # The points before the onset were ordinary, so healing starts from a full window.
        self._recent.extend([centre] * config.heal_points)
        self._recent.extend([level] * self._run_points)

    def _continue(self, level: float) -> None:
        self.points += 1
        self.high_points += level > self._heal_level
        self.peak = max(self.peak, level)
        self._recent.append(level)
        if self.points > self._config.adopt_points:
            self.adopt()
        elif level <= self._heal_level and self._middle() <= self._heal_level:
            self.close()

    @property
    def is_high(self) -> bool:
        """Whether the latest point is above the level at which the excursion counts as healed."""
        return not self.latest <= self._heal_level

    def height(self) -> float:
        """Return the median of the last points of the open excursion above the reference."""
        last = sorted(list(self._recent)[-self.points :])
        return last[len(last) >> 1] - self.reference

    @property
    def wander(self) -> float:
        """How far a few points together usually stray, for judging height()."""
        return self._baseline.wander

    @property
    def nats_scale(self) -> float:
        """What to multiply an absolute rise by: how high the run began against the usual."""
        return min(1.0, abs(self._baseline.highest) / self._config.begin_nats)

    @property
    def patience(self) -> float:
        """How many times more points to wait than in a log of independent ones; at least 1."""
        more = _PATIENCE_PER_LIKENESS * (self._baseline.likeness - _ALIKE)
        return 1.0 + min(max(more, 0.0), _PATIENCE_MAX - 1.0)

    def _middle(self) -> float:
        """Return the median of the last points, those before the onset included."""
        return sorted(self._recent)[len(self._recent) >> 1]
