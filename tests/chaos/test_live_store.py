"""Whole runs whose checkpoints lie on each node's disk and in a durable store."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from midwatch.checkpoints.manifest import MANIFEST_NAME
from midwatch.checkpoints.objects import open_store
from midwatch.checkpoints.remote import RunObjects
from midwatch.logbook import events as ev
from midwatch.logbook.state import RunState, Status
from midwatch.operator.runtime.session import Session
from midwatch.operator.spec import RunSpec
from midwatch.operator.storage import run_id_of, storage_of

from tests.support import s3_servers
from tests.support.live_run import (
    DEADLINE_S,
    LiveRun,
    is_training,
    kill,
    nano_spec,
    strike_controller,
    wait_until,
)
from tests.support.s3_servers import BUCKET, Endpoint

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    serve = s3_servers.seaweed if s3_servers.weed_path() else s3_servers.moto
    with serve(tmp_path_factory.mktemp("s3")) as found:
        yield found


KEEP_LITTLE = {"keep_newest": 1, "keep_local": 1}


def stored_spec(
    name: str, run_dir: Path, corpus: Path, store: dict[str, Any], **changes: Any
) -> RunSpec:
    credentials: dict[str, str] = {}
    s3_servers.set_credentials(credentials)
    # Memory would be quicker than the store that is to be seen at work here.
    checkpoints = {
        "store": {"part_mib": 5, "timeout_s": 10, "retry_max_s": 1} | store,
        "memory": {"mode": "off"},
    }
    return nano_spec(name, run_dir, corpus, checkpoints=checkpoints, env=credentials, **changes)


def s3_section(endpoint: Endpoint, folder: Path) -> dict[str, Any]:
    return {
        "url": f"s3://{BUCKET}/{folder.name}",
        "endpoint_url": endpoint.url,
        "path_style": True,
    }


def remote_of(run: LiveRun) -> RunObjects:
    storage = storage_of(run.spec, run.run_dir, run_id_of(run.run_dir), "test")
    assert storage is not None
    return RunObjects(open_store(storage), run.spec.name, storage.run_id)


def bytes_of(path: Path) -> bytes:
    """Return what path holds; agents go on clearing away old checkpoints."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def assert_secrets_kept_back(run: LiveRun) -> None:
    """Nothing in the run's folder holds the values that the run itself could not do without."""
    env = run.spec.env
    secrets = [env[name].encode() for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
    files = [path for path in run.run_dir.rglob("*") if path.is_file()]
    assert any("journal" in path.parts for path in files)
    told = [path for path in files for secret in secrets if secret in bytes_of(path)]
    assert told == []
    # Nor is a spec whose values were kept back taken for another one by a later controller.
    (submitted,) = [e for e in run.events() if isinstance(e, ev.RunSubmitted)]
    assert submitted.spec["env"].keys() == env.keys()


def lose_node_of_rank_0(run_dir: Path, when_stored: int) -> Any:
    """Kill the agent that serves rank 0 and take its disk away, once so many are in the store."""

    def strike(state: RunState) -> bool:
        stored = [c for c in state.checkpoints.values() if c.uploaded_s is not None]
        if not is_training(state) or len(stored) < when_stored:
            return False
        assert state.attempt is not None
        node = state.attempt.plan.node_of(0) or ""
        if not kill(state.nodes[node].pid):
            return False
        shutil.rmtree(run_dir / "local" / node, ignore_errors=True)
        return True

    return strike


@pytest.fixture(params=["s3", "path"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    if request.param == "path":
        return {"url": str(tmp_path / "shared")}
    found: Endpoint = request.getfixturevalue("endpoint")
    return s3_section(found, tmp_path)


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    s3_servers.lend_credentials(monkeypatch)


def test_a_node_lost_with_its_disk(
    session: Session,
    corpus: Path,
    undisturbed: dict[int, float],
    tmp_path: Path,
    store: dict[str, Any],
) -> None:
    # The run waits for the store, however slow that is, and for the fault after it.
    spec = stored_spec(
        "stored",
        tmp_path,
        corpus,
        store,
        spares=1,
        entry_points={"worker": "midwatch.tests.support.stuck_rank:held"},
        restart={"hang_min_s": 2 * DEADLINE_S},
    )
    with LiveRun(spec, session) as run:
        state = run.until(
            lambda state: state.num_attempts == 2 and is_training(state),
            lose_node_of_rank_0(tmp_path, when_stored=2),
        )
        assert state.attempt is not None
        spare = state.attempt.plan.placements[0]
        resumed_from = state.attempt.resumed_from
        assert shards_on(tmp_path, spare.node, resumed_from) == {"__0_0.distcp", "__1_0.distcp"}

        state = run.finish()
        assert state.status is Status.COMPLETED, run.describe()
        assert run.losses() == undisturbed
        run.assert_fold_is_live()
        (resumed,) = [e for e in run.events() if isinstance(e, ev.AttemptResumed) and e.checkpoint]
        assert resumed.checkpoint == resumed_from
        assert resumed.tier == "store"
        assert resumed.repaired == ()
        # The run ended only once its last state was safe.
        remote = remote_of(run)
        last = max(state.checkpoints.values(), key=lambda c: c.step)
        assert last.step == 40
        assert last.uploaded_s is not None
        assert remote.manifest(last.checkpoint) is not None
        assert not state.upload_trouble
        assert_secrets_kept_back(run)


def shards_on(run_dir: Path, node: str, checkpoint: str) -> set[str]:
    folder = run_dir / "local" / node / "checkpoints" / checkpoint
    return {path.name for path in folder.glob("*.distcp")}


def test_retention_and_the_store(session: Session, corpus: Path, tmp_path: Path) -> None:
    store = {"url": str(tmp_path / "shared")}
    # However long the next controller takes to come, training is not over before it is there.
    spec = stored_spec(
        "kept",
        tmp_path,
        corpus,
        store,
        retention=KEEP_LITTLE,
        trainer={"steps": 80},
        entry_points={"worker": "midwatch.tests.support.stuck_rank:until_pruned"},
        restart={"hang_min_s": 2 * DEADLINE_S},
    )
    with LiveRun(spec, session) as run:
        state = run.finish(strike_controller(lambda state: len(state.checkpoints) >= 2))
        assert state.status is Status.COMPLETED, run.describe()
        remote = remote_of(run)
        gone = set(state.pruned)
        assert gone
        assert set(remote.committed()).isdisjoint(gone)
        assert all(remote.is_deleted(name) for name in gone)
        assert set(remote.committed()) <= set(state.checkpoints)
        for node in state.nodes:
            folder = tmp_path / "local" / node / "checkpoints"
            parts = [p.name for p in folder.glob("*") if (p / MANIFEST_NAME).exists()]
            wait_until(
                lambda parts=parts: set(parts).isdisjoint(gone), f"{node} keeps {parts}, {gone}"
            )
        assert_secrets_kept_back(run)
