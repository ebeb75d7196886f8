"""Saves of which every node keeps its own part: real ranks, two folders for two nodes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from midwatch.checkpoints.dcp import Saver, load_first
from midwatch.checkpoints.index import INDEX_NAME
from midwatch.checkpoints.manifest import (
    MANIFEST_NAME,
    SaverConfig,
    checkpoint_dir,
    checkpoint_id,
    read_manifest,
)
from midwatch.checkpoints.objects_folder import FolderStore, prepare_folder
from midwatch.checkpoints.remote import RunObjects
from midwatch.checkpoints.saving import METADATA_NAME
from midwatch.checkpoints.store import LocalStore
from midwatch.checkpoints.tiered import Tiers
from midwatch.checkpoints.uploading import Uploader
from midwatch.logbook.tiers import Storage
from midwatch.logbook.wire import Mesh

from tests.support.ranks import run_ranks
from tests.unit.checkpoints import models
from tests.unit.checkpoints.test_uploading import Heard

MESH = Mesh(2, 2)
WAIT_S = 60.0
DESCRIPTION = {INDEX_NAME, METADATA_NAME, MANIFEST_NAME}


def root_of(folder: str, rank: int) -> str:
    return f"{folder}/n{rank // 2}"


def storage_of(folder: str, rank: int) -> Storage:
    return Storage(url=f"{folder}/store", local_root=root_of(folder, rank), run_id="id", part_mib=5)


def config_of(folder: str, rank: int, attempt: int = 1) -> SaverConfig:
    import msgspec

    plain = models.saver_config(f"{folder}/unused", rank, MESH, attempt)
    return msgspec.structs.replace(plain, local_rank=rank % 2, storage=storage_of(folder, rank))


def save(rank: int, folder: str, steps: tuple[int, ...], attempt: int = 1) -> list[Any]:
    saver = Saver(config_of(folder, rank, attempt))
    found = []
    for step in steps:
        state = models.sharded_state(MESH, step)
        found.append(saver.save(state, models.header(step)).result(WAIT_S))
    saver.close()
    return found


def digest_of(rank: int, step: int) -> dict[str, str]:
    return models.digest(models.sharded_state(MESH, step))


def load(rank: int, folder: str, names: tuple[str, ...], node: str) -> tuple[Any, dict[str, str]]:
    import msgspec

    state = models.wipe(models.sharded_state(MESH, 9))
    storage = storage_of(folder, rank)
    if node and rank >= 2:
        storage = msgspec.structs.replace(storage, local_root=f"{folder}/{node}")
    tiers = Tiers(storage, "r", patience_s=0.0)
    report = load_first(tiers.candidates(names), state, rank=rank)
    return (report.checkpoint, report.tier, report.repaired), models.digest(state)


def upload(folder: Path) -> RunObjects:
    prepare_folder(folder / "store")
    remote = RunObjects(FolderStore(folder / "store"), "r", "id")
    for _ in range(2):
        for node in ("n0", "n1"):
            Uploader(folder / node, remote, Heard(), run_id="id").turn()
    return remote


def test_each_node_has_its_ranks_files_and_what_describes_them(tmp_path: Path) -> None:
    outcomes = run_ranks(save, 4, str(tmp_path), (5, 10))
    assert all(o.stage == "committed" for rank in outcomes for o in rank)
    for step in (5, 10):
        name = checkpoint_id(step, 1)
        manifests = []
        for node, shards in (("n0", (0, 1)), ("n1", (2, 3))):
            directory = checkpoint_dir(tmp_path / node, name)
            files = {f"__{rank}_0.distcp" for rank in shards}
            assert set(os.listdir(directory)) == files | DESCRIPTION
            manifests.append(read_manifest(directory))
        assert manifests[0].files == manifests[1].files
        assert {e.name for e in manifests[0].files} == {
            *(f"__{rank}_0.distcp" for rank in range(4)),
            INDEX_NAME,
            METADATA_NAME,
        }
        assert manifests[0].run_id == "id"
    assert not (tmp_path / "unused").exists()


def test_a_spare_loads_bit_by_bit_from_the_store(tmp_path: Path) -> None:
    folder = str(tmp_path)
    run_ranks(save, 4, folder, (5,))
    expected = run_ranks(digest_of, 4, 5)[0]
    name = checkpoint_id(5, 1)
    for told, digest in run_ranks(load, 4, folder, (name,), ""):
        assert told == (name, "disk", ())
        assert digest == expected
    upload(tmp_path)
    for told, digest in run_ranks(load, 4, folder, (name,), "spare"):
        # All ranks say what all of them did.
        assert told == (name, "store", ())
        assert digest == expected
    shards = {p.name for p in checkpoint_dir(tmp_path / "spare", name).glob("*.distcp")}
    assert shards == {"__2_0.distcp", "__3_0.distcp"}


def test_a_rotten_shard_is_told_by_every_rank(tmp_path: Path) -> None:
    folder = str(tmp_path)
    run_ranks(save, 4, folder, (5,))
    expected = run_ranks(digest_of, 4, 5)[0]
    upload(tmp_path)
    name = checkpoint_id(5, 1)
    path = checkpoint_dir(tmp_path / "n1", name) / "__3_0.distcp"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    for told, digest in run_ranks(load, 4, folder, (name,), ""):
        assert told[:2] == (name, "store")
        assert [file for file, _ in told[2]] == ["__3_0.distcp"]
        assert digest == expected


def test_a_part_that_is_nowhere_sends_all_ranks_to_the_next_candidate(tmp_path: Path) -> None:
    folder = str(tmp_path)
    run_ranks(save, 4, folder, (5,))
    upload(tmp_path)
    run_ranks(save, 4, folder, (10,))
    names = (checkpoint_id(10, 1), checkpoint_id(5, 1))
    for told, _ in run_ranks(load, 4, folder, names, "spare"):
        assert told[0] == names[1]


def fail_on_one_node(rank: int, folder: str) -> list[str]:
    saver = Saver(config_of(folder, rank))
    stages = []
    for step in (5, 10, 15):
        name = checkpoint_id(step, 1)
        if step == 10 and rank == 2:
            # Its manifest cannot be written: a folder stands where its temporary name goes.
            checkpoint_dir(root_of(folder, rank), name).mkdir(parents=True)
            (checkpoint_dir(root_of(folder, rank), name) / "manifest.json.tmp").mkdir()
        import torch.distributed as dist

        dist.barrier()
        outcome = saver.save(models.sharded_state(MESH, step), models.header(step)).result(WAIT_S)
        stages.append(outcome.stage)
        dist.barrier()
        if step == 10 and rank == 2:
            assert "rank 2" in outcome.error
    saver.close()
    return stages


def test_a_node_that_cannot_keep_its_part_fails_the_save_everywhere(tmp_path: Path) -> None:
    stages = run_ranks(fail_on_one_node, 4, str(tmp_path))
    assert stages == [["committed", "failed", "committed"]] * 4
    for node in ("n0", "n1"):
        assert LocalStore(tmp_path / node).listing().ids == (
            checkpoint_id(5, 1),
            checkpoint_id(15, 1),
        )


def test_a_node_whose_disk_is_full_fails_the_save_and_gives_the_room_back(tmp_path: Path) -> None:
    disk = tmp_path / "n1"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        outcomes = run_ranks(save, 4, str(tmp_path), (5, 10))
        for first, second in outcomes:
            assert first.stage == "committed"
            assert second.stage == "failed"
            assert "[disk-full]" in second.error
        for node in ("n0", "n1"):
            assert os.listdir(tmp_path / node / "checkpoints") == [checkpoint_id(5, 1)]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_new_attempt_sweeps_what_dead_ones_left_on_its_nodes(tmp_path: Path) -> None:
    for node in ("n0", "n1"):
        half = checkpoint_dir(tmp_path / node, checkpoint_id(7, 1))
        half.mkdir(parents=True)
        (half / "__0_0.distcp").write_bytes(b"half")
    run_ranks(save, 4, str(tmp_path), (9,), 2)
    for node in ("n0", "n1"):
        listing = LocalStore(tmp_path / node).listing()
        assert listing.garbage == ()
        assert listing.ids == (checkpoint_id(9, 2),)


@pytest.mark.parametrize("size", [100, 5000, 3_000_000])
def test_what_rank_0_tells_arrives_whatever_its_size(size: int) -> None:
    assert run_ranks(broadcast, 2, size) == [size, size]


def broadcast(rank: int, size: int) -> int:
    from midwatch.checkpoints.dcp_exchange import GlooExchange

    exchange = GlooExchange(models.saver_config("/unused", rank, Mesh(2, 1)))
    said = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    heard = exchange.broadcast(said if rank == 0 else b"")
    assert heard == said
    exchange.close()
    return len(heard)
