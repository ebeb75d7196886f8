"""Kill a rank at seeded points of a save: what was committed stays, what was not never was."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from midwatch.checkpoints.dcp import Saver, load_first
from midwatch.checkpoints.manifest import checkpoint_dir, checkpoint_id
from midwatch.checkpoints.retention import collect_garbage
from midwatch.checkpoints.source import in_run_folder
from midwatch.checkpoints.store import LocalStore
from midwatch.checkpoints.verify import verify
from midwatch.logbook.wire import Mesh

from tests.support.ranks import RankFailed, run_ranks
from tests.unit.checkpoints import models

pytestmark = pytest.mark.chaos

MESH = Mesh(2, 1)
CALLS = ("open", "write", "fsync", "rename")
# Rank 1 writes one file: open, write, fsync. Rank 0 writes four, the last of them the manifest
# (calls 10 to 12), syncs the directory (13, 14), renames (15), syncs two directories (16 to 19). A
# point past the last call means that the rank lives.
LAST_CALL = {0: 19, 1: 3}
RENAME = 15
SHARDS, COMMIT = range(1, 10), (11, 13, RENAME, 16, 19)
SEED = 20260730


class DeadlyOs:
    """The os module, except that the given call kills the process: before it, or half-way."""

    def __init__(self, deadly_call: int, marker: Path) -> None:
        self._left = deadly_call
        self._marker = marker

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CALLS:
            return real

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                self._marker.write_text(name)
                if name == "write":
                    descriptor, data = args
                    os.write(descriptor, data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return counted


def save_and_die(rank: int, folder: str, victim: int, deadly_call: int) -> str:
    from midwatch.checkpoints import shardfile

    state = models.sharded_state(MESH, 1)
    saver = Saver(models.saver_config(folder, rank, MESH))
    assert saver.save(state, models.header(1)).result(30.0).stage == "committed"
    if rank == victim:
        marker = Path(folder) / "struck"
        shardfile.os = DeadlyOs(deadly_call, marker)  # type: ignore[attr-defined]
    return saver.save(state, models.header(2)).result(30.0).stage


def recover(rank: int, folder: str, names: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    state = models.wipe(models.sharded_state(MESH, 9))
    report = load_first(in_run_folder(folder, names), state, rank=rank)
    saver = Saver(models.saver_config(folder, rank, MESH, attempt=2))
    assert saver.save(state, models.header(2)).result(30.0).stage == "committed"
    return report.checkpoint, models.digest(state)


def original(rank: int) -> dict[str, str]:
    return models.digest(models.sharded_state(MESH, 1))


@pytest.fixture(scope="module")
def expected() -> dict[str, str]:
    return run_ranks(original, 2)[0]


def points() -> list[tuple[int, int]]:
    drawn = sorted(random.Random(SEED).sample(SHARDS, 2))
    return [(0, call) for call in (*drawn, *COMMIT)] + [(1, call) for call in (1, 2, 3)]


@pytest.mark.parametrize(("victim", "deadly_call"), points())
def test_a_rank_killed_in_a_save(
    tmp_path: Path, expected: dict[str, str], victim: int, deadly_call: int
) -> None:
    with pytest.raises(RankFailed):
        run_ranks(save_and_die, 2, str(tmp_path), victim, deadly_call)
    assert (tmp_path / "struck").exists(), f"seed {SEED}: the fault did not strike"

    listing = LocalStore(tmp_path).listing()
    assert listing.broken == ()
    assert checkpoint_id(1, 1) in listing.ids
    assert (checkpoint_id(2, 1) in listing.ids) == (victim == 0 and deadly_call > RENAME)
    for name in listing.ids:
        verify(checkpoint_dir(tmp_path, name))

    best_first = tuple(reversed(listing.ids))
    for loaded, digest in run_ranks(recover, 2, str(tmp_path), best_first):
        assert loaded == best_first[0]
        assert digest == expected

    collect_garbage(LocalStore(tmp_path), current_attempt=2)
    after = LocalStore(tmp_path).listing()
    assert after.garbage == ()
    assert after.ids == (*listing.ids, checkpoint_id(2, 2))


def test_the_points_cover_the_whole_save(tmp_path: Path) -> None:
    """One call past the last, nobody dies: so the points above reach from first to last."""
    for victim in (0, 1):
        folder = tmp_path / str(victim)
        folder.mkdir()
        stages = run_ranks(save_and_die, 2, str(folder), victim, LAST_CALL[victim] + 1)
        assert stages == ["committed", "committed"]
        assert not (folder / "struck").exists()
