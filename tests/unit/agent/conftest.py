"""One supervisor over real processes, per test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from midwatch.tests.support.agents import Site, site


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as running:
        yield running
