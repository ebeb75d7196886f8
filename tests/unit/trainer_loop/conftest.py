"""A small corpus and one warm process from which every test's workers are forked."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from midwatch.tests.support.crew import Nursery
from midwatch.trainer.data import corpus
from midwatch.trainer.data.build import BuildConfig, build


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus") / "stdlib"
    build([corpus.stdlib_dir()], out, BuildConfig(vocab_size=512, max_bytes=200_000))
    return out


@pytest.fixture(scope="session")
def trainer(corpus_dir: Path) -> dict[str, Any]:
    """A trainer section that makes a step in a few milliseconds."""
    return {
        "preset": "nano",
        "model": {"vocab": 512},
        "steps": 1000,
        "schedule": {"warmup_steps": 4},
        "data": {"dir": str(corpus_dir)},
        "checkpoint": {"interval_steps": 1000},
    }


@pytest.fixture(scope="session")
def stack_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stacks") / "stacks.txt"


@pytest.fixture(scope="session")
def nursery(trainer: dict[str, Any], stack_file: Path) -> Iterator[Nursery]:
    warm = Nursery(trainer, {"MIDWATCH_STACK_FILE": str(stack_file)})
    yield warm
    warm.close()


@pytest.fixture(autouse=True)
def _no_worker_survives(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "nursery" in request.fixturenames:
        warm: Nursery = request.getfixturevalue("nursery")
        warm.end_crews()
