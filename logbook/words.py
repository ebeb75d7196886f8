"""Sizes, counts and lists as a person would say them."""

from __future__ import annotations

from collections.abc import Sequence


def bytes_text(size: int) -> str:
    """Return a size in the unit a person would use."""
    if size < 1000:
        return f"{size} bytes"
    scaled = float(size)
    for unit in ("kB", "MB", "GB"):
        scaled /= 1000
        if scaled < 1000:
            return f"{scaled:.3g} {unit}"
    return f"{scaled / 1000:.3g} TB"


def steps_text(count: int) -> str:
    """Return a number of steps in words."""
    return f"{count:,} step" if count == 1 else f"{count:,} steps"


def some_of(names: Sequence[str], most: int = 4) -> str:
    """Return the first few names and how many more there are: 124 nodes would hide the reason."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
