"""Settings for every test: a private Ray is asked for a token, which ray reads when imported."""

from __future__ import annotations

import os
from typing import Any

import pytest
from midwatch.operator.runtime.local_ray import set_local_environment
from xdist.scheduler import LoadScopeScheduling

os.environ.pop("RAY_ADDRESS", None)
set_local_environment()

# Whole runs on Ray start many processes each: they are made one after the other, by one process,
# and share one cluster. Every other file is free to run beside them.
ON_RAY = ("tests/chaos/test_live_", "tests/e2e/")


class ByFile(LoadScopeScheduling):
    """Keeps the tests of one file together, since they share its fixtures, and those on Ray too."""

    def _split_scope(self, nodeid: str) -> str:
        name = nodeid.partition("::")[0]
        return "ray" if name.startswith(ON_RAY) else name


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """Return who decides which process runs what, where there are several."""
    return ByFile(config, log)
