"""Data recorded from real runs, which stays outside the repository."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def recorded(name: str) -> Path:
    """Return a folder of recorded data; skips the test that asks where it is absent."""
    folder = _ROOT / name
    if not folder.is_dir():
        pytest.skip(f"recorded data not here: ../shared/data/{name}")
    return folder


def recorded_rows(name: str, file: str) -> list[dict[str, str]]:
    """Return the rows of a recorded CSV file; skips the test that asks where it is absent."""
    with (recorded(name) / file).open(newline="") as lines:
        return list(csv.DictReader(lines))
