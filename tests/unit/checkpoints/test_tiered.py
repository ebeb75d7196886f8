"""Each file from the disk if it is sound, else from the store; never a wrong byte."""

from __future__ import annotations

import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from midwatch.checkpoints.fetch import NOTES_SUFFIX, PART_SUFFIX, Fetcher
from midwatch.checkpoints.index import INDEX_NAME
from midwatch.checkpoints.manifest import MANIFEST_NAME, checkpoint_dir
from midwatch.checkpoints.objects_folder import FolderStore, prepare_folder
from midwatch.checkpoints.remote import RunObjects
from midwatch.checkpoints.shardfile import entry_of
from midwatch.checkpoints.tiered import TieredSource, Tiers
from midwatch.checkpoints.uploading import Uploader
from midwatch.logbook.errors import IntegrityError, Retryable
from midwatch.logbook.tiers import Storage

from tests.support.parts import save_parts
from tests.unit.checkpoints.test_uploading import Heard

MIB = 1 << 20
SEED = 20261125


class Ranged(FolderStore):
    """Counts ranges, and fails after some."""

    def __init__(self, root: Path) -> None:
        prepare_folder(root)
        super().__init__(root)
        self.ranges: list[tuple[str, int]] = []
        self.left = -1
        self._lock = threading.Lock()

    def read_range(self, key: str, first: int, count: int) -> bytes:
        with self._lock:
            if self.left == 0:
                raise Retryable("store-unreachable", "down", delay_s=0.0)
            self.left -= 1
            self.ranges.append((key, first))
        return super().read_range(key, first, count)


class Place:
    """A store with one uploaded checkpoint of two nodes, and tiers for any node's folder."""

    def __init__(self, folder: Path, size: int = 1000) -> None:
        self.folder = folder
        self.store = Ranged(folder / "store")
        self.remote = RunObjects(self.store, "r", "id")
        roots = [folder / "n0", folder / "n1"]
        self.manifest, self.files = save_parts(roots, 5, size)
        for root in roots:
            uploader = Uploader(root, self.remote, Heard(), run_id="id")
            for _ in range(3):
                uploader.turn()
        assert self.remote.manifest(self.manifest.id) is not None

    def tiers(self, node: str, part_mib: int = 5, patience_s: float = 0.0) -> Tiers:
        storage = Storage(
            url=str(self.folder / "store"),
            local_root=str(self.folder / node),
            run_id="id",
            part_mib=part_mib,
        )
        return Tiers(storage, "r", self.store, patience_s)

    def source(self, node: str) -> TieredSource:
        return TieredSource(self.tiers(node), self.manifest.id)

    def path(self, node: str, name: str) -> Path:
        return checkpoint_dir(self.folder / node, self.manifest.id) / name

    def check(self, source: TieredSource, names: list[str]) -> None:
        for name in names:
            assert bytes(source.read(name)) == self.files[name], name


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_node_reads_its_own_disk_alone(place: Place) -> None:
    place.store.left = 0
    source = place.source("n0")
    place.check(source, ["__0_0.distcp", "__1_0.distcp"])
    assert source.tier == "disk"
    assert source.repaired == ()
    assert place.store.ranges == []


def test_a_spare_fetches_what_it_is_asked_for_and_keeps_it(place: Place) -> None:
    source = place.source("spare")
    place.check(source, ["__2_0.distcp"])
    assert source.tier == "store"
    assert source.repaired == ()
    shards = {p.name for p in place.path("spare", "").glob("*.distcp")}
    assert shards == {"__2_0.distcp"}
    place.store.left = 0
    again = place.source("spare")
    place.check(again, ["__2_0.distcp"])
    assert again.tier == "disk"


def damages(data: bytes, rng: random.Random) -> Iterator[bytes]:
    at = rng.randrange(len(data))
    yield data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    yield data[: rng.randrange(len(data))]
    yield data + b"\0"
    yield b""


KINDS = ["__0_0.distcp", INDEX_NAME, MANIFEST_NAME]


@pytest.mark.parametrize("name", KINDS)
def test_damage_on_the_disk_is_repaired_from_the_store(place: Place, name: str) -> None:
    path = place.path("n0", name)
    sound = path.read_bytes()
    for number, damaged in enumerate(damages(sound, random.Random(SEED))):
        path.write_bytes(damaged)
        source = place.source("n0")
        place.check(source, ["__0_0.distcp", INDEX_NAME])
        assert source.tier == "store"
        assert [file for file, _ in source.repaired] == [name], number
        assert path.read_bytes() == sound


