"""A listing tolerates whatever lies about, and a deletion takes the commit away first."""

from __future__ import annotations

from pathlib import Path

import pytest
from midwatch.checkpoints.manifest import (
    MANIFEST_DELETING,
    MANIFEST_NAME,
    Manifest,
    checkpoint_dir,
    checkpoint_id,
)
from midwatch.checkpoints.retention import (
    Protected,
    Retained,
    RetentionRules,
    apply_retention,
    plan_retention,
)
from midwatch.checkpoints.shardfile import commit_manifest, remove_uncommitted, write_file
from midwatch.checkpoints.store import LocalStore
from midwatch.checkpoints.verify import verify
from midwatch.logbook.errors import ConfigError, IntegrityError
from midwatch.logbook.wire import Mesh

from tests.unit.checkpoints import models


def commit(run_dir: Path, step: int, attempt: int = 1) -> str:
    """Commit a checkpoint of two files without torch."""
    name = checkpoint_id(step, attempt)
    directory = checkpoint_dir(run_dir, name)
    directory.mkdir(parents=True)
    files = tuple(
        write_file(directory / f"__{rank}_0.distcp", memoryview(bytes([step, rank]) * 5000))
        for rank in range(2)
    )
    manifest = Manifest(
        id=name,
        run="r",
        attempt=attempt,
        created_s=0.0,
        mesh=Mesh(2, 1),
        world_size=2,
        header=models.header(step),
        fingerprint=models.FINGERPRINT,
        files=files,
        total_bytes=sum(entry.bytes for entry in files),
    )
    commit_manifest(directory, manifest)
    return name


def test_a_store_without_a_directory_is_empty(tmp_path: Path) -> None:
    assert LocalStore(tmp_path / "none").listing().ids == ()


def test_a_listing_sorts_what_it_finds(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    names = [commit(tmp_path, 30), commit(tmp_path, 10), commit(tmp_path, 20, attempt=2)]
    for name in ("step-00000040.a0002", "step-00000050.a0002", "notes", "step-x"):
        (store.root / name).mkdir()
    (store.root / "step-00000040.a0002" / "__0_0.distcp").write_bytes(b"half")
    (store.root / "step-00000050.a0002" / MANIFEST_DELETING).touch()
    (store.root / "step-00000060.a0001").write_text("a file, not a directory")
    damaged = commit(tmp_path, 70)
    (store.root / damaged / MANIFEST_NAME).write_text("{}")

    listing = store.listing()
    assert listing.ids == (names[1], names[2], names[0])
    assert listing.garbage == ("step-00000040.a0002",)
    assert listing.deleting == ("step-00000050.a0002",)
    assert [(broken.id, broken.code) for broken in listing.broken] == [
        (damaged, "manifest-corrupt")
    ]


def test_a_deleted_checkpoint_is_gone_and_the_others_are_not(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    first, second = commit(tmp_path, 1), commit(tmp_path, 2)
    store.delete(first)
    store.delete(first)
    assert store.listing().ids == (second,)
    assert not store.path(first).exists()
    store.verify(second)
    with pytest.raises(IntegrityError) as caught:
        store.manifest(first)
    assert caught.value.code == "manifest-missing"


def test_garbage_can_be_deleted(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    garbage = store.root / "step-00000040.a0002"
    garbage.mkdir(parents=True)
    (garbage / "__0_0.distcp").write_bytes(b"half")
    store.delete(garbage.name)
    assert not garbage.exists()


@pytest.mark.parametrize("name", ["..", "../x", "", "notes"])
def test_only_checkpoints_have_a_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LocalStore(tmp_path).delete(name)
    assert caught.value.code == "checkpoint-id"


def test_what_a_failed_save_removes_is_never_a_commit(tmp_path: Path) -> None:
    committed = checkpoint_dir(tmp_path, commit(tmp_path, 1))
    remove_uncommitted(committed)
    verify(committed)


def test_a_plan_is_carried_out(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    names = [commit(tmp_path, step) for step in (10, 20, 30, 40)]
    (store.root / "step-00000035.a0000").mkdir()
    candidates = [
        Retained(id=m.id, step=m.step, attempt=m.attempt, verified=True)
        for m in store.listing().committed
    ]
    plan = plan_retention(
        candidates,
        RetentionRules(keep_newest=1),
        Protected(last_good=names[1]),
        current_attempt=1,
        garbage=store.listing().garbage,
    )
    gone = apply_retention(plan, store)
    assert gone == (names[0], names[2], "step-00000035.a0000")
    assert store.listing().ids == (names[1], names[3])
    assert store.listing().garbage == ()
