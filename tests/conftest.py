"""Settings for every test: a private Ray is asked for a token, which ray reads when imported."""

from __future__ import annotations

import os

import pytest
from midwatch.operator.runtime.local_ray import set_local_environment

os.environ.pop("RAY_ADDRESS", None)
set_local_environment()

# Whole runs on Ray start many processes each: they are made one after the other, by one process,
# and share one cluster. Every other file is free to run beside them.
ON_RAY = ("tests/chaos/test_live_", "tests/e2e/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of one file together, since they share its fixtures, and those on Ray too."""
    for item in items:
        name = item.nodeid.partition("::")[0]
        group = "ray" if name.startswith(ON_RAY) else name
        item.add_marker(pytest.mark.xdist_group(group))
