"""Uploads and loads behind an S3 endpoint that fails in every way that one does.

Whatever the faults: what was committed loads bit by bit, no load gives out a wrong byte, and no
upload is left behind for ever.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from midwatch.checkpoints.manifest import Manifest
from midwatch.checkpoints.objects import open_store
from midwatch.checkpoints.remote import RunObjects
from midwatch.checkpoints.tiered import TieredSource, Tiers
from midwatch.checkpoints.uploading import Uploader
from midwatch.logbook.errors import MidwatchError
from midwatch.logbook.tiers import Storage
from midwatch.logbook.wire import encode_frame
from midwatch.operator.agent.upload_wire import UploadConfig

from tests.support import s3_servers
from tests.support.fault_proxy import KINDS, REFUSALS, Fault, Plan, fault_proxy
from tests.support.live_run import wait_until
from tests.support.parts import save_parts
from tests.support.s3_servers import Endpoint
from tests.unit.checkpoints.test_uploading import Heard

# The S3 client forgets to close the socket of a connection that broke while it was sending.
pytestmark = [
    pytest.mark.chaos,
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

MIB = 1 << 20
SEED = 20261125
LOAD_TRIES = 200


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    serve = s3_servers.seaweed if s3_servers.weed_path() else s3_servers.moto
    with serve(tmp_path_factory.mktemp("s3")) as found:
        yield found


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    s3_servers.lend_credentials(monkeypatch)
    yield
    # What the S3 client has dropped after a broken connection must not be found by later tests.
    gc.collect()


class Scene:
    """Two nodes, a store behind a proxy, and the same store without it."""

    def __init__(self, folder: Path, endpoint: Endpoint, proxy: str) -> None:
        self.folder = folder
        self.behind = endpoint.storage(folder, endpoint_url=proxy, run_id="id", timeout_s=5.0)
        self.direct = endpoint.storage(folder, run_id="id")
        self.truth = RunObjects(open_store(self.direct), "r", "id")
        self.roots = [folder / "n0", folder / "n1"]
        self.heard = [Heard() for _ in self.roots]
        self.uploaders = [
            Uploader(
                root,
                RunObjects(open_store(self.behind), "r", "id"),
                heard,
                run_id="id",
                retry_max_s=0.05,
            )
            for root, heard in zip(self.roots, self.heard, strict=True)
        ]

    def upload(self, until: Any, turns_max: int = 400) -> None:
        for _ in range(turns_max):
            for uploader in self.uploaders:
                uploader.turn()
            if until():
                return
            time.sleep(0.01)
        raise AssertionError([heard.troubles for heard in self.heard])

    def is_committed(self, *manifests: Manifest) -> bool:
        return {m.id for m in manifests} <= set(self.truth.committed())

    def assert_loads(self, storage: Storage, node: str, checkpoint: str, files: Any) -> None:
        """Load every file, however often it takes; a wrong byte fails at once."""
        for _ in range(LOAD_TRIES):
            at = msgspec.structs.replace(storage, local_root=str(self.folder / node))
            try:
                source = TieredSource(Tiers(at, "r", patience_s=1.0), checkpoint)
                for name, data in files.items():
                    assert bytes(source.read(name)) == data, f"wrong bytes of {name}"
                return
            except MidwatchError as error:
                told = error
        raise AssertionError(f"never loaded in {LOAD_TRIES} tries: {told}")

    def unfinished(self) -> list[str]:
        return [upload.key for upload in self.truth.store.unfinished("r/")]


@pytest.mark.parametrize("kind", KINDS)
def test_each_fault_alone(endpoint: Endpoint, tmp_path: Path, kind: str) -> None:
    up = [Fault(kind, method, lives=2) for method in ("PUT", "POST", "GET", "HEAD")]
    plan = Plan(faults=up)
    with fault_proxy(endpoint.url, plan) as proxy:
        scene = Scene(tmp_path, endpoint, proxy)
        manifest, files = save_parts(scene.roots, 5, size=6 * MIB)
        scene.upload(lambda: scene.is_committed(manifest))
        assert all(fault.struck for fault in up), up
        assert scene.unfinished() == []
        down = Fault(kind, "GET", lives=4)
        plan.faults = [down]
        scene.assert_loads(scene.behind, f"spare-{kind}", manifest.id, files)
        assert down.struck
    scene.assert_loads(scene.direct, "sober", manifest.id, files)


@pytest.mark.parametrize("seed", range(3))
def test_a_storm(endpoint: Endpoint, tmp_path: Path, seed: int) -> None:
    plan = Plan(rng=random.Random(SEED + seed), chance_frac=0.25)
    with fault_proxy(endpoint.url, plan) as proxy:
        scene = Scene(tmp_path, endpoint, proxy)
        saved = [save_parts(scene.roots, step, size=6 * MIB) for step in (5, 10)]
        manifests = [manifest for manifest, _ in saved]
        # A begun upload whose answer was lost is nobody's: it ends with its checkpoint's commit.
        scene.upload(lambda: scene.is_committed(*manifests) and not scene.unfinished())
        for manifest, files in saved:
            scene.assert_loads(scene.behind, "in-the-storm", manifest.id, files)
        plan.chance_frac = 0.0
        for manifest, files in saved:
            scene.assert_loads(scene.direct, "after-the-storm", manifest.id, files)
    assert len(plan.struck) > 5, f"seed {SEED + seed}: hardly a fault struck"
    assert scene.unfinished() == []
    assert scene.is_committed(*manifests)


def test_an_endpoint_that_is_away(endpoint: Endpoint, tmp_path: Path) -> None:
    plan = Plan(is_down=True)
    with fault_proxy(endpoint.url, plan) as proxy:
        scene = Scene(tmp_path, endpoint, proxy)
        manifest, files = save_parts(scene.roots, 5)
        for _ in range(10):
            for uploader in scene.uploaders:
                uploader.turn()
        assert [heard.troubles for heard in scene.heard] == [["store-unreachable"]] * 2
        spare = code_without_store(scene, manifest)
        assert spare == "store-unreachable"
        # What lies on the disk needs no store.
        own = {name: files[name] for name in ("__0_0.distcp", "__1_0.distcp")}
        scene.assert_loads(scene.behind, "n0", manifest.id, own)
        plan.is_down = False
        scene.upload(lambda: scene.is_committed(manifest))
        scene.assert_loads(scene.behind, "spare", manifest.id, files)
        assert all(uploader.is_well for uploader in scene.uploaders)


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_key_that_is_renewed_in_the_middle(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    """The old key is refused from the first part on; the new one stands where the chain looks."""
    keys = tmp_path / "credentials"
    s3_servers.write_key(keys, "AKIAOLDANDREVOKED")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys))
    plan = Plan(only_key=s3_servers.ACCESS_KEY, refusal=refusal)
    with fault_proxy(endpoint.url, plan) as proxy:
        scene = Scene(tmp_path, endpoint, proxy)
        manifest, files = save_parts(scene.roots, 5, size=6 * MIB)
        for _ in range(3):
            for uploader in scene.uploaders:
                uploader.turn()
        code = "credentials-expired" if refusal == "ExpiredToken" else "store-denied"
        assert [heard.troubles for heard in scene.heard] == [[code]] * 2
        assert code_without_store(scene, manifest) == code
        assert plan.struck
        s3_servers.write_key(keys, s3_servers.ACCESS_KEY)
        scene.upload(lambda: scene.is_committed(manifest))
        scene.assert_loads(scene.behind, "spare", manifest.id, files)
        assert all(uploader.is_well for uploader in scene.uploaders)


def code_without_store(scene: Scene, manifest: Manifest) -> str:
    at = msgspec.structs.replace(scene.behind, local_root=str(scene.folder / "nobody"))
    with pytest.raises(MidwatchError) as caught:
        TieredSource(Tiers(at, "r", patience_s=0.0), manifest.id)
    return caught.value.code


def start_uploader(scene: Scene, node: int) -> subprocess.Popen[bytes]:
    storage = msgspec.structs.replace(scene.behind, local_root=str(scene.roots[node]))
    child = subprocess.Popen(
        [sys.executable, "-m", "midwatch.operator.agent.uploader"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=s3_servers.environment(),
    )
    assert child.stdin is not None
    child.stdin.write(encode_frame(UploadConfig(run="r", storage=storage)))
    child.stdin.flush()
    return child


@pytest.mark.parametrize("seed", range(2))
def test_an_uploader_killed_at_any_request(endpoint: Endpoint, tmp_path: Path, seed: int) -> None:
    """Kill -9 between two requests again and again: each life goes on where the last one ended."""
    rng = random.Random(SEED + seed)
    deadly = sorted(rng.sample(range(2, 14), 3))
    victims: list[subprocess.Popen[bytes]] = []
    killed: list[int] = []
    seen = 0

    def strike(method: str, path: str) -> None:
        nonlocal seen
        seen += 1
        if deadly and seen >= deadly[0] and victims:
            killed.append(deadly.pop(0))
            os.kill(victims[-1].pid, signal.SIGKILL)

    with fault_proxy(endpoint.url, Plan(on_request=strike)) as proxy:
        scene = Scene(tmp_path, endpoint, proxy)
        manifest, files = save_parts(scene.roots[:1], 5, size=11 * MIB)
        for _ in range(4):
            seen = 0
            victims.append(start_uploader(scene, 0))
            wait_until(
                lambda: victims[-1].poll() is not None or scene.is_committed(manifest),
                f"seed {SEED + seed}: neither killed nor done",
                deadline_s=60.0,
            )
            if scene.is_committed(manifest) and victims[-1].poll() is None:
                break
        assert killed, f"seed {SEED + seed}: nobody was killed"
        assert scene.is_committed(manifest)
        assert scene.unfinished() == []
        victims[-1].kill()
        for victim in victims:
            victim.wait()
            assert victim.stdin is not None
            victim.stdin.close()
    scene.assert_loads(scene.direct, "spare", manifest.id, files)


def test_an_uploader_ends_with_its_agent(endpoint: Endpoint, tmp_path: Path) -> None:
    with fault_proxy(endpoint.url, Plan(is_down=True)) as proxy:
        scene = Scene(tmp_path, endpoint, proxy)
        save_parts(scene.roots[:1], 5)
        child = start_uploader(scene, 0)
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(timeout=60.0) == 0
