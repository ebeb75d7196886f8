"""How moments and spans are written for people."""

from __future__ import annotations

import time

LONG_S = 48 * 3600.0
"""From here on days are counted."""


def clock_text(time_s: float) -> str:
    """Return a moment as UTC, to the millisecond: 2026-01-02 03:04:05.678Z."""
    whole = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(time_s))
    return f"{whole}.{int(time_s % 1 * 1000):03d}Z"


def span_text(span_s: float | None) -> str:
    """Return a span in the units a person would use: 84 ms, 1.32 s, 4 min 10 s, 2 h 5 min, 3 d."""
    if span_s is None:
        return "-"
    if span_s < 1:
        return f"{span_s * 1000:.0f} ms"
    if span_s < 60:
        return f"{span_s:.2f} s"
    if span_s < 3600:
        return f"{int(span_s // 60)} min {int(span_s % 60)} s"
    if span_s < LONG_S:
        return f"{int(span_s // 3600)} h {int(span_s % 3600 // 60)} min"
    return f"{int(span_s // 86400)} d {int(span_s % 86400 // 3600)} h"
