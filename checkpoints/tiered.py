"""A checkpoint whose files lie on this node's disk, in the durable store, or on both.

Each file is taken from the disk if its bytes are those of the manifest, else from the store, and
what came from there is kept on the disk. Only the files that a rank asks for are fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ..logbook.errors import IntegrityError, MidwatchError, Retryable
from ..logbook.tiers import Storage
from .fetch import Fetcher, fetch_lock
from .index import INDEX_NAME, decode_index
from .manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    checkpoint_dir,
    read_manifest,
)
from .objects import ObjectStore, open_store
from .remote import RunObjects, check_run
from .retrying import Backoff, persist
from .shardfile import commit_manifest, read_verified
from .source import Opener, Repaired

R = TypeVar("R")

PATIENCE_S = 60.0
"""How long a load waits for a store that does not answer before it tries another checkpoint."""
_ABSENT = frozenset({"manifest-missing", "shard-missing"})


class Tiers:
    """Where one rank finds checkpoints: its node's folder and the store behind it.

    patience_s: for the first call that gets no answer; once it is used up the others get one try.
    """

    def __init__(
        self,
        storage: Storage,
        run: str,
        store: ObjectStore | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.root = Path(storage.local_root)
        self.run_id = storage.run_id
        self.remote = RunObjects(store or open_store(storage), run, storage.run_id)
        self._fetcher = Fetcher(
            self.remote.store,
            part_mib=storage.part_mib,
            concurrency=storage.concurrency,
            patience_s=patience_s,
        )

    def ask(self, call: Callable[[Fetcher], R]) -> R:
        """Return what a call to the store brings, with as much patience as is left."""
        try:
            return persist(lambda: call(self._fetcher), Backoff(0.1, 5.0), self._fetcher.patience_s)
        except Retryable:
            self._fetcher.patience_s = 0.0
            raise

    def candidates(self, checkpoints: Sequence[str]) -> tuple[tuple[str, Opener], ...]:
        """Return the candidates for load_first, in the order given."""

        def opener(name: str) -> Opener:
            return lambda: TieredSource(self, name)

        return tuple((name, opener(name)) for name in checkpoints)


class TieredSource:
    """One checkpoint, opened; a source.Source."""

    def __init__(self, tiers: Tiers, checkpoint: str) -> None:
        """Raises: IntegrityError when no place has what can be trusted; errors of the store."""
        self._tiers = tiers
        self._directory = checkpoint_dir(tiers.root, checkpoint)
        self._repaired: list[tuple[str, str]] = []
        self.tier = "disk"
        self.manifest = self._open_manifest(checkpoint)
        self.index = decode_index(self.read(INDEX_NAME))

    @property
    def repaired(self) -> Repaired:
        return tuple(self._repaired)

    def read(self, name: str) -> memoryview:
        """Return a file, whole and verified.

        Raises: IntegrityError when no copy is sound; errors of the store when the local one is not.
        """
        entry = self.manifest.entry(name)
        try:
            return read_verified(self._directory, entry)
        except IntegrityError as error:
            return self._elsewhere(entry, error)

    def _elsewhere(self, entry: FileEntry, why: IntegrityError) -> memoryview:
        self.tier = "store"
        data = self._fetched(entry)
        self._note(entry.name, why)
        return data

    def _fetched(self, entry: FileEntry) -> memoryview:
        key = self._tiers.remote.key(self.manifest.id, entry.name)
        path = self._directory / entry.name
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with fetch_lock(path):
                try:
                    # Another rank of this node may have fetched it meanwhile.
                    return read_verified(self._directory, entry)
                except IntegrityError:
                    self._tiers.ask(lambda fetcher: fetcher.to_file(key, path, entry))
                return read_verified(self._directory, entry)
        except OSError:
            # A disk that takes nothing, full or broken, must not keep a run from going on.
            return self._tiers.ask(lambda fetcher: fetcher.to_memory(key, entry))

    def _open_manifest(self, checkpoint: str) -> Manifest:
        try:
            manifest = read_manifest(self._directory)
            check_run(manifest, self._tiers.run_id, str(self._directory))
            return manifest
        except IntegrityError as error:
            why = error
        manifest_there = self._tiers.ask(lambda _: self._tiers.remote.manifest(checkpoint))
        if manifest_there is None:
            raise why
        self.tier = "store"
        self._note(MANIFEST_NAME, why)
        self._keep_manifest(manifest_there)
        return manifest_there

    def _keep_manifest(self, manifest: Manifest) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with fetch_lock(self._directory / MANIFEST_NAME):
                commit_manifest(self._directory, manifest)
        except OSError:
            # The next load reads it from the store again.
            return

    def _note(self, name: str, why: MidwatchError) -> None:
        """Remember a copy that was bad; one that this node never had is nothing to report."""
        if why.code not in _ABSENT:
            self._repaired.append((name, str(why)))
