"""Read back what one node has of a checkpoint, or what the store has, file by file."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec

from ..logbook.errors import IntegrityError
from .manifest import MANIFEST_NAME, Manifest, read_manifest
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


class PartsRead(msgspec.Struct, frozen=True):
    """What several folders have of one checkpoint, each file as sound as its best copy.

    rest: the files of which no folder has a sound copy; None when none has a manifest to trust.
    bad: why a copy, or a manifest, that was seen is not what was saved.
    """

    rest: Names | None
    bad: Names

    @property
    def is_whole(self) -> bool:
        return self.rest == ()

    @property
    def why(self) -> str:
        """Say what is wrong when these folders are all there is."""
        if self.rest is None:
            return "; ".join(self.bad) or "[manifest-missing] there is no manifest."
        return "; ".join(self.bad) or f"[shard-missing] {', '.join(self.rest)} is missing."


def check_parts(directories: Sequence[Path]) -> PartsRead:
    """Read back what lies in several folders of one checkpoint."""
    sound: set[str] = set()
    named: set[str] = set()
    bad: list[tuple[str, str]] = []
    num_read = 0
    for directory in directories:
        try:
            good, damaged, missing = check_part(directory)
        except IntegrityError as error:
            if error.code != "manifest-missing":
                bad.append((MANIFEST_NAME, str(error)))
            continue
        num_read += 1
        sound.update(good)
        bad += damaged
        named.update(good, (name for name, _ in damaged), missing)
    whys = tuple(why for name, why in bad if name not in sound)
    return PartsRead(tuple(sorted(named - sound)) if num_read else None, whys)


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
