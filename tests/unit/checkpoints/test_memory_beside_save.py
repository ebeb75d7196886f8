"""A slow write to disk holds one buffer; states go on being copied to memory in the other."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from midwatch.checkpoints import saving
from midwatch.checkpoints.dcp import BESIDE_SAVE, COPY_NOW, Saver, load, load_first
from midwatch.checkpoints.dcp_memory import MemorySource
from midwatch.checkpoints.manifest import FileEntry, checkpoint_dir, checkpoint_id
from midwatch.checkpoints.memory import Generation
from midwatch.logbook.wire import Mesh

from tests.support.memory_nodes import Nodes
from tests.support.ranks import run_ranks
from tests.unit.checkpoints import models
from tests.unit.checkpoints.test_memory_tier import copy_into

MESH = Mesh(2, 2)
PER_NODE = 2
WAIT_S = 60.0
SAVED, BESIDE, AFTER = 3, 6, 9
"""The step that is saved, the last copied beside that save, and the last copied after it."""


class SlowDisk:
    """Lets no shard through to the disk before it is told to."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self._write = saving.write_file
        saving.write_file = self._write_slowly

    def _write_slowly(self, path: Path, data: memoryview, *, sync: bool = True) -> FileEntry:
        if path.suffix == ".distcp":
            assert self.released.wait(WAIT_S)
        return self._write(path, data, sync=sync)


def agreed_level(saver: Saver, step: int) -> int:
    level = torch.tensor([saver.memory_level(step, 999)])
    dist.all_reduce(level, op=dist.ReduceOp.MIN)
    return int(level)


def saver_on(rank: int, folder: str, *, attempt: int = 1) -> Saver:
    order = Nodes(Path(folder), PER_NODE).order(f"node-{rank // PER_NODE}")
    return Saver(models.saver_config(folder, rank, MESH, attempt=attempt), memory=order)


def set_step(state: dict[str, Any], step: int) -> dict[str, Any]:
    for key, value in models.sharded_state(MESH, step).items():
        copy_into(state, key, value)
    return state


def save_slowly(rank: int, folder: str, last_step: int, is_in_memory: bool) -> list[Any]:
    """Copy every step, save one on a slow disk; return what happened, (step, level, in memory)."""
    disk, saver = SlowDisk(), saver_on(rank, folder)
    state = models.sharded_state(MESH, 1)
    saver.prepare(state)
    handle, story = None, []
    assert saver.keep(state, models.header(1)).result(WAIT_S).stage == "kept"
    for step in range(2, last_step + 1):
        level = agreed_level(saver, step)
        set_step(state, step)
        if step == SAVED:
            handle = saver.save(state, models.header(step), to_memory=is_in_memory)
            assert handle._copied.wait(WAIT_S)
        elif level >= BESIDE_SAVE:
            is_beside = level == BESIDE_SAVE
            kept = saver.keep(state, models.header(step), beside_save=is_beside)
            assert kept.result(WAIT_S).stage == "kept"
        story.append((step, level, saver.memory_step))
        if step == BESIDE:
            assert handle is not None
            assert not handle.is_done()
            disk.released.set()
            assert handle.result(WAIT_S).stage == "committed"
    if last_step < BESIDE:
        # As a rank that is killed would: without waiting for the write.
        return story
    saver.close(WAIT_S)
    return story


def resume(rank: int, folder: str, lost: str) -> tuple[int, dict[str, str]]:
    home = f"node-{rank // PER_NODE}"
    order = Nodes(Path(folder), PER_NODE).order("spare" if home == lost else home)
    saver = Saver(models.saver_config(folder, rank, MESH, attempt=2), memory=order)
    assert saver.memory is not None
    state = models.wipe(models.sharded_state(MESH, 99))
    found = saver.memory.find(state, 0)
    assert isinstance(found, MemorySource), found
    load_first([(found.manifest.id, found.opened)], state, rank=rank)
    return found.manifest.step, models.digest(state)


def load_saved(rank: int, folder: str) -> dict[str, str]:
    state = models.wipe(models.sharded_state(MESH, 99))
    load(checkpoint_dir(folder, checkpoint_id(SAVED, 1)), state, rank=rank)
    return models.digest(state)


def digest_of(rank: int, step: int) -> dict[str, str]:
    return models.digest(models.sharded_state(MESH, step))


@pytest.mark.parametrize("lost", ["", "node-0"])
def test_copies_go_on_while_a_save_is_written(tmp_path: Path, lost: str) -> None:
    for story in run_ranks(save_slowly, 4, str(tmp_path), BESIDE - 1, True):
        assert [(step, in_memory) for step, _, in_memory in story] == [
            (step, step) for step in range(2, BESIDE)
        ]
        assert {level for step, level, _ in story if step > SAVED} == {BESIDE_SAVE}
    # No more than two states: the one that is being written, and the newest.
    nodes = Nodes(tmp_path, PER_NODE)
    two = {Generation(SAVED, 1), Generation(BESIDE - 1, 1)}
    for node in ("node-0", "node-1"):
        assert nodes.held(node).keys() == {(g, rank) for g in two for rank in range(4)}
    if lost:
        nodes.lose(lost)
    expected = run_ranks(digest_of, 4, BESIDE - 1)[0]
    for step, digest in run_ranks(resume, 4, str(tmp_path), lost):
        assert step == BESIDE - 1
        assert digest == expected


def test_what_is_written_is_what_was_saved_however_many_copies_went_by(tmp_path: Path) -> None:
    for story in run_ranks(save_slowly, 4, str(tmp_path), AFTER, True):
        assert [in_memory for _, _, in_memory in story] == list(range(2, AFTER + 1))
        assert {level for step, level, _ in story if step > BESIDE} == {COPY_NOW}
    expected = run_ranks(digest_of, 4, SAVED)[0]
    assert run_ranks(load_saved, 4, str(tmp_path)) == [expected] * 4
    # Both buffers are in turn again.
    held = Nodes(tmp_path, PER_NODE).held("node-0")
    assert {generation.step for generation, _ in held} == {AFTER - 1, AFTER}


def test_the_only_whole_state_is_not_given_up_for_a_save_that_is_not_in_memory(
    tmp_path: Path,
) -> None:
    for story in run_ranks(save_slowly, 4, str(tmp_path), BESIDE - 1, False):
        assert {in_memory for step, _, in_memory in story if step >= SAVED} == {SAVED - 1}
        assert {level for step, level, _ in story if step > SAVED} == {1}
