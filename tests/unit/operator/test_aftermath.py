"""Reading back what a run that is over has left: in its store, and on the disks that are seen."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from midwatch.checkpoints.manifest import MANIFEST_NAME, checkpoint_dir
from midwatch.checkpoints.objects_folder import FolderStore, prepare_folder
from midwatch.checkpoints.remote import RunObjects
from midwatch.checkpoints.uploading import Uploader
from midwatch.logbook.errors import MidwatchError
from midwatch.logbook.state import CheckpointState
from midwatch.operator.aftermath import hand_in
from midwatch.operator.cli.runs import load_state
from midwatch.operator.cli.steer import make_request

from tests.support.parts import save_parts
from tests.unit.checkpoints.test_uploading import Heard
from tests.unit.operator.test_cli_checkpoints import OLD, Run, flip

NODES = ("n0", "n1")
SHARD, OTHER = "__0_0.distcp", "__2_0.distcp"


class Over:
    """A run that has ended, whose two nodes have parts of a checkpoint on their disks."""

    def __init__(self, folder: Path, *, is_uploaded: bool, local_dir: str = "") -> None:
        self.store = folder / "store"
        source = folder / "source"
        (source / "checkpoints").mkdir(parents=True)
        section = {"url": str(self.store), "local_dir": local_dir}
        (folder / "run").mkdir()
        run = Run(folder / "run", source, 9, checkpoints={"store": section})
        self.folder = run.folder
        self.name = run.spec.name
        local = Path(local_dir, f"{self.name}.") if local_dir else self.folder / "local"
        self.roots = [local / node for node in NODES]
        save_parts(self.roots, 10)
        prepare_folder(self.store)
        run.end()
        for root in (*self.roots, *self.roots) if is_uploaded else ():
            remote = RunObjects(FolderStore(self.store), self.name, "")
            Uploader(root, remote, Heard()).turn()

    def on_disk(self, node: str, name: str) -> Path:
        return checkpoint_dir(self.roots[NODES.index(node)], OLD) / name

    def in_store(self, name: str) -> Path:
        return self.store / self.name / OLD / name

    def verify(self) -> CheckpointState:
        request = make_request("verify", "is it sound?", target=OLD)
        hand_in(self.folder, request, load_state(self.folder))
        return load_state(self.folder).checkpoints[OLD]


@pytest.mark.parametrize("has_local_dir", [False, True])
def test_what_was_never_uploaded_is_read_on_the_disks(tmp_path: Path, has_local_dir: bool) -> None:
    local_dir = str(tmp_path / "disk") if has_local_dir else ""
    over = Over(tmp_path, is_uploaded=False, local_dir=local_dir)
    assert over.verify().verified is True
    flip(over.on_disk("n1", OTHER))
    found = over.verify()
    assert found.verified is False
    assert "shard-checksum" in found.error


def test_what_is_not_seen_from_here_is_not_called_damaged(tmp_path: Path) -> None:
    over = Over(tmp_path, is_uploaded=False)
    for node in NODES:
        shutil.rmtree(over.on_disk(node, ""))
        with pytest.raises(MidwatchError) as caught:
            over.verify()
        assert caught.value.code == "parts-out-of-sight"
        assert load_state(over.folder).checkpoints[OLD].verified is True


def test_each_file_is_as_sound_as_its_best_copy(tmp_path: Path) -> None:
    over = Over(tmp_path, is_uploaded=True)
    flip(over.on_disk("n1", OTHER))
    assert over.verify().verified is True
    flip(over.in_store(SHARD))
    assert over.verify().verified is True
    flip(over.in_store(OTHER))
    found = over.verify()
    assert found.verified is False
    assert OTHER in found.error
    assert SHARD not in found.error


def test_without_disks_every_file_is_read_in_the_store(tmp_path: Path) -> None:
    over = Over(tmp_path, is_uploaded=True)
    for root in over.roots:
        shutil.rmtree(root)
    assert over.verify().verified is True
    flip(over.in_store(OTHER))
    assert OTHER in over.verify().error
    flip(over.in_store(MANIFEST_NAME))
    assert "manifest-corrupt" in over.verify().error
