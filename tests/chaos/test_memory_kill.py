"""Kill a rank at any moment while all keep copying to memory: a whole state is always left."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from midwatch.checkpoints import saving
from midwatch.checkpoints.dcp import BESIDE_SAVE, Saver, load_first
from midwatch.checkpoints.dcp_memory import MemorySource
from midwatch.checkpoints.manifest import FileEntry
from midwatch.logbook.wire import Mesh
from torch.distributed.tensor import DTensor

from tests.support.memory_nodes import Nodes
from tests.support.ranks import RankFailed, run_ranks
from tests.unit.checkpoints import models

pytestmark = pytest.mark.chaos

MESH = Mesh(2, 2)
PER_NODE = 2
SEED = 20261125
MAX_STEPS = 100_000
SAVE_STEPS = 12


def tensors(state: Any) -> list[torch.Tensor]:
    """Return this rank's own part of every floating-point tensor."""
    if isinstance(state, dict):
        return [found for value in state.values() for found in tensors(value)]
    if isinstance(state, DTensor):
        return [state.to_local()]
    return [state] if isinstance(state, torch.Tensor) and state.is_floating_point() else []


def keep_until_killed(rank: int, folder: str, victim: int, after_s: float) -> None:
    nodes = Nodes(Path(folder), PER_NODE)
    order = nodes.order(f"node-{rank // PER_NODE}")
    saver = Saver(models.saver_config(folder, rank, MESH), memory=order)
    state = models.sharded_state(MESH, 1)
    for step in range(1, MAX_STEPS):
        for tensor in tensors(state):
            tensor.fill_(step % 512)
        if saver.keep(state, models.header(step)).result(60.0).stage != "kept":
            return
        agree(Path(folder) / f"agreed-{rank}", step)
        if step == 1 and rank == victim:
            # Only now: the first copy lays out all buffers and takes far longer than any other.
            threading.Thread(target=die_after, args=(after_s,), daemon=True).start()


def keep_beside_saves_until_killed(rank: int, folder: str, seed: int, after_s: float) -> None:
    """Copy whenever all can, and save every few steps to a disk that is slow on every rank."""
    chance = random.Random(seed + rank)
    write = saving.write_file

    def write_slowly(path: Path, data: memoryview, *, sync: bool = True) -> FileEntry:
        threading.Event().wait(chance.uniform(0.0, 0.05))
        return write(path, data, sync=sync)

    saving.write_file = write_slowly
    nodes = Nodes(Path(folder), PER_NODE)
    saver = Saver(
        models.saver_config(folder, rank, MESH), memory=nodes.order(f"node-{rank // PER_NODE}")
    )
    state = models.sharded_state(MESH, 1)
    saver.prepare(state)
    saved_step, is_victim = 0, rank == seed % 4
    for step in range(1, MAX_STEPS):
        level = torch.tensor([saver.memory_level(step, MAX_STEPS)])
        dist.all_reduce(level, op=dist.ReduceOp.MIN)
        for tensor in tensors(state):
            tensor.fill_(step % 512)
        is_first = step == 1
        if not is_first and level < BESIDE_SAVE and step % SAVE_STEPS:
            continue
        # What is left of memory whenever anybody dies from here on.
        floor = saved_step if level == BESIDE_SAVE else saver.memory_step or 0
        agree(Path(folder) / f"agreed-{rank}", floor)
        if is_first:
            assert saver.keep(state, models.header(step)).result(60.0).stage == "kept"
        elif step % SAVE_STEPS == 0:
            # A peer that died fails the copies and the save; the next agreement ends this rank.
            saver.save(state, models.header(step), to_memory=True)
            saved_step = step
        else:
            is_beside = bool(level == BESIDE_SAVE)
            saver.keep(state, models.header(step), beside_save=is_beside)
            if is_beside and is_victim:
                # Only now, so that it is certain to have copied beside a save.
                threading.Thread(target=die_after, args=(after_s,), daemon=True).start()
                is_victim = False


def agree(path: Path, step: int) -> None:
    # In one rename: a rank killed between the cut and the write would leave nothing.
    draft = path.with_suffix(".draft")
    draft.write_text(str(step))
    draft.replace(path)


def newest_agreed(folder: Path) -> int:
    """Return the newest step of any rank; a slow one may have died before it wrote down any."""
    return max(int(path.read_text()) for path in folder.glob("agreed-?"))


def die_after(delay_s: float) -> None:
    time.sleep(delay_s)
    os.kill(os.getpid(), signal.SIGKILL)


def resume(rank: int, folder: str, lost: str) -> tuple[int, set[float]]:
    nodes = Nodes(Path(folder), PER_NODE)
    home = f"node-{rank // PER_NODE}"
    order = nodes.order("spare" if home == lost else home)
    saver = Saver(models.saver_config(folder, rank, MESH, attempt=2), memory=order)
    assert saver.memory is not None
    state = models.wipe(models.sharded_state(MESH, 9))
    found = saver.memory.find(state, 0)
    assert isinstance(found, MemorySource), found
    load_first([(found.manifest.id, found.opened)], state, rank=rank)
    values = {float(value) for tensor in tensors(state) for value in tensor.unique()}
    return found.manifest.step, values


@pytest.mark.parametrize("case", range(6))
def test_a_rank_killed_while_copying(tmp_path: Path, case: int) -> None:
    chance = random.Random(SEED + case)
    victim, after_s = chance.randrange(4), chance.uniform(0.0, 0.15)
    with pytest.raises(RankFailed):
        run_ranks(keep_until_killed, 4, str(tmp_path), victim, after_s)
    agreed = newest_agreed(tmp_path)

    lost = ("", "node-0", "node-1")[case % 3]
    if lost:
        Nodes(tmp_path, PER_NODE).lose(lost)
    for step, values in run_ranks(resume, 4, str(tmp_path), lost):
        assert step >= agreed, f"seed {SEED + case}"
        assert values == {float(step % 512)}, f"seed {SEED + case}"


@pytest.mark.parametrize("case", range(4))
def test_a_rank_killed_while_copying_beside_a_save(tmp_path: Path, case: int) -> None:
    seed = SEED + case
    after_s = random.Random(seed).uniform(0.0, 0.3)
    with pytest.raises(RankFailed):
        run_ranks(keep_beside_saves_until_killed, 4, str(tmp_path), seed, after_s)
    agreed = newest_agreed(tmp_path)
    assert agreed > 0, f"seed {seed}: nobody came to copy beside a save"

    lost = ("", "node-0", "node-1")[case % 3]
    if lost:
        Nodes(tmp_path, PER_NODE).lose(lost)
    for step, values in run_ranks(resume, 4, str(tmp_path), lost):
        assert step >= agreed, f"seed {seed}"
        assert values == {float(step % 512)}, f"seed {seed}"
