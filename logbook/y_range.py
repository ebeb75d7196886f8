"""The range of values that a picture of a curve shows, where a few of them would flatten the rest.

The first steps of a long run have ten nats and the others two; one spike to a hundred does the
same to all there is to see. Such values are cut off, and whoever draws says so. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

OUT_FRAC = 0.02
"""At most so much of the curve lies wholly beyond either edge of the picture."""
TOUCH_FRAC = 0.5
"""And so much of it in part, since a stretch of many steps holds many a spike."""
PAYS = 3.0
"""Nothing is cut off unless what is left would have had less than a quarter of the height."""
ROOM_FRAC = 0.5
"""Room beyond what is left, so that a curve can be seen to leave it."""


class YRange(msgspec.Struct, frozen=True):
    """Values shown, from low to high, and those there are: least to greatest."""

    low: float
    high: float
    least: float
    greatest: float

    @property
    def is_cut_low(self) -> bool:
        return self.least < self.low

    @property
    def is_cut_high(self) -> bool:
        return self.greatest > self.high


def y_range(spans: Sequence[tuple[float, float]]) -> YRange:
    """Return the range for a curve given as (low, high) of equal stretches, one at least."""
    lows, highs = sorted(low for low, _ in spans), sorted(high for _, high in spans)
    least, greatest = lows[0], highs[-1]
    high = max(_at(lows, 1.0 - OUT_FRAC), _at(highs, 1.0 - TOUCH_FRAC))
    low = min(_at(highs, OUT_FRAC), _at(lows, TOUCH_FRAC))
    span = high - low
    shown_low, shown_high = least, greatest
    if span > 0.0 and greatest - high > PAYS * span:
        shown_high = min(high + ROOM_FRAC * span, greatest)
    if span > 0.0 and low - least > PAYS * span:
        shown_low = max(low - ROOM_FRAC * span, least)
    return YRange(shown_low, shown_high, least, greatest)


def cut_text(shown: YRange, form: str) -> str:
    """Return what is cut off, in words behind a range; "" where nothing is."""
    words = [f"peaks to {shown.greatest:{form}}"] if shown.is_cut_high else []
    words += [f"dips to {shown.least:{form}}"] if shown.is_cut_low else []
    return f", {' and '.join(words)} cut off" if words else ""


def _at(ordered: Sequence[float], frac: float) -> float:
    return ordered[round(frac * (len(ordered) - 1))]
