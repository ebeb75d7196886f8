"""Slow movement of a noisy series, seen in means of blocks of points."""

from __future__ import annotations

import math
from collections import deque

# A bend l0 - 2 l1 + l2 of independent levels has sqrt(6) times their deviation.
_MEDIAN_TO_SIGMA = 1.0 / (0.6745 * math.sqrt(6.0))
_Q75_TO_SIGMA = 1.0 / (1.1503 * math.sqrt(6.0))
_SPAN_BLOCKS = 3
# Bends wait so long before they count as noise: a drift under way must not pass for noise.
_DELAY_BLOCKS = 24
_NOISE_BLOCKS = 96
# The noise changes slowly: it is taken anew at every fourth level only.
_NOISE_EVERY = 4


class Drift:
    """Compares where a series stands with the best it has been lately.

    Points are averaged in blocks, and three blocks are averaged again into a level. The noise is
    taken from the bends between levels that share no point, so whatever wanders on the scale of a
    level (shuffled data, correlated batches, a smoothed log) counts as noise, which a standard
    error computed from single points would miss, and a steady fall or climb does not.

    level, best:  mean of the last three blocks; lowest such level within the window before them.
    best_step:    step at which the best level ended.
    z:            (level - best) in noise units; 0 until there is enough history.
    """

    def __init__(self, block_points: int, window_blocks: int, ready_blocks: int) -> None:
        self._block_points = block_points
        self._ready_bends = ready_blocks
        self._blocks: deque[float] = deque(maxlen=_SPAN_BLOCKS)
        self._levels: deque[float] = deque(maxlen=window_blocks)
        self._steps: deque[int] = deque(maxlen=window_blocks)
        self._bends: deque[float] = deque(maxlen=_DELAY_BLOCKS + _NOISE_BLOCKS)
        self.reset()

    def reset(self) -> None:
        """Forget the past: what comes now is the new normal."""
        self._sum = 0.0
        self._count = 0
        self._blocks.clear()
        self._levels.clear()
        self._steps.clear()
        self._bends.clear()
        self.level = self.best = math.nan
        self.best_step = 0
        self.noise = math.inf
        self._stale = 0
        self.z = 0.0

    def observe(self, step: int, value: float) -> bool:
        """Take one finite value; return whether a block is complete and the figures are new."""
        self._sum += value
        self._count += 1
        if self._count < self._block_points:
            return False
        self._blocks.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        if len(self._blocks) < _SPAN_BLOCKS:
            return False
        level = sum(self._blocks) / _SPAN_BLOCKS
        if len(self._levels) >= 2 * _SPAN_BLOCKS:
            first, second = self._levels[-2 * _SPAN_BLOCKS], self._levels[-_SPAN_BLOCKS]
            self._bends.append(abs(first - 2.0 * second + level))
        self._levels.append(level)
        self._steps.append(step)
        if len(self._bends) < self._ready_bends:
            return False
        self._measure()
        return True

    def growth(self, span_levels: int) -> tuple[float, float]:
        """Return (growth over the last span_levels levels, in excess of the span before; its z).

        Growth that merely goes on as before is no news: the smaller of growth and its excess over
        the preceding span is returned, and z in noise units. (0.0, 0.0) without enough history.
        """
        levels = self._levels
        if len(levels) <= 2 * span_levels or not self.noise < math.inf:
            return 0.0, 0.0
        now, middle, before = levels[-1], levels[-1 - span_levels], levels[-1 - 2 * span_levels]
        excess = min(now - middle, now - 2.0 * middle + before)
        if self.noise <= 0.0:
            return excess, math.inf if excess > 0.0 else 0.0
        return excess, excess / (self.noise * math.sqrt(6.0))

    def step_of(self, levels_back: int) -> int:
        """Return the step at which the level so many levels back ended."""
        return self._steps[-1 - levels_back]

    def _measure(self) -> None:
        past = list(self._levels)[:-_SPAN_BLOCKS]
        self.level = self._levels[-1]
        self.best = min(past)
        self.best_step = self._steps[past.index(self.best)]
        if self._stale == 0 or self.noise == math.inf:
            self._measure_noise()
        self._stale = (self._stale + 1) % _NOISE_EVERY
        rise = self.level - self.best
        self.z = rise / self.noise if self.noise > 0.0 else (math.inf if rise > 0.0 else 0.0)

    def _measure_noise(self) -> None:
        settled = max(len(self._bends) - _DELAY_BLOCKS, self._ready_bends - _SPAN_BLOCKS)
        bends = sorted(list(self._bends)[:settled])
        count = len(bends)
        # Few bends tell little about their spread: ask for more when they are few.
        self.noise = (1.0 + 4.0 / count) * max(
            _MEDIAN_TO_SIGMA * bends[count >> 1], _Q75_TO_SIGMA * bends[(3 * count) >> 2]
        )
