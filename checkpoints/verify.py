"""Read a checkpoint back and say whether every byte is what was written."""

from __future__ import annotations

from pathlib import Path

from .manifest import Manifest, read_manifest
from .shardfile import verify_file


def verify(directory: str | Path, deep: bool = True) -> Manifest:
    """Check a checkpoint directory against its manifest and return the manifest.

    All sizes first, since a truncated file is the common damage and costs nothing to see; then,
    with deep, the SHA-256 of every file, streamed in constant memory.
    Raises: IntegrityError[manifest-missing], [manifest-corrupt], [manifest-format],
        [shard-missing], [shard-size], [shard-checksum], [shard-unreadable], naming the file.
    """
    path = Path(directory)
    manifest = read_manifest(path)
    for entry in manifest.files:
        verify_file(path, entry, deep=False)
    if deep:
        for entry in manifest.files:
            verify_file(path, entry)
    return manifest
