"""A straight line fitted to a growing series in constant memory.

The fold keeps one Trend of the activation norm and one of the grad norm for every checkpoint, fed
with the steps that follow it: OPT's rule for a restart point asks which way they went.
"""

from __future__ import annotations

import math

import msgspec


class Trend(msgspec.Struct, frozen=True, omit_defaults=True):
    """Least-squares line through (step, value); add returns the next Trend.

    Held as running means and centred sums (Welford), so a million steps at step numbers of a
    million lose no precision. Values that are not finite are counted and left out of the line.
    """

    count: int = 0
    num_nonfinite: int = 0
    mean_step: float = 0.0
    mean_value: float = 0.0
    step_moment: float = 0.0
    cross_moment: float = 0.0

    def add(self, step: int, value: float) -> Trend:
        """Return the trend that has also seen value at step."""
        if not math.isfinite(value):
            return msgspec.structs.replace(self, num_nonfinite=self.num_nonfinite + 1)
        count = self.count + 1
        ahead = step - self.mean_step
        mean_step = self.mean_step + ahead / count
        mean_value = self.mean_value + (value - self.mean_value) / count
        return Trend(
            count=count,
            num_nonfinite=self.num_nonfinite,
            mean_step=mean_step,
            mean_value=mean_value,
            step_moment=self.step_moment + ahead * (step - mean_step),
            cross_moment=self.cross_moment + ahead * (value - mean_value),
        )

    @property
    def num_points(self) -> int:
        """How many values were seen, finite or not."""
        return self.count + self.num_nonfinite

    @property
    def slope(self) -> float | None:
        """Change of value per step; None until two different steps were seen."""
        return self.cross_moment / self.step_moment if self.step_moment > 0.0 else None

    @property
    def relative_slope(self) -> float | None:
        """Slope as a fraction of the mean magnitude per step, so that runs of any scale compare.

        Returns: None while unknown; +inf once any value was not finite, since a norm that
            overflowed has not trended down, whatever its finite part did.
        """
        if self.num_nonfinite:
            return math.inf
        slope = self.slope
        if slope is None:
            return None
        if slope == 0.0:
            return 0.0
        return slope / abs(self.mean_value) if self.mean_value else math.copysign(math.inf, slope)
