"""What one mesh saved, any mesh loads, bit for bit; and so does stock torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from midwatch.checkpoints.dcp import Saver, load, load_first
from midwatch.checkpoints.manifest import checkpoint_dir, checkpoint_id
from midwatch.checkpoints.source import FolderSource, in_run_folder
from midwatch.checkpoints.verify import verify
from midwatch.logbook.wire import Mesh

from tests.support.ranks import run_ranks
from tests.unit.checkpoints import models

SEED = 3
ID = checkpoint_id(SEED, 1)


def save(rank: int, folder: str, mesh: Mesh) -> dict[str, str]:
    state = models.sharded_state(mesh, SEED)
    saver = Saver(models.saver_config(folder, rank, mesh))
    outcome = saver.save(state, models.header(SEED)).result(30.0)
    assert outcome.stage == "committed", outcome.error
    saver.close()
    return models.digest(state)


def reload(rank: int, folder: str, mesh: Mesh) -> tuple[dict[str, str], dict[str, str], int]:
    """Return the digests after our load and after stock torch's, and the bytes that ours read."""
    import torch.distributed.checkpoint as dcp

    directory = checkpoint_dir(folder, ID)
    ours = models.wipe(models.sharded_state(mesh, 99))
    report = load(directory, ours, rank=rank)
    stock: Any = models.wipe(models.sharded_state(mesh, 99))
    dcp.load(stock, checkpoint_id=directory)
    return models.digest(ours), models.digest(stock), report.read_bytes


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[Mesh, tuple[str, dict[str, str]]]:
    found = {}
    for mesh in (Mesh(2, 2), Mesh(3, 1), Mesh(1, 2)):
        folder = str(tmp_path_factory.mktemp(f"saved-{mesh.dp_shard}x{mesh.tp}"))
        digests = run_ranks(save, mesh.world_size, folder, mesh)
        assert all(digest == digests[0] for digest in digests)
        found[mesh] = folder, digests[0]
    return found


@pytest.mark.parametrize(
    ("origin", "target"),
    [
        (Mesh(2, 2), Mesh(2, 2)),
        (Mesh(2, 2), Mesh(1, 2)),
        (Mesh(2, 2), Mesh(4, 1)),
        (Mesh(2, 2), Mesh(1, 4)),
        (Mesh(2, 2), Mesh(1, 1)),
        (Mesh(3, 1), Mesh(2, 2)),
        (Mesh(1, 2), Mesh(3, 1)),
    ],
    ids=str,
)
def test_any_mesh_loads_any_checkpoint(saved: Any, origin: Mesh, target: Mesh) -> None:
    folder, expected = saved[origin]
    for ours, stock, _ in run_ranks(reload, target.world_size, folder, target):
        assert ours == expected
        assert stock == expected


def test_the_mesh_that_saved_reads_one_file_a_rank(saved: Any) -> None:
    mesh = Mesh(2, 2)
    folder, _ = saved[mesh]
    sizes = {entry.name: entry.bytes for entry in verify(checkpoint_dir(folder, ID)).files}
    for rank, (_, _, read_bytes) in enumerate(run_ranks(reload, 4, folder, mesh)):
        assert read_bytes == sizes[f"__{rank}_0.distcp"]


def test_the_manifest_tells_where_it_came_from(saved: Any) -> None:
    folder, _ = saved[Mesh(2, 2)]
    manifest = verify(checkpoint_dir(folder, ID))
    assert (manifest.id, manifest.step, manifest.attempt) == (ID, SEED, 1)
    assert manifest.mesh == Mesh(2, 2)
    assert manifest.header == models.header(SEED)
    assert manifest.fingerprint == models.FINGERPRINT
    names = {entry.name for entry in manifest.files}
    assert names == {f"__{r}_0.distcp" for r in range(4)} | {".metadata", "index.msgpack"}
    assert manifest.total_bytes == sum(entry.bytes for entry in manifest.files)


def damaged_on_one_rank(rank: int, folder: str, mesh: Mesh) -> tuple[Any, ...]:
    state = models.sharded_state(mesh, SEED)
    saver = Saver(models.saver_config(folder, rank, mesh))
    for step in (1, 2):
        state["step"] = step
        assert saver.save(state, models.header(step)).result(30.0).stage == "committed"
    saver.close()
    if rank == 0:
        path = checkpoint_dir(folder, checkpoint_id(2, 1)) / "__1_0.distcp"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    # The damaged file is rank 1's: rank 0 alone would have loaded step 2.
    import torch.distributed as dist

    dist.barrier()
    candidates = in_run_folder(folder, [checkpoint_id(2, 1), checkpoint_id(1, 1)])
    report = load_first(candidates, models.wipe(state), rank=rank)
    assert report.manifest is not None
    return report.checkpoint, state["step"], report.passed_over


def test_all_ranks_fall_back_together(tmp_path: Path) -> None:
    results = run_ranks(damaged_on_one_rank, 2, str(tmp_path), Mesh(2, 1))
    for checkpoint, step, passed_over in results:
        assert (checkpoint, step) == (checkpoint_id(1, 1), 1)
        ((name, reason),) = passed_over
        assert name == checkpoint_id(2, 1)
        assert "rank 1" in reason
        assert "[shard-checksum]" in reason
        assert "__1_0.distcp" in reason


class Mended(FolderSource):
    """A source that had to read one file from another copy."""

    def __init__(self, directory: Path, rank: int) -> None:
        super().__init__(directory)
        self.repaired = ((f"__{rank}_0.distcp", "[shard-size] too short"),)


def repaired_on_one_rank(rank: int, folder: str, mesh: Mesh) -> Any:
    state = models.sharded_state(mesh, SEED)
    saver = Saver(models.saver_config(folder, rank, mesh))
    assert saver.save(state, models.header(1)).result(30.0).stage == "committed"
    saver.close()
    directory = checkpoint_dir(folder, checkpoint_id(1, 1))

    def opened() -> FolderSource:
        return Mended(directory, rank) if rank == 1 else FolderSource(directory)

    return load_first([(directory.name, opened)], models.wipe(state), rank=rank).repaired


def test_what_one_rank_had_to_repair_is_known_to_all(tmp_path: Path) -> None:
    told = run_ranks(repaired_on_one_rank, 2, str(tmp_path), Mesh(2, 1))
    assert told == [(("__1_0.distcp", "[shard-size] too short"),)] * 2
