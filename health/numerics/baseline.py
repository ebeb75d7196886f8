"""What is usual for a series: where it is, how much it scatters, how it is logged."""

from __future__ import annotations

import math
from collections import deque

from .window import SortedWindow

_MAD_TO_SIGMA = 1.4826
_Q75_TO_SIGMA = 1.0 / 1.1503
_UPPER_Q75_TO_SIGMA = 1.0 / 0.6745
# A second difference x1 - (x0 + x2) / 2 of independent noise has sqrt(1.5) times its deviation.
_SECOND_DIFFERENCE = 1.0 / math.sqrt(1.5)
_UPPER_Q90_TO_SIGMA = 1.0 / 1.2816
_LEAST_CENTRE_POINTS = 5
_WANDER_POINTS = 5
_LEAST_WANDERS = 8
_CADENCE_CHANGE = 4
_CADENCE_GAPS = 3
# The noise changes slowly, so it is taken from its windows at every fourth point only.
_NOISE_EVERY = 4
# Centres of the past are kept at every so many points; of twice as many when the store is full.
_PAST_EVERY = 16
_LIKENESSES = 16
_LIKENESS_MAX = 6.0
_PAST_CENTRES = 128


class Baseline:
    """Learns from ordinary points; which those are is for the caller to say.

    centre: median of a few points; short, so that it follows a series that is falling fast.
    sigma:  noise, the larger of two robust estimates. Second differences know nothing of a steady
        fall; the upper spread about the centre sees noise that wanders from point to point, as in
        a running average. Quartiles keep a heavy-tailed log (one rank's batch) quiet.
    wander: how far the median of five points strays above the centre, as a deviation. Far below
        sigma in a log of independent points, as large where neighbours are alike.
    highest: the highest centre so far.
    likeness: spread against what second differences tell, about 1 where points are independent and
        2 or more where neighbours are alike; a slow mean, since it belongs to the log.
    recalled: the centre before the step to which the run has gone back; NaN where none is known.
    """

    def __init__(self, centre_points: int, noise_points: int, ready_points: int) -> None:
        self._ready_points = ready_points
        self._centres = SortedWindow(centre_points)
        self._jitters = SortedWindow(noise_points)
        self._spreads = SortedWindow(noise_points)
        self._wanders = SortedWindow(noise_points)
        self._lately: deque[float] = deque(maxlen=_WANDER_POINTS)
        self._steps: deque[int] = deque(maxlen=centre_points)
        self.highest = -math.inf
        self.likeness = 1.0
        self._likenesses = 0
        self._past: list[tuple[int, float]] = []
        self._past_every = _PAST_EVERY
        self._gap = self._long_gaps = self._last_step = 0
        self.clear()

    def clear(self) -> None:
        """Forget everything: what comes now is the new normal."""
        self._jitters.clear()
        self._spreads.clear()
        self._wanders.clear()
        self._forget_centre()
        self._age = 0
        self.jitter = self.spread = self.sigma = self.wander = 0.0

    def _forget_centre(self) -> None:
        self._centres.clear()
        self._lately.clear()
        self._steps.clear()
        self._before = self._last = math.nan
        self.centre = self.recalled = math.nan
        self.is_ready = False

    @property
    def num_points(self) -> int:
        """How many points the centre is taken from."""
        return len(self._steps)

    def rewind(self, at_step: int) -> None:
        """Forget a centre of which half was learned after at_step; the noise is kept.

        A run rolled back to an early step starts from the higher loss it had there; what the loss
        had come down to since is no reference for that, and what it was before is.
        """
        while self._past and self._past[-1][0] > at_step:
            self._past.pop()
        if not self._steps or at_step < self._steps[len(self._steps) >> 1]:
            self._forget_centre()
            self.recalled = self._past[-1][1] if self._past else math.nan

    def accept(self, step: int, level: float, *, odd: bool = False) -> None:
        """Learn from one ordinary, finite point.

        odd: ordinary enough to move the centre, and too high to tell anything about the noise. In a
        run that spikes every tenth point the spikes would otherwise hide each other.
        """
        # Once enough is known, one of the two estimates learns at a time: it is half the cost.
        age = self._age = self._age + 1
        if not odd:
            if not self.is_ready or age & 1:
                second = self._last - (self._before + level) * 0.5
                if second == second:
                    self._jitters.push(abs(second) * _SECOND_DIFFERENCE)
            if not (self.is_ready and age & 1) and self._steps:
                self._spreads.push(level - self.centre)
            self._before = self._last
            self._last = level
        self._steps.append(step)
        self._lately.append(level)
        centres = self._centres
        centres.push(level)
        ordered = centres.ordered
        self.centre = ordered[len(ordered) >> 1]
        if age % _NOISE_EVERY == 0:
            self._measure()
            self._measure_wander()
            if age % _PAST_EVERY == 0:
                self._learn_habits(step)
        elif not self.is_ready:
            self._measure()

    def _measure(self) -> None:
        jitters, spreads = self._jitters.ordered, self._spreads.ordered
        count, spread_count = len(jitters), len(spreads)
        self.is_ready = count >= self._ready_points and len(self._steps) >= _LEAST_CENTRE_POINTS
        if not count:
            return
        middle = _MAD_TO_SIGMA * jitters[count >> 1]
        upper = _Q75_TO_SIGMA * jitters[(3 * count) >> 2]
        jitter = self.jitter = middle if middle > upper else upper
        spread = self.spread = _UPPER_Q75_TO_SIGMA * spreads[(3 * spread_count) >> 2]
        self.sigma = jitter if jitter > spread else spread

    def _learn_habits(self, step: int) -> None:
        """Note how the log is written and where it has been; neither changes fast."""
        self.highest = max(self.highest, self.centre)
        if self.jitter > 0.0:
            self._likenesses = min(self._likenesses + 1, _LIKENESSES)
            now = min(max(self.spread / self.jitter, 0.0), _LIKENESS_MAX)
            self.likeness += (now - self.likeness) / self._likenesses
        if self._age % self._past_every:
            return
        past = self._past
        past.append((step, self.centre))
        if len(past) > _PAST_CENTRES:
            del past[1::2]
            self._past_every *= 2

    def _measure_wander(self) -> None:
        if len(self._lately) < _WANDER_POINTS:
            return
        self._wanders.push(sorted(self._lately)[_WANDER_POINTS >> 1] - self.centre)
        if len(self._wanders) >= _LEAST_WANDERS:
            self.wander = max(0.0, _UPPER_Q90_TO_SIGMA * self._wanders.quantile(0.9))

    def has_new_cadence(self, step: int) -> bool:
        """Take the step of every point; return whether the log has become much coarser.

        Noise learned every step does not apply to a log every 500th. One long gap is a hole in the
        log, or skipped steps; a cadence takes several.
        """
        gap = step - self._last_step
        self._last_step = step
        if gap == self._gap:
            self._long_gaps = 0
            return False
        return gap > 0 and self._has_lasting_gap(gap)

    def _has_lasting_gap(self, gap: int) -> bool:
        if not self._gap or gap < _CADENCE_CHANGE * self._gap:
            self._gap, self._long_gaps = gap, 0
            return False
        self._long_gaps += 1
        if self._long_gaps < _CADENCE_GAPS:
            return False
        self._gap, self._long_gaps = gap, 0
        return True
