"""The durable store of one run as a CheckpointStore: for people and tools, away from any node."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from msgspec.structs import replace

from ..logbook.errors import IntegrityError, MidwatchError
from ..logbook.tiers import Storage
from .fetch import Fetcher
from .manifest import FileEntry, Manifest, checkpoint_dir
from .part_check import Bad, check_stored
from .store import Broken, Listing
from .tiered import TieredSource, Tiers

PATIENCE_S = 5.0
"""A person waits for an answer; a run would rather wait for its store."""


class RemoteStore:
    """What was uploaded. storage.local_root is of no account: nothing is kept here."""

    def __init__(self, storage: Storage, run: str) -> None:
        """Raises: ConfigError for an address that cannot be one."""
        self._storage = storage
        self._run = run
        self._tiers = Tiers(storage, run, patience_s=PATIENCE_S)
        self._remote = self._tiers.remote

    def listing(self) -> Listing:
        """Return everything committed. Raises: errors of the store when it does not answer."""
        committed: list[Manifest] = []
        broken: list[Broken] = []
        for name in self._tiers.ask(lambda _: self._remote.committed()):
            try:
                committed.append(self.manifest(name))
            except IntegrityError as error:
                broken.append(Broken(name, error.code, error.message))
        committed.sort(key=lambda m: (m.step, m.attempt))
        return Listing(tuple(committed), tuple(broken))

    def manifest(self, checkpoint: str) -> Manifest:
        """Return one manifest. Raises: IntegrityError; errors of the store."""
        found = self._tiers.ask(lambda _: self._remote.manifest(checkpoint))
        if found is None:
            raise IntegrityError(
                "manifest-missing",
                f"{checkpoint} is not in the store: it was never uploaded whole, or was deleted.",
                remedy="`midwatch checkpoints list` shows where each checkpoint lies.",
            )
        return found

    def verify(self, checkpoint: str, deep: bool = True) -> Manifest:
        """Read one checkpoint back, file by file, keeping nothing. Raises: as manifest."""
        manifest = self.manifest(checkpoint)
        names = [entry.name for entry in manifest.files]
        # What its bytes are is read below; that they are all there costs nothing to see.
        missing = self._tiers.ask(lambda _: self._remote.missing(manifest, known=names))
        if missing:
            raise IntegrityError(
                "shard-missing",
                f"{checkpoint} has no whole {missing[0]} in the store.",
                remedy="Load another checkpoint.",
            )
        for entry in manifest.files if deep else ():
            self._tiers.ask(partial(self._read_back, checkpoint, entry))
        return manifest

    def check(self, checkpoint: str, names: Collection[str] | None = None) -> Bad:
        """Read those files of a checkpoint back, None: all; return what is not sound, and why.

        Raises: as manifest.
        """
        manifest = self.manifest(checkpoint)
        bad: list[tuple[str, str]] = []
        for entry in manifest.files:
            if names is None or entry.name in names:
                bad += self._tiers.ask(partial(self._check_file, manifest, entry.name))
        return tuple(bad)

    def _check_file(self, manifest: Manifest, name: str, _: Fetcher) -> Bad:
        return check_stored(self._remote, manifest, (name,))[1]

    def _read_back(self, checkpoint: str, entry: FileEntry, fetcher: Fetcher) -> None:
        fetcher.to_memory(self._remote.key(checkpoint, entry.name), entry)

    @contextmanager
    def at_hand(self, checkpoint: str, beside: Path) -> Iterator[Path]:
        """Give the folder of a whole checkpoint, fetched for the time. Raises: as verify; OSError.

        It stands where the caller writes anyway: the run folder is not a reader's to fill.
        """
        beside.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{beside.name}.fetched-", dir=beside.parent) as folder:
            storage = replace(self._storage, local_root=folder)
            tiers = Tiers(storage, self._run, self._remote.store, PATIENCE_S)
            source = TieredSource(tiers, checkpoint)
            for entry in source.manifest.files:
                source.read(entry.name)
            yield checkpoint_dir(tiers.root, checkpoint)

    def delete(self, checkpoint: str) -> None:
        """Remove a checkpoint for good. Raises: MidwatchError."""
        self._remote.delete(checkpoint)


def listing_or_none(store: RemoteStore) -> tuple[Listing | None, str]:
    """Return what a store holds, or why it does not say."""
    try:
        return store.listing(), ""
    except MidwatchError as error:
        return None, str(error)
