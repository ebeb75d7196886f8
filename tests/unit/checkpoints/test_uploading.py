"""An uploader over a shared folder: what it sends, in which order, and what it lets go."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from midwatch.checkpoints.manifest import MANIFEST_NAME, Manifest, checkpoint_dir, encode
from midwatch.checkpoints.objects_folder import TEMPORARY, FolderStore, prepare_folder
from midwatch.checkpoints.remote import ORPHAN_S, RunObjects
from midwatch.checkpoints.store import LocalStore
from midwatch.checkpoints.uploading import Uploader
from midwatch.logbook.errors import Fatal, IntegrityError, Retryable

from tests.support.agents import wait_until
from tests.support.parts import save_parts


class Heard:
    """A witness that remembers."""

    def __init__(self) -> None:
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.stored: list[str] = []
        self.troubles: list[str] = []

    def part_found(self, manifest: Manifest, held: tuple[str, ...]) -> None:
        self.found.append((manifest.id, held))

    def uploaded(self, manifest: Manifest, upload_s: float) -> None:
        self.stored.append(manifest.id)

    def trouble(self, code: str, message: str, since_s: float) -> None:
        self.troubles.append(code)


class CountingStore(FolderStore):
    """Remembers what was put, and fails on demand."""

    def __init__(self, root: Path) -> None:
        prepare_folder(root)
        super().__init__(root)
        self.puts: list[str] = []
        self.ranges: list[str] = []
        self.failure: Exception | None = None
        self.read_failure: Exception | None = None
        self.on_range: Callable[[], object] = lambda: None

    def put_file(self, key: str, path: Path, entry: object) -> int:
        if self.failure is not None:
            raise self.failure
        self.puts.append(key)
        return super().put_file(key, path, entry)  # type: ignore[arg-type]

    def read_range(self, key: str, first: int, count: int) -> bytes:
        if self.read_failure is not None:
            raise self.read_failure
        self.on_range()
        self.ranges.append(key)
        return super().read_range(key, first, count)


class Node:
    def __init__(self, folder: Path, name: str, store: CountingStore, **options: int) -> None:
        self.root = folder / name
        self.heard = Heard()
        self.remote = RunObjects(store, "r", "id")
        self.uploader = Uploader(
            self.root, self.remote, self.heard, run_id="id", retry_max_s=0.01, **options
        )

    def turns(self, count: int = 4) -> None:
        for _ in range(count):
            self.uploader.turn()

    @property
    def local(self) -> tuple[str, ...]:
        return LocalStore(self.root).listing().ids


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    return CountingStore(tmp_path / "store")


def test_the_manifest_comes_last_and_from_whoever_completes(
    tmp_path: Path, store: CountingStore
) -> None:
    first, second = (Node(tmp_path, name, store) for name in ("n0", "n1"))
    manifest, files = save_parts([first.root, second.root], 5)
    first.turns()
    assert first.remote.manifest(manifest.id) is None
    assert not first.uploader.is_idle
    assert set(first.remote.missing(manifest)) == {"__2_0.distcp", "__3_0.distcp"}
    second.turns()
    assert second.heard.stored == [manifest.id]
    there = first.remote.manifest(manifest.id)
    assert there is not None
    assert there.files == manifest.files
    for name, data in files.items():
        assert store.read(first.remote.key(manifest.id, name)) == data
    # What every node has was sent once.
    assert len(store.puts) == len(set(store.puts)) == len(files)
    assert dict(first.heard.found)[manifest.id] != dict(second.heard.found)[manifest.id]


def test_the_newest_goes_first(tmp_path: Path, store: CountingStore) -> None:
    node = Node(tmp_path, "n0", store)
    ids = [save_parts([node.root], step)[0].id for step in (5, 10, 15)]
    node.turns()
    assert node.heard.stored == ids[::-1]
    assert set(node.remote.committed()) == set(ids)


def test_one_that_comes_while_another_is_sent_overtakes_it(
    tmp_path: Path, store: CountingStore
) -> None:
    node = Node(tmp_path, "n0", store)
    old = [save_parts([node.root], step)[0].id for step in (5, 10, 15)]
    real = store.put_file
    newer: list[str] = []

    def put_and_save(key: str, path: Path, entry: object) -> int:
        if not newer:
            newer.append(save_parts([node.root], 20)[0].id)
        return real(key, path, entry)

    store.put_file = put_and_save  # type: ignore[method-assign]
    assert node.uploader.turn() == 0.0
    assert node.heard.stored == []
    node.turns()
    assert node.heard.stored == [*newer, *reversed(old)]


@pytest.mark.parametrize("files_per_save", [1, 3, 4])
def test_a_stream_of_newcomers_starves_neither_the_store_nor_the_disk(
    tmp_path: Path, store: CountingStore, files_per_save: int
) -> None:
    node = Node(tmp_path, "n0", store, keep_local=1)
    # The first attempt's, of a later step than any that follows, waits for a node that is gone.
    stuck, _ = save_parts([node.root, tmp_path / "gone"], 250)
    node.turns(1)
    saved, real = [save_parts([node.root], 1)[0].id], store.put_file

    def put_and_save(key: str, path: Path, entry: object) -> int:
        if len(store.puts) % files_per_save == 0:
            saved.append(save_parts([node.root], len(saved) + 1)[0].id)
        return real(key, path, entry)

    store.put_file = put_and_save  # type: ignore[method-assign]
    node.turns(8)
    assert len(node.heard.stored) >= 7, "at most the first turn gives way before it sends"
    left = [name for name in node.heard.stored if name in node.local]
    assert len(left) <= 2, "one that is kept, and one that came last"
    assert stuck.id in node.local


def test_only_what_is_stored_is_let_go(tmp_path: Path, store: CountingStore) -> None:
    node = Node(tmp_path, "n0", store, keep_local=2)
    store.failure = Retryable("store-unreachable", "down", delay_s=0.0)
    ids = [save_parts([node.root], step)[0].id for step in (5, 10, 15, 20)]
    node.turns()
    assert node.local == tuple(ids)
    assert node.heard.troubles == ["store-unreachable"]
    assert not node.uploader.is_well
    store.failure = None
    node.turns()
    assert node.uploader.is_well
    assert node.local == tuple(ids[2:])
    assert set(node.remote.committed()) == set(ids)


def test_a_node_without_the_mount_says_so_and_fills_no_disk(
    tmp_path: Path, store: CountingStore
) -> None:
    node = Node(tmp_path, "n0", store)
    bare = tmp_path / "bare"
    bare.mkdir()
    node.remote.store = FolderStore(bare)
    node.turns()
    assert node.heard.troubles == ["store-unreachable"], "before there is anything to upload"
    manifest, _ = save_parts([node.root], 5)
    node.turns()
    assert node.uploader.is_cut_off
    assert list(bare.iterdir()) == []
    node.remote.store = store
    node.turns()
    assert node.uploader.is_well
    assert node.heard.stored == [manifest.id]


def settle(*nodes: Node) -> None:
    """Take turns until all that lies on the nodes is in the store."""

    def is_settled() -> bool:
        for node in nodes:
            node.uploader.turn()
        return all(node.uploader.is_idle for node in nodes)

    wait_until(is_settled, "everything is in the store")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_copy_in_the_store_is_read_back_and_mended_before_the_last_other_goes(
    tmp_path: Path, store: CountingStore, damage: str
) -> None:
    first, second = (Node(tmp_path, name, store, keep_local=1) for name in ("n0", "n1"))
    old, files = save_parts([first.root, second.root], 5)
    nodes = (first, second)
    settle(*nodes)
    assert store.ranges == [], "it is read once, when it is needed"
    path = Path(store._root, first.remote.key(old.id, "__3_0.distcp"))
    if damage == "flipped":
        flip(path)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    new, _ = save_parts([first.root, second.root], 10)
    settle(*nodes)
    for node in nodes:
        node.turns()
    code = {"flipped": "shard-checksum", "cut": "object-size", "gone": "object-missing"}[damage]
    assert (first.heard.troubles, second.heard.troubles) == ([], [code])
    assert first.local == second.local == (new.id,)
    for name, data in files.items():
        assert store.read(first.remote.key(old.id, name)) == data
    shards = [key for key in store.ranges if key.endswith("__0_0.distcp")]
    assert shards == [first.remote.key(old.id, "__0_0.distcp")]


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_lost_commit_is_made_again_before_the_last_part_goes(
    tmp_path: Path, store: CountingStore, damage: str
) -> None:
    node = Node(tmp_path, "n0", store, keep_local=1)
    old, _ = save_parts([node.root], 5)
    node.turns()
    path = Path(store._root, node.remote.key(old.id, MANIFEST_NAME))
    if damage == "flipped":
        flip(path)
    else:
        path.unlink()
    new, _ = save_parts([node.root], 10)
    node.turns(1)
    assert node.local == (old.id, new.id)
    node.turns()
    code = {"flipped": "manifest-corrupt", "gone": "manifest-missing"}[damage]
    assert node.heard.troubles == [code]
    assert node.uploader.is_well
    assert node.local == (new.id,)
    assert node.remote.is_committed(old)


def test_a_lost_commit_is_not_made_again_over_files_that_are_gone(
    tmp_path: Path, store: CountingStore
) -> None:
    first, second = (Node(tmp_path, name, store, keep_local=1) for name in ("n0", "n1"))
    old, _ = save_parts([first.root, second.root], 5)
    settle(first, second)
    LocalStore(second.root).delete(old.id)
    for name in (MANIFEST_NAME, "__3_0.distcp"):
        Path(store._root, first.remote.key(old.id, name)).unlink()
    new, _ = save_parts([first.root], 10)
    first.turns()
    assert first.remote.committed() == (new.id,)
    assert first.local == (old.id, new.id)


def test_what_is_rotten_in_the_store_and_here_stays(tmp_path: Path, store: CountingStore) -> None:
    node = Node(tmp_path, "n0", store, keep_local=1)
    old, _ = save_parts([node.root], 5)
    node.turns()
    flip(Path(store._root, node.remote.key(old.id, "__1_0.distcp")))
    flip(checkpoint_dir(node.root, old.id) / "__1_0.distcp")
    new, _ = save_parts([node.root], 10)
    node.turns()
    assert node.local == (old.id, new.id)
    assert node.heard.troubles == ["shard-checksum"]


def test_nothing_is_let_go_while_the_store_cannot_be_read(
    tmp_path: Path, store: CountingStore
) -> None:
    node = Node(tmp_path, "n0", store, keep_local=1)
    ids = [save_parts([node.root], step)[0].id for step in (5, 10)]
    store.read_failure = Retryable("store-unreachable", "down", delay_s=0.0)
    node.turns()
    assert node.heard.stored == ids[::-1]
    assert node.local == tuple(ids)
    assert node.heard.troubles == ["store-unreachable"]
    assert not node.uploader.is_well
    store.read_failure = None
    wait_until(lambda: node.uploader.turn() > 0 and node.local == (ids[1],), "it is read")
    assert node.uploader.is_well


def test_a_newer_checkpoint_does_not_wait_for_a_reading_back(
    tmp_path: Path, store: CountingStore
) -> None:
    node = Node(tmp_path, "n0", store, keep_local=1)
    for step in (5, 10):
        save_parts([node.root], step)
    newer: list[str] = []

    def save() -> None:
        if not newer:
            newer.append(save_parts([node.root], 15)[0].id)

    store.on_range = save
    node.turns(1)
    assert len(store.ranges) == 1
    assert len(node.local) == 3
    node.turns()
    assert node.heard.stored[-1] == newer[0]
    assert node.local == (newer[0],)
    assert len(store.ranges) == len(set(store.ranges)), "what was read is not read again"


def test_trouble_is_told_once_for_each_code(tmp_path: Path, store: CountingStore) -> None:
    node = Node(tmp_path, "n0", store)
    save_parts([node.root], 5)
    store.failure = Retryable("store-unreachable", "down", delay_s=0.0)
    node.turns(5)
    store.failure = Fatal("store-denied", "no")
    node.turns(5)
    assert node.heard.troubles == ["store-unreachable", "store-denied"]


def test_one_that_cannot_be_brought_holds_up_neither_older_ones_nor_cleaning(
    tmp_path: Path, store: CountingStore
) -> None:
    before = Node(tmp_path, "n0", store)
    first, poisoned = (save_parts([before.root], step)[0].id for step in (5, 20))
    before.turns()
    manifest = Path(store._root, "r", poisoned, MANIFEST_NAME)
    manifest.write_bytes(manifest.read_bytes().replace(b"metadata", b"metadatb"))
    after = Node(tmp_path, "n0", store, keep_local=1)
    older = save_parts([after.root], 10)[0].id
    after.turns(1)
    assert after.heard.troubles == ["manifest-corrupt"]
    assert not after.uploader.is_well
    assert not after.uploader.is_cut_off
    assert older in after.remote.committed()
    assert after.local == (older, poisoned)
    newer = save_parts([after.root], 30)[0].id
    after.turns()
    assert newer in after.remote.committed()
    assert after.local == (poisoned, newer), f"{first} and {older} are safe in the store"
    assert after.heard.troubles == ["manifest-corrupt"]


def test_a_name_that_another_checkpoint_has_taken_waits_by_itself(
    tmp_path: Path, store: CountingStore
) -> None:
    node = Node(tmp_path, "n0", store)
    older, taken = (save_parts([node.root], step)[0] for step in (5, 10))
    others = msgspec.structs.replace(taken, created_s=1.0)
    real = store.put_new

    def put_after_another(key: str, data: bytes) -> bool:
        if key == node.remote.key(taken.id, MANIFEST_NAME):
            real(key, encode(others))
        return real(key, data)

    store.put_new = put_after_another  # type: ignore[method-assign]
    node.turns(1)
    assert node.heard.troubles == ["store-taken"]
    assert node.heard.stored == [older.id]


def test_a_restarted_uploader_sends_nothing_twice(tmp_path: Path, store: CountingStore) -> None:
    node = Node(tmp_path, "n0", store)
    manifest, _ = save_parts([node.root], 5)
    node.turns()
    sent = list(store.puts)
    again = Node(tmp_path, "n0", store)
    again.turns()
    assert store.puts == sent
    assert again.heard.stored == [manifest.id], "its first telling may have died with the first"
    assert again.uploader.is_idle
    assert again.local == (manifest.id,)


def test_a_commit_whose_answer_was_lost_is_told(tmp_path: Path, store: CountingStore) -> None:
    node = Node(tmp_path, "n0", store)
    manifest, _ = save_parts([node.root], 5)
    real, lost = store.put_new, []

    def put_and_lose(key: str, data: bytes) -> bool:
        done = real(key, data)
        if not lost:
            lost.append(key)
            raise Retryable("store-error", "the answer was lost", delay_s=0.0)
        return done

    store.put_new = put_and_lose  # type: ignore[method-assign]
    node.turns(1)
    assert node.remote.committed() == (manifest.id,)
    assert node.heard.stored == []
    wait_until(lambda: node.uploader.turn() > 0 and node.uploader.is_idle, "it looks again")
    assert node.heard.stored == [manifest.id]


def test_a_commit_leaves_no_begun_upload_behind(tmp_path: Path, store: CountingStore) -> None:
    node = Node(tmp_path, "n0", store)
    manifest, _ = save_parts([node.root], 5)
    other = f"r/step-00000077.a0001/__0_0.distcp.22{TEMPORARY}"
    for key in (node.remote.key(manifest.id, f"__0_0.distcp.11{TEMPORARY}"), other):
        path = Path(store._root, key)
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half")
    node.turns()
    assert node.heard.stored == [manifest.id]
    assert [upload.key for upload in store.unfinished("r/")] == [other]


def test_a_commit_that_a_deletion_overtook_is_not_told(
    tmp_path: Path, store: CountingStore
) -> None:
    node = Node(tmp_path, "n0", store)
    manifest, _ = save_parts([node.root], 5)
    real = store.put_new

    def put_after_the_mark(key: str, data: bytes) -> bool:
        real(f"r/deleted/{manifest.id}.id", b"")
        return real(key, data)

    store.put_new = put_after_the_mark  # type: ignore[method-assign]
    node.turns()
    assert node.heard.stored == []
    assert node.remote.committed() == ()
    assert node.local == ()


def test_what_was_deleted_does_not_come_back(tmp_path: Path, store: CountingStore) -> None:
    node = Node(tmp_path, "n0", store)
    manifest, _ = save_parts([node.root], 5)
    node.turns()
    node.remote.delete(manifest.id)
    assert store.listing(f"r/{manifest.id}/") == []
    # The node was away when it was deleted.
    back = Node(tmp_path, "n0", store)
    assert back.local == (manifest.id,)
    back.turns()
    assert back.local == ()
    assert back.remote.committed() == ()


def test_a_part_that_is_deleted_while_it_is_sent(tmp_path: Path, store: CountingStore) -> None:
    node = Node(tmp_path, "n0", store)
    manifest, _ = save_parts([node.root], 5)
    real = store.put_file

    def put_and_delete(key: str, path: Path, entry: object) -> int:
        LocalStore(node.root).delete(manifest.id)
        return real(key, path, entry)

    store.put_file = put_and_delete  # type: ignore[method-assign]
    node.turns()
    assert node.heard.stored == []
    assert node.heard.troubles == []
    assert node.uploader.is_idle


def test_a_rotten_shard_is_told_and_the_others_go_on(tmp_path: Path, store: CountingStore) -> None:
    node = Node(tmp_path, "n0", store)
    good, _ = save_parts([node.root], 5)
    bad, _ = save_parts([node.root], 10)
    flip(checkpoint_dir(node.root, bad.id) / "__1_0.distcp")
    node.turns()
    assert node.heard.stored == [good.id]
    assert node.heard.troubles == ["shard-checksum"]
    assert node.remote.committed() == (good.id,)
    assert set(node.local) == {good.id, bad.id}


def test_another_run_of_the_same_name(tmp_path: Path, store: CountingStore) -> None:
    node = Node(tmp_path, "n0", store)
    mine, _ = save_parts([node.root], 5)
    node.turns()
    stranger = Node(tmp_path, "n1", store)
    stranger.remote = RunObjects(store, "r", "other")
    stranger.uploader = Uploader(
        stranger.root, stranger.remote, stranger.heard, run_id="other", retry_max_s=0.01
    )
    theirs, _ = save_parts([stranger.root], 5, run_id="other", size=999)
    assert theirs.id == mine.id
    before = {o.key: store.read(o.key) for o in store.listing("r/")}
    stranger.turns()
    assert {o.key: store.read(o.key) for o in store.listing("r/")} == before
    assert stranger.heard.troubles == ["other-run"]
    with pytest.raises(IntegrityError) as caught:
        stranger.remote.delete(mine.id)
    assert caught.value.code == "other-run"
    assert stranger.local == (theirs.id,)


def test_what_a_dead_run_of_the_same_name_left_is_never_committed_as_ours(
    tmp_path: Path, store: CountingStore
) -> None:
    dead = [Node(tmp_path, f"old{number}", store) for number in range(2)]
    save_parts([node.root for node in dead], 5, run_id="id", seed="old")
    dead[1].turns()
    assert store.listing("r/")
    first, second = (Node(tmp_path, name, store) for name in ("n0", "n1"))
    manifest, files = save_parts([first.root, second.root], 5)
    first.turns()
    assert first.remote.committed() == ()
    second.turns()
    assert second.heard.stored == [manifest.id]
    for name, data in files.items():
        assert store.read(first.remote.key(manifest.id, name)) == data


def test_a_deletion_cut_short_is_finished_by_a_sweep(tmp_path: Path, store: CountingStore) -> None:
    node = Node(tmp_path, "n0", store)
    manifest, _ = save_parts([node.root], 5)
    other, _ = save_parts([node.root], 10)
    node.turns()
    # The mark stands, the commit is gone, and one file is still there.
    store.put_new(f"r/deleted/{manifest.id}.id", b"")
    store.delete([node.remote.key(manifest.id, MANIFEST_NAME)])
    store.delete([o.key for o in store.listing(f"r/{manifest.id}/")][1:])
    assert node.remote.sweep(1, 2e9).deleted == (manifest.id,)
    assert store.listing(f"r/{manifest.id}/") == []
    assert node.remote.committed() == (other.id,)
    assert node.remote.sweep(1, 2e9).deleted == ()


@pytest.mark.parametrize("left", ["mark", "orphan"])
def test_a_sweep_leaves_what_another_run_of_the_same_name_committed(
    tmp_path: Path, store: CountingStore, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    ours, theirs = RunObjects(store, "r", "ours"), RunObjects(store, "r", "id")
    manifest, files = save_parts([tmp_path / "n0"], 5)
    if left == "mark":
        ours.delete(manifest.id)
    node = Node(tmp_path, "n0", store)
    node.turns()
    objects = store.listing("r/")
    if left == "orphan":
        # It is committed between the sweep's look at the store and the deletion.
        without = [o for o in objects if not o.key.endswith(MANIFEST_NAME)]
        monkeypatch.setattr(store, "listing", lambda prefix: without)
    swept = ours.sweep(2, max(o.modified_s for o in objects) + ORPHAN_S + 60)
    assert swept == type(swept)()
    monkeypatch.undo()
    there = theirs.manifest(manifest.id)
    assert there is not None
    assert theirs.missing(there) == ()
    assert {o.key for o in store.listing("r/")} >= {theirs.key(manifest.id, n) for n in files}


def test_what_nobody_will_finish_is_swept_in_time(tmp_path: Path, store: CountingStore) -> None:
    first, second = (Node(tmp_path, name, store) for name in ("n0", "n1"))
    manifest, _ = save_parts([first.root, second.root], 5)
    first.turns()
    newest_s = max(o.modified_s for o in store.listing("r/"))
    half = Path(store._root, "r", manifest.id, "__2_0.distcp.77.unfinished")
    half.write_bytes(b"half")
    os.utime(half, (newest_s, newest_s))
    young = first.remote.sweep(2, newest_s + ORPHAN_S - 60)
    assert young == type(young)()
    own_attempt = first.remote.sweep(1, newest_s + ORPHAN_S + 60)
    assert own_attempt.unfinished == ()
    assert own_attempt.uploads == (half.relative_to(store._root).as_posix(),)
    old = first.remote.sweep(2, newest_s + ORPHAN_S + 60)
    assert old.unfinished == (manifest.id,)
    assert [o.key for o in store.listing("r/")] == [f"r/deleted/{manifest.id}.id"]
    back = Node(tmp_path, "n0", store)
    back.turns()
    assert back.local == ()
