"""Spans are written in the units a person would use."""

from __future__ import annotations

import pytest
from midwatch.logbook.clock import span_text


@pytest.mark.parametrize(
    ("span_s", "text"),
    [
        (None, "-"),
        (0.084, "84 ms"),
        (1.32, "1.32 s"),
        (250.0, "4 min 10 s"),
        (7500.0, "2 h 5 min"),
        (48 * 3600.0 - 1.0, "47 h 59 min"),
        (48 * 3600.0, "2 d 0 h"),
        (103984 * 3600.0 + 54 * 60.0, "4332 d 16 h"),
    ],
)
def test_a_span_is_told_in_its_own_unit(span_s: float | None, text: str) -> None:
    assert span_text(span_s) == text
