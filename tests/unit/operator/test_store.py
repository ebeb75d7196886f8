"""A run whose checkpoints lie in a durable store, as the commands see it from elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from midwatch.checkpoints.manifest import MANIFEST_NAME, encode
from midwatch.checkpoints.objects_folder import FolderStore, prepare_folder
from midwatch.checkpoints.remote import RunObjects
from midwatch.checkpoints.uploading import Uploader
from midwatch.checkpoints.verify import verify
from midwatch.logbook.errors import IntegrityError
from midwatch.operator.spec import RunSpec
from midwatch.operator.storage import RUN_ID_NAME, prepare_store_once
from midwatch.operator.store import DISK, STORE, list_tiers, open_store
from midwatch.tests.support.builders import make_spec

from tests.support.parts import save_parts
from tests.unit.checkpoints.test_uploading import Heard

RUN_ID = "id"


class Stored:
    """A run folder, the disks of its two nodes, and a store that holds its checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.run_dir = folder / "run"
        self.store = folder / "store"
        section = {"store": {"url": str(self.store)}}
        self.spec: RunSpec = make_spec(checkpoints=section).model_copy(update={"name": "r"})
        roots = [self.run_dir / "local" / node for node in ("n0", "n1")]
        self.manifest, self.files = save_parts(roots, 5, 1000)
        (self.run_dir / RUN_ID_NAME).write_text(RUN_ID)
        prepare_folder(self.store)
        remote = RunObjects(FolderStore(self.store), "r", RUN_ID)
        for root in roots:
            uploader = Uploader(root, remote, Heard(), run_id=RUN_ID)
            for _ in range(3):
                uploader.turn()

    @property
    def id(self) -> str:
        return self.manifest.id

    def object_of(self, name: str) -> Path:
        return next(self.store.rglob(f"{self.id}/{name}"))


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    return Stored(tmp_path)


def test_both_tiers_are_listed(stored: Stored) -> None:
    tiers, trouble = list_tiers(stored.spec, stored.run_dir)
    assert trouble == ""
    assert {tier: held.ids for tier, held in tiers.items()} == {
        DISK: (stored.id,),
        STORE: (stored.id,),
    }
    shutil.rmtree(stored.run_dir / "local")
    tiers, _ = list_tiers(stored.spec, stored.run_dir)
    assert tiers[DISK].ids == ()
    assert tiers[STORE].ids == (stored.id,)


def test_a_store_that_is_not_mounted_is_told_and_not_begun_anew(stored: Stored) -> None:
    prepare_store_once(stored.spec, stored.run_dir)
    away = stored.store.rename(stored.store.with_name("away"))
    tiers, trouble = list_tiers(stored.spec, stored.run_dir)
    assert set(tiers) == {DISK}
    assert "store-unreachable" in trouble
    prepare_store_once(stored.spec, stored.run_dir)
    assert not stored.store.exists()
    away.rename(stored.store)
    tiers, trouble = list_tiers(stored.spec, stored.run_dir)
    assert tiers[STORE].ids == (stored.id,)
    assert trouble == ""
    elsewhere = make_spec(checkpoints={"store": {"url": str(stored.store / "new")}})
    prepare_store_once(elsewhere, stored.run_dir)
    assert (stored.store / "new").is_dir()


def test_a_checkpoint_is_read_back_and_fetched_from_the_store_alone(
    stored: Stored, tmp_path: Path
) -> None:
    shutil.rmtree(stored.run_dir / "local")
    before = set(stored.run_dir.rglob("*"))
    store = open_store(stored.spec, stored.run_dir)
    assert encode(store.manifest(stored.id)) == encode(stored.manifest)
    assert store.verify(stored.id).files == stored.manifest.files
    out = tmp_path / "exports" / "weights"
    with store.at_hand(stored.id, out) as folder:
        assert verify(folder).files == stored.manifest.files
        assert all((folder / name).read_bytes() == data for name, data in stored.files.items())
        assert folder.is_relative_to(out.parent)
    assert list(out.parent.iterdir()) == [], "what was fetched is not left behind"
    assert set(stored.run_dir.rglob("*")) == before, "nor does reading back keep anything"


def test_what_was_fetched_goes_also_when_its_user_fails(stored: Stored, tmp_path: Path) -> None:
    out = tmp_path / "exports" / "weights"
    store = open_store(stored.spec, stored.run_dir)
    with pytest.raises(KeyboardInterrupt), store.at_hand(stored.id, out):
        raise KeyboardInterrupt
    stored.object_of("__1_0.distcp").unlink()
    with pytest.raises(IntegrityError), store.at_hand(stored.id, out):
        raise AssertionError("it is not whole")
    assert list(out.parent.iterdir()) == []


def test_rot_in_the_store_is_found(stored: Stored) -> None:
    path = stored.object_of("__1_0.distcp")
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    store = open_store(stored.spec, stored.run_dir)
    assert store.verify(stored.id, deep=False).files == stored.manifest.files
    with pytest.raises(IntegrityError):
        store.verify(stored.id)
    path.unlink()
    with pytest.raises(IntegrityError) as caught:
        store.verify(stored.id, deep=False)
    assert caught.value.code == "shard-missing"


def test_what_was_never_committed_is_not_there(stored: Stored) -> None:
    stored.object_of(MANIFEST_NAME).unlink()
    store = open_store(stored.spec, stored.run_dir)
    assert store.listing().ids == ()
    with pytest.raises(IntegrityError) as caught:
        store.manifest(stored.id)
    assert caught.value.code == "manifest-missing"


def test_a_manifest_of_another_run_is_shown_as_broken(stored: Stored) -> None:
    (stored.run_dir / RUN_ID_NAME).write_text("another")
    (broken,) = open_store(stored.spec, stored.run_dir).listing().broken
    assert (broken.id, broken.code) == (stored.id, "other-run")


def test_a_store_that_does_not_answer_hides_nothing_else(stored: Stored) -> None:
    section = {
        "store": {
            "url": "s3://bucket/prefix",
            "endpoint_url": "http://127.0.0.1:9",
            "timeout_s": 0.5,
            "path_style": True,
        }
    }
    spec = make_spec(checkpoints=section).model_copy(update={"name": "r"})
    tiers, trouble = list_tiers(spec, stored.run_dir)
    assert list(tiers) == [DISK]
    assert tiers[DISK].ids == (stored.id,)
    assert "store-unreachable" in trouble or "credentials" in trouble