@pytest.mark.parametrize("name", KINDS)
def test_damage_in_the_store_is_never_loaded(place: Place, name: str) -> None:
    path = Path(place.folder, "store", place.remote.key(place.manifest.id, name))
    sound = path.read_bytes()
    refused = 0
    for number, damaged in enumerate(damages(sound, random.Random(SEED))):
        path.write_bytes(damaged)
        try:
            place.check(place.source(f"spare-{number}"), ["__0_0.distcp", INDEX_NAME])
        except IntegrityError:
            refused += 1
    # What stands behind the end of a file is never asked for; a manifest is read whole.
    assert refused == (4 if name == MANIFEST_NAME else 3)
    # The disk's copy is as good as ever.
    place.check(place.source("n0"), ["__0_0.distcp"])
    path.write_bytes(sound)
    place.check(place.source("last-spare"), ["__0_0.distcp"])


def test_a_checkpoint_that_nobody_can_reach(place: Place) -> None:
    place.store.left = 0
    with pytest.raises(Retryable) as caught:
        place.source("spare")
    assert caught.value.code == "store-unreachable"
    place.store.left = -1
    place.remote.delete(place.manifest.id)
    with pytest.raises(IntegrityError) as gone:
        place.source("another-spare")
    assert gone.value.code == "manifest-missing"


def test_the_checkpoint_of_another_run_is_refused(place: Place) -> None:
    storage = Storage(url="/none", local_root=str(place.folder / "n0"), run_id="other")
    with pytest.raises(IntegrityError) as caught:
        TieredSource(Tiers(storage, "r", place.store, 0.0), place.manifest.id)
    assert caught.value.code == "other-run"


def test_a_fetch_is_taken_up_where_it_stopped(tmp_path: Path) -> None:
    place = Place(tmp_path, size=23 * MIB)
    name = "__0_0.distcp"
    entry = place.manifest.entry(name)
    place.path("spare", "").mkdir(parents=True)
    path = place.path("spare", name)
    fetcher = Fetcher(place.store, part_mib=5, concurrency=2, patience_s=0.0)
    key = place.remote.key(place.manifest.id, name)
    place.store.left = 3
    with pytest.raises(Retryable):
        fetcher.to_file(key, path, entry)
    assert not path.exists()
    assert path.with_name(name + PART_SUFFIX).exists()
    before = len(place.store.ranges)
    place.store.left = -1
    fetched = fetcher.to_file(key, path, entry)
    assert fetched < entry.bytes
    assert len(place.store.ranges) == before + -(-fetched // (5 * MIB))
    assert path.read_bytes() == place.files[name]
    assert not path.with_name(name + NOTES_SUFFIX).exists()


def test_a_rotten_beginning_is_fetched_again_whole(tmp_path: Path) -> None:
    place = Place(tmp_path, size=11 * MIB)
    name = "__0_0.distcp"
    entry = place.manifest.entry(name)
    place.path("spare", "").mkdir(parents=True)
    path = place.path("spare", name)
    fetcher = Fetcher(place.store, part_mib=5, concurrency=1, patience_s=0.0)
    key = place.remote.key(place.manifest.id, name)
    place.store.left = 2
    with pytest.raises(Retryable):
        fetcher.to_file(key, path, entry)
    place.store.left = -1
    part = path.with_name(name + PART_SUFFIX)
    data = bytearray(part.read_bytes())
    data[1000] ^= 1
    part.write_bytes(data)
    assert fetcher.to_file(key, path, entry) > entry.bytes
    assert path.read_bytes() == place.files[name]


def test_ranks_that_want_one_file_fetch_it_once(place: Place) -> None:
    found: list[bytes] = []
    tiers = place.tiers("spare")

    def read() -> None:
        found.append(bytes(TieredSource(tiers, place.manifest.id).read("__3_0.distcp")))

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [place.files["__3_0.distcp"]] * 6
    keys = [key.rpartition("/")[2] for key, _ in place.store.ranges]
    assert keys.count("__3_0.distcp") == 1
    assert keys.count(INDEX_NAME) == 1


def test_a_full_disk_does_not_keep_a_rank_from_its_state(tmp_path: Path) -> None:
    place = Place(tmp_path, size=300_000)
    disk = tmp_path / "full"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        source = place.source("full")
        place.check(source, ["__0_0.distcp"])
        assert source.tier == "store"
        assert not place.path("full", "__0_0.distcp").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_empty_file_comes_too(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "s")
    store = FolderStore(tmp_path / "s")
    source = tmp_path / "empty"
    source.touch()
    entry = entry_of("empty", memoryview(b""))
    store.put_file("e", source, entry)
    fetcher = Fetcher(store, part_mib=5, concurrency=2, patience_s=0.0)
    assert fetcher.to_file("e", tmp_path / "copy", entry) == 0
    assert (tmp_path / "copy").read_bytes() == b""
    assert bytes(fetcher.to_memory("e", entry)) == b""
    assert [o.key for o in store.listing("")] == ["e"]
    assert list(store.unfinished("")) == []
