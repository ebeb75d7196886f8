"""Checkpoints in parts, made without torch: what the ranks of some nodes would have saved."""

from __future__ import annotations

import random
from pathlib import Path

from midwatch.checkpoints.index import INDEX_NAME, Index, encode_index
from midwatch.checkpoints.manifest import (
    FileEntry,
    Fingerprint,
    Manifest,
    SaveHeader,
    checkpoint_dir,
    checkpoint_id,
)
from midwatch.checkpoints.saving import METADATA_NAME
from midwatch.checkpoints.shardfile import commit_manifest, entry_of, write_file
from midwatch.logbook.wire import CheckpointTags, Hyper, Mesh

RANKS_PER_NODE = 2


def contents(step: int, num_ranks: int, size: int, seed: str = "") -> dict[str, bytes]:
    """Return the files of a checkpoint, the first of that size; no two are alike in size."""
    rng = random.Random(f"{step}/{num_ranks}{seed}")
    sizes = [size, *(1000 + 17 * rank for rank in range(1, num_ranks))]
    files = {f"__{rank}_0.distcp": rng.randbytes(sizes[rank]) for rank in range(num_ranks)}
    index = Index(files=tuple(files), tensors={}, values={}, paths={})
    return files | {INDEX_NAME: encode_index(index), METADATA_NAME: b"metadata " + bytes([step])}


def save_parts(
    roots: list[Path],
    step: int,
    size: int = 1000,
    attempt: int = 1,
    run_id: str = "id",
    seed: str = "",
) -> tuple[Manifest, dict[str, bytes]]:
    """Commit a checkpoint of which each root has two ranks' files and what describes them."""
    files = contents(step, RANKS_PER_NODE * len(roots), size, seed)
    entries: list[FileEntry] = [entry_of(n, memoryview(data)) for n, data in files.items()]
    manifest = Manifest(
        id=checkpoint_id(step, attempt),
        run="r",
        attempt=attempt,
        created_s=1e9 + step,
        mesh=Mesh(RANKS_PER_NODE * len(roots), 1),
        world_size=RANKS_PER_NODE * len(roots),
        header=SaveHeader(
            step=step,
            data_step=step,
            hyper=Hyper(),
            tags=CheckpointTags(float("nan"), 0.5, 30.0, 4.0, 1e-3),
        ),
        fingerprint=Fingerprint("3.11", "2", "0", "Linux", "d"),
        files=tuple(entries),
        total_bytes=sum(entry.bytes for entry in entries),
        run_id=run_id,
    )
    for number, root in enumerate(roots):
        directory = checkpoint_dir(root, manifest.id)
        directory.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            if not name.endswith(".distcp") or int(name[2:].split("_")[0]) // 2 == number:
                write_file(directory / name, memoryview(data))
        commit_manifest(directory, manifest)
    return manifest, files
