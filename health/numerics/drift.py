"""Slow movement of a noisy series, seen in means of blocks of points."""

from __future__ import annotations

import math
from collections import deque

_MAD_TO_SIGMA = 1.0 / (0.6745 * math.sqrt(2.0))
_Q75_TO_SIGMA = 1.0 / (1.1503 * math.sqrt(2.0))
_SPAN_BLOCKS = 3


class Drift:
    """Compares where a series stands with the best it has been lately.

    Points are averaged in blocks, and three blocks are averaged again into a level. The noise is
    taken from the differences between levels that share no point, so whatever wanders on the scale
    of a level (shuffled data, correlated batches, a smoothed log) counts as noise, which a standard
    error computed from single points would miss.

    level, best:  mean of the last three blocks; lowest such level within the window before them.
    best_step:    step at which the best level ended.
    z:            (level - best) in noise units; 0 until there is enough history.
    """

    def __init__(self, block_points: int, window_blocks: int, ready_blocks: int) -> None:
        self._block_points = block_points
        self._ready_levels = ready_blocks - _SPAN_BLOCKS + 1
        self._blocks: deque[float] = deque(maxlen=_SPAN_BLOCKS)
        self._levels: deque[float] = deque(maxlen=window_blocks)
        self._steps: deque[int] = deque(maxlen=window_blocks)
        self.reset()

    def reset(self) -> None:
        """Forget the past: what comes now is the new normal."""
        self._sum = 0.0
        self._count = 0
        self._blocks.clear()
        self._levels.clear()
        self._steps.clear()
        self.level = self.best = math.nan
        self.best_step = 0
        self.noise = math.inf
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
        self._levels.append(sum(self._blocks) / _SPAN_BLOCKS)
        self._steps.append(step)
        if len(self._levels) < self._ready_levels:
            return False
        self._measure()
        return True

    def _measure(self) -> None:
        levels = list(self._levels)
        past = levels[:-_SPAN_BLOCKS]
        self.level = levels[-1]
        self.best = min(past)
        self.best_step = self._steps[past.index(self.best)]
        moves = sorted(
            abs(later - earlier) for earlier, later in zip(past, past[_SPAN_BLOCKS:], strict=False)
        )
        count = len(moves)
        self.noise = max(
            _MAD_TO_SIGMA * moves[count >> 1],
            _Q75_TO_SIGMA * moves[min(count - 1, int(0.75 * count))],
        )
        rise = self.level - self.best
        self.z = rise / self.noise if self.noise > 0.0 else (math.inf if rise > 0.0 else 0.0)
