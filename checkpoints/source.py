"""From where one checkpoint is read: its folder, another tier, or several that make up for each
other. A load asks a Source for what it needs and trusts nothing that did not come through it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from .index import INDEX_NAME, Index, decode_index
from .manifest import Manifest, checkpoint_dir, read_manifest
from .shardfile import read_verified

Repaired = tuple[tuple[str, str], ...]
"""(file, why) of each bad or missing copy in whose place another was read."""


class Source(Protocol):
    """One checkpoint, opened. Every byte that it gives out has been verified."""

    @property
    def tier(self) -> str:
        """Where it lies: "memory", "disk" or "store"."""
        ...

    @property
    def manifest(self) -> Manifest:
        """What is known of the checkpoint."""
        ...

    @property
    def index(self) -> Index:
        """Where every tensor lies in its files."""
        ...

    @property
    def repaired(self) -> Repaired:
        """What had to be read from elsewhere so far."""
        ...

    def read(self, name: str) -> memoryview:
        """Return a file of the checkpoint, whole and verified. Raises: IntegrityError."""
        ...


Opener = Callable[[], Source]
"""Opens a candidate. Raises: IntegrityError when nothing that can be trusted is there."""


class FolderSource:
    """A checkpoint in a folder that this process can read."""

    tier = "disk"
    repaired: Repaired = ()

    def __init__(self, directory: str | Path) -> None:
        """Raises: IntegrityError as read_manifest, and [index-corrupt]."""
        self._directory = Path(directory)
        self.manifest = read_manifest(self._directory)
        self.index = decode_index(self.read(INDEX_NAME))

    def read(self, name: str) -> memoryview:
        """Return a file, whole and verified. Raises: IntegrityError as read_verified."""
        return read_verified(self._directory, self.manifest.entry(name))


def in_run_folder(
    run_dir: str | Path, checkpoints: Sequence[str]
) -> tuple[tuple[str, Opener], ...]:
    """Return the candidates for load_first that lie in the run folder."""

    def opener(name: str) -> Opener:
        return lambda: FolderSource(checkpoint_dir(run_dir, name))

    return tuple((name, opener(name)) for name in checkpoints)
