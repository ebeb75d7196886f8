"""Kill a deletion at every point: a checkpoint is whole, or recognisably on its way out."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from midwatch.checkpoints.dcp import Saver
from midwatch.checkpoints.manifest import checkpoint_id
from midwatch.checkpoints.retention import collect_garbage
from midwatch.checkpoints.store import LocalStore
from midwatch.logbook.wire import Mesh

from tests.unit.checkpoints import models

pytestmark = pytest.mark.chaos

# Deletes argv[2] under argv[1], and dies before the argv[3]-th call that changes the disk.
PROGRAM = """
import os, signal, sys
from midwatch.checkpoints.store import LocalStore
left = int(sys.argv[3])
def deadly(real):
    def counted(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return counted
for name in ("rename", "unlink", "rmdir", "fsync"):
    setattr(os, name, deadly(getattr(os, name)))
LocalStore(sys.argv[1]).delete(sys.argv[2])
"""
OTHER, DOOMED = checkpoint_id(1, 1), checkpoint_id(2, 1)
NUM_CALLS = 9


def delete(run_dir: Path, deadly_call: int) -> int:
    command = [sys.executable, "-c", PROGRAM, str(run_dir), DOOMED, str(deadly_call)]
    return subprocess.run(command, check=False).returncode


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("committed")
    import torch

    saver = Saver(models.saver_config(str(run_dir), 0, Mesh(1, 1)))
    for step in (1, 2):
        state = {"weights": torch.full((100,), float(step)), "step": step}
        assert saver.save(state, models.header(step)).result(30.0).stage == "committed"
    saver.close()
    return run_dir


@pytest.mark.parametrize("deadly_call", range(1, NUM_CALLS + 1))
def test_a_deletion_killed(committed: Path, tmp_path: Path, deadly_call: int) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(committed, run_dir)
    assert delete(run_dir, deadly_call) == -signal.SIGKILL

    store = LocalStore(run_dir)
    listing = store.listing()
    assert listing.broken == ()
    assert OTHER in listing.ids
    for name in listing.ids:
        store.verify(name)
    # Not committed means recognisable, also to whoever may not touch garbage of this attempt; only
    # the empty directory of the last moment has lost its mark.
    if DOOMED not in listing.ids:
        is_empty = not any(store.path(DOOMED).iterdir()) if store.path(DOOMED).exists() else True
        assert listing.deleting == (DOOMED,) or is_empty

    collect_garbage(store, current_attempt=2)
    after = store.listing()
    assert (after.deleting, after.garbage) == ((), ())
    assert after.ids == listing.ids
    store.delete(DOOMED)
    assert store.listing().ids == (OTHER,)


def test_the_points_cover_the_whole_deletion(committed: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(committed, run_dir)
    assert delete(run_dir, NUM_CALLS + 1) == 0
    assert LocalStore(run_dir).listing().ids == (OTHER,)
