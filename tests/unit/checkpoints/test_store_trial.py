"""Whether a store can be used, found out on real ones."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from midwatch.checkpoints import store_trial
from midwatch.checkpoints.objects import open_store, prepare_store
from midwatch.checkpoints.objects_folder import FolderStore
from midwatch.checkpoints.remote import ORPHAN_S, TRIALS, RunObjects
from midwatch.checkpoints.store_trial import try_store
from midwatch.logbook.errors import IntegrityError, MidwatchError, Retryable
from midwatch.logbook.preflight import LIMITS, Thoroughness
from midwatch.logbook.tiers import Storage
from midwatch.trainer import preflight_checks
from midwatch.trainer.preflight_checks import LocalChecks
from msgspec.structs import replace

from tests.support import s3_servers
from tests.support.fault_proxy import Fault, Plan, fault_proxy
from tests.support.s3_servers import BUCKET, Endpoint


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    with s3_servers.moto(tmp_path_factory.mktemp("moto")) as found:
        yield found


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    s3_servers.lend_credentials(monkeypatch)


def test_a_bucket_that_can_be_used_is_left_as_it_was(endpoint: Endpoint, tmp_path: Path) -> None:
    storage = endpoint.storage(tmp_path)
    try_store(storage, "run", "node-0", patience_s=0.0)
    assert list(open_store(storage).listing("")) == []


def test_a_failure_that_passes_is_waited_for(endpoint: Endpoint, tmp_path: Path) -> None:
    faults = [Fault("503", method, lives=1) for method in ("PUT", "GET", "POST")]
    with fault_proxy(endpoint.url, Plan(faults=faults)) as proxy:
        storage = endpoint.storage(tmp_path, endpoint_url=proxy)
        try_store(storage, "run", "node-0", patience_s=60.0)
    assert all(fault.struck for fault in faults)
    assert list(open_store(endpoint.storage(tmp_path)).listing("")) == []


def test_a_bucket_that_is_not_there_is_told_at_once(endpoint: Endpoint, tmp_path: Path) -> None:
    storage = endpoint.storage(tmp_path, url="s3://nobody-made-this/prefix")
    with pytest.raises(MidwatchError) as caught:
        try_store(storage, "run", "node-0", patience_s=600.0)
    assert caught.value.code == "bucket-missing"
    assert not isinstance(caught.value, Retryable)


def test_a_store_that_is_away_is_told_when_patience_ends(tmp_path: Path) -> None:
    (port,) = s3_servers.free_ports(1)
    away = Endpoint(f"http://127.0.0.1:{port}", is_strict=False)
    with pytest.raises(Retryable) as caught:
        try_store(away.storage(tmp_path), "run", "node-0", patience_s=0.0)
    assert caught.value.code == "store-unreachable"


def test_a_folder_that_is_not_mounted_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    with pytest.raises(MidwatchError) as caught:
        try_store(
            Storage(url=str(tmp_path / "store"), local_root=""), "run", "node-0", patience_s=0.0
        )
    assert caught.value.code == "store-unreachable"
    assert list((tmp_path / "store").rglob("*")) == []


class Rotting(FolderStore):
    """A store that gives back other bytes than it took."""

    def read(self, key: str) -> bytes | None:
        data = super().read(key)
        return data and data[:-1] + bytes([data[-1] ^ 1])


def test_other_bytes_than_were_stored_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_store(str(tmp_path / "store"))
    storage = Storage(url=str(tmp_path / "store"), local_root="")
    monkeypatch.setattr(store_trial, "open_store", lambda found: Rotting(found.url))
    with pytest.raises(IntegrityError) as caught:
        try_store(storage, "run", "node-0", patience_s=600.0)
    assert caught.value.code == "object-altered"
    assert list(open_store(replace(storage)).listing("")) == []


def test_what_a_trial_left_behind_is_swept_a_day_later(tmp_path: Path) -> None:
    prepare_store(str(tmp_path / "store"))
    store = open_store(Storage(url=str(tmp_path / "store"), local_root=""))
    store.put_new(f"run/{TRIALS}/node-0-abc", b"x")
    now_s = time.time()
    RunObjects(store, "run", "id").sweep(attempt=2, now_s=now_s)
    assert len(store.listing("run/")) == 1
    RunObjects(store, "run", "id").sweep(attempt=2, now_s=now_s + ORPHAN_S + 60.0)
    assert list(store.listing("run/")) == []


def test_what_is_no_error_of_the_store_fails_this_check_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A credential helper that prints rubbish, say."""

    def rubbish(*_: object) -> None:
        raise ValueError("Expecting value: line 1 column 1")

    monkeypatch.setattr(preflight_checks, "try_store", rubbish)
    checks = LocalChecks(0, "node-0", torch.device("cpu"), LIMITS[Thoroughness.QUICK])
    (result,) = checks.reach(Storage(url="s3://bucket/x", local_root=""), "run")
    assert (result.name, result.ok) == ("store-away", False)
    assert "Expecting value" in result.message


@pytest.mark.parametrize("endpoint", ["minio:9000", "", "http://", "http://[minio"])
def test_doctor_refuses_an_endpoint_without_a_scheme(endpoint: str) -> None:
    command = [sys.executable, "-m", "midwatch.operator.cli.main", "doctor"]
    command += ["--store", "s3://bucket/x", "--endpoint", endpoint]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert "http://HOST" in ended.stderr


def test_doctor_tries_a_bucket(endpoint: Endpoint) -> None:
    command = [sys.executable, "-m", "midwatch.operator.cli.main", "doctor", "--device", "cpu"]
    command += ["--ranks-per-node", "1", "--store", f"s3://{BUCKET}/doctor", "-o", "json"]
    command += ["--endpoint", endpoint.url]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    results = {r["name"]: r for r in json.loads(ended.stdout)["verdict"]["results"]}
    assert results["store-reach"]["ok"]


def test_doctor_refuses_an_address_that_names_no_store() -> None:
    command = [sys.executable, "-m", "midwatch.operator.cli.main", "doctor"]
    ended = subprocess.run(
        [*command, "--store", "gs://bucket/x"], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 2
    assert "s3://BUCKET/PREFIX" in ended.stderr
