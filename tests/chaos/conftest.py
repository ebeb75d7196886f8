"""What the live runs share: one private Ray, a little data, and the run that nothing disturbs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from midwatch.logbook.state import Status
from midwatch.operator.runtime.session import Session, ray_session
from ray._private import worker as ray_worker

from tests.support.live_run import LiveRun, build_corpus, nano_spec


@pytest.fixture(scope="session")
def session() -> Iterator[Session]:
    with ray_session("local") as joined:
        started = ray_worker._global_node.all_processes.values()
        processes = [info.process for infos in started for info in infos]
        yield joined
    # Ray waits a second for each of its processes. Where one takes longer to end, nobody would
    # take its status, which whichever test is torn down next would be blamed for.
    for process in processes:
        process.wait(30.0)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_corpus(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def undisturbed(
    session: Session, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, float]:
    """The loss of every step of a run that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with LiveRun(nano_spec("undisturbed", folder, corpus), session) as run:
        state = run.finish()
        assert state.status is Status.COMPLETED
        assert not state.incidents
        losses = run.losses()
    assert sorted(losses) == list(range(1, 41))
    return losses
