"""Read back what one node has of a checkpoint, or what the store has, file by file."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ..logbook.errors import IntegrityError
from .manifest import Manifest, read_manifest
from .remote import RunObjects
from .shardfile import verify_file

Names = tuple[str, ...]
Bad = tuple[tuple[str, str], ...]


def check_part(directory: Path) -> tuple[Names, Bad, Names]:
    """Return (sound files, bad ones with the reason, those that are not here) of a part.

    Raises: IntegrityError[manifest-missing], [manifest-corrupt], [manifest-format].
    """
    sound, bad, missing = [], [], []
    for entry in read_manifest(directory).files:
        try:
            verify_file(directory, entry)
            sound.append(entry.name)
        except IntegrityError as error:
            if error.code == "shard-missing":
                missing.append(entry.name)
            else:
                bad.append((entry.name, str(error)))
    return tuple(sound), tuple(bad), tuple(missing)


def check_stored(
    remote: RunObjects, manifest: Manifest, names: Collection[str] | None
) -> tuple[Names, Bad]:
    """Return (sound files, bad or missing ones with the reason) of those named, in the store.

    names: None for all of the manifest's.
    Raises: Retryable and Fatal of the store: they say nothing about the bytes.
    """
    sound, bad = [], []
    for entry in manifest.files:
        if names is not None and entry.name not in names:
            continue
        try:
            remote.read_back(manifest.id, entry)
            sound.append(entry.name)
        except IntegrityError as error:
            bad.append((entry.name, str(error)))
    return tuple(sound), tuple(bad)
