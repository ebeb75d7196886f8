"""Runs to be served: small ones, with a night behind them or nothing at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from midwatch.tests.support.api_server import ApiServer
from midwatch.tests.support.synthetic_run import SyntheticRun, write_night


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SyntheticRun]:
    """A run with two incidents and three attempts, training on."""
    run = write_night(tmp_path_factory.mktemp("served") / "night", nodes=9, spares=1, slots=2)
    yield run
    run.close()


@pytest.fixture(scope="module")
def server(night: SyntheticRun) -> Iterator[ApiServer]:
    with ApiServer(night.folder) as serving:
        yield serving


@pytest.fixture
def small_run(tmp_path: Path) -> Iterator[SyntheticRun]:
    """A run of two nodes and a few steps, of the test alone."""
    run = SyntheticRun(tmp_path / "run", nodes=2, spares=1, slots=2)
    run.start("the first attempt")
    run.train(12)
    yield run
    run.close()
