"""One made-up run for all tests that only look at it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from midwatch.tests.support.synthetic_run import SyntheticRun, write_night


@pytest.fixture(scope="session")
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SyntheticRun]:
    """992 GPUs, a dead one, a divergence: nobody writes to it any more."""
    run = write_night(tmp_path_factory.mktemp("night"))
    yield run
    run.close()


@pytest.fixture
def small_run(tmp_path: Path) -> Iterator[SyntheticRun]:
    """A run on four nodes of two GPUs, for tests that let it go on."""
    run = SyntheticRun(tmp_path / "run", nodes=4, spares=1, slots=2)
    run.start("the first attempt")
    run.train(60)
    yield run
    run.close()
