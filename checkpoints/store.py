"""Where checkpoints live: a narrow protocol, and the store in the run's own directory."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

import msgspec

from ..logbook.errors import ConfigError, IntegrityError
from .manifest import (
    CHECKPOINTS_DIR,
    MANIFEST_DELETING,
    MANIFEST_NAME,
    Manifest,
    checkpoint_dir,
    parse_checkpoint_id,
    read_manifest,
)
from .shardfile import sync_directory
from .verify import verify


class Broken(msgspec.Struct, frozen=True):
    """A checkpoint that has a manifest which cannot be trusted."""

    id: str
    code: str
    message: str


class Listing(msgspec.Struct, frozen=True):
    """What a store holds. One unreadable checkpoint never hides the others.

    committed: manifests, oldest step first.
    garbage:   names of directories of saves that never finished.
    deleting:  names of directories of a deletion that was interrupted; may go at any time.
    """

    committed: tuple[Manifest, ...] = ()
    broken: tuple[Broken, ...] = ()
    garbage: tuple[str, ...] = ()
    deleting: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(manifest.id for manifest in self.committed)


class CheckpointStore(Protocol):
    """What the controller needs of a place that keeps checkpoints, local or remote.

    Ids are those of manifest.checkpoint_id. A store shows a checkpoint only once it is committed
    there, and delete takes the commit away before anything else.
    """

    def listing(self) -> Listing:
        """Return everything found; never raises for a single bad checkpoint."""
        ...

    def manifest(self, checkpoint: str) -> Manifest:
        """Return one manifest. Raises: IntegrityError."""
        ...

    def verify(self, checkpoint: str, deep: bool = True) -> Manifest:
        """Read one checkpoint back. Raises: IntegrityError."""
        ...

    def at_hand(self, checkpoint: str, beside: Path) -> AbstractContextManager[Path]:
        """Give a local directory from which it can be loaded while the context lasts.

        beside: what has to be fetched for that stands next to this path, and goes in the end.
        """
        ...

    def delete(self, checkpoint: str) -> None:
        """Remove a checkpoint or what is left of one; repeating it is harmless."""
        ...


class LocalStore:
    """The store in `<run_dir>/checkpoints`, where savers write and loaders read directly."""

    def __init__(self, run_dir: str | Path) -> None:
        self._run_dir = Path(run_dir)

    @property
    def root(self) -> Path:
        return self._run_dir / CHECKPOINTS_DIR

    def listing(self) -> Listing:
        """Return everything found; a directory that vanishes meanwhile is simply not there."""
        committed: list[Manifest] = []
        broken: list[Broken] = []
        garbage: list[str] = []
        deleting: list[str] = []
        for name in self._names():
            directory = self.root / name
            try:
                committed.append(read_manifest(directory))
            except IntegrityError as error:
                if error.code != "manifest-missing":
                    broken.append(Broken(name, error.code, error.message))
                elif (directory / MANIFEST_DELETING).exists():
                    deleting.append(name)
                elif directory.is_dir():
                    garbage.append(name)
        committed.sort(key=lambda m: (m.step, m.attempt))
        return Listing(tuple(committed), tuple(broken), tuple(garbage), tuple(deleting))

    def manifest(self, checkpoint: str) -> Manifest:
        return read_manifest(self.path(checkpoint))

    def verify(self, checkpoint: str, deep: bool = True) -> Manifest:
        return verify(self.path(checkpoint), deep)

    def path(self, checkpoint: str) -> Path:
        """Return its directory, which may not exist. Raises: ConfigError[checkpoint-id]."""
        if parse_checkpoint_id(checkpoint) is None:
            raise ConfigError(
                "checkpoint-id",
                f"{checkpoint!r} is not a checkpoint id such as step-00000120.a0003.",
                remedy="List the ids there are.",
            )
        return checkpoint_dir(self._run_dir, checkpoint)

    def at_hand(self, checkpoint: str, beside: Path) -> AbstractContextManager[Path]:
        """Give its directory, which may not exist. Raises: ConfigError[checkpoint-id]."""
        return nullcontext(self.path(checkpoint))

    def delete(self, checkpoint: str) -> None:
        """Remove a checkpoint so that a crash at any point leaves it whole or recognisably gone.

        First the manifest is renamed away, durably: from then on the checkpoint does not exist and
        its directory is marked as being deleted. Then the files go, the marker last.
        Raises: ConfigError[checkpoint-id], OSError.
        """
        directory = self.path(checkpoint)
        marker = directory / MANIFEST_DELETING
        try:
            os.rename(directory / MANIFEST_NAME, marker)
        except FileNotFoundError:
            if not directory.is_dir():
                return
            marker.touch()
        sync_directory(directory)
        for path in directory.iterdir():
            if path != marker:
                path.unlink(missing_ok=True)
        sync_directory(directory)
        marker.unlink(missing_ok=True)
        directory.rmdir()
        sync_directory(self.root)

    def _names(self) -> list[str]:
        try:
            names = sorted(os.listdir(self.root))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [name for name in names if parse_checkpoint_id(name) is not None]
