"""The checkpoints of one run in the durable store: committed, unfinished, or deleted for good.

    RUN/step-00000120.a0003/manifest.json    written last, by one writer only: the commit
    RUN/step-00000120.a0003/__0_0.distcp     and the other files that the manifest names
    RUN/deleted/step-00000120.a0003.RUN_ID   a mark, written before anything of it is deleted
    RUN/.preflight/NODE-...                  for a moment, while a node tries the store

The mark outlives the checkpoint: a node that was away while it was deleted may still hold its part,
and must not bring it back. A manifest carries the id of its run, so that another run of the same
name never takes one for its own.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Sequence

import msgspec

from ..logbook.errors import Fatal, IntegrityError
from .manifest import MANIFEST_NAME, FileEntry, Manifest, decode, encode, parse_checkpoint_id
from .objects import MIB, ObjectStore, StoredObject
from .retrying import Bandwidth

ORPHAN_S = 24 * 3600.0
"""What nobody has added to for so long will never be finished."""
TRIALS = ".preflight"
"""Within the run's own folder, so that the rights which its checkpoints need are enough."""
_DELETED = "deleted"
_RANGE_BYTES = 16 * MIB


class Swept(msgspec.Struct, frozen=True):
    """What a sweep removed: checkpoints that were marked, that never finished, and uploads."""

    deleted: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()
    uploads: tuple[str, ...] = ()


class RunObjects:
    """One run's share of a store. run_id "" accepts the manifests of any run of that name.

    reads: how fast files are read back.
    """

    def __init__(
        self, store: ObjectStore, run: str, run_id: str = "", reads: Bandwidth | None = None
    ) -> None:
        self.store = store
        self._reads = reads or Bandwidth(None)
        self._run = run
        self._run_id = run_id

    def key(self, checkpoint: str, name: str) -> str:
        """Return the key of one file of a checkpoint."""
        return f"{self._run}/{checkpoint}/{name}"

    # --- one checkpoint --------------------------------------------------------------------------

    def manifest(self, checkpoint: str) -> Manifest | None:
        """Return the manifest of a committed checkpoint, None while it is not committed.

        Raises: IntegrityError[manifest-corrupt], [manifest-format], [other-run].
        """
        key = self.key(checkpoint, MANIFEST_NAME)
        data = self.store.read(key)
        if data is None:
            return None
        manifest = decode(data)
        if manifest.id != checkpoint:
            raise IntegrityError("manifest-corrupt", f"{key} is of checkpoint {manifest.id}.")
        check_run(manifest, self._run_id, key)
        return manifest

    def missing(self, manifest: Manifest, known: Collection[str] = ()) -> tuple[str, ...]:
        """Return the files of a checkpoint that are not in the store.

        Only once every size is right is each file asked for by its SHA-256, those in known
        excepted: a dead run of the same name may have left files of the same size.
        """
        prefix = self.key(manifest.id, "")
        sizes = {o.key.removeprefix(prefix): o.bytes for o in self.store.listing(prefix)}
        absent = tuple(e.name for e in manifest.files if sizes.get(e.name) != e.bytes)
        return absent or tuple(
            e.name
            for e in manifest.files
            if e.name not in known and not self.store.has(prefix + e.name, e)
        )

    def read_back(self, checkpoint: str, entry: FileEntry) -> None:
        """Read one file of a checkpoint in the store and keep nothing of it.

        Raises: IntegrityError[object-missing], [object-size], [shard-checksum].
        """
        key = self.key(checkpoint, entry.name)
        digest = hashlib.sha256()
        for first in range(0, entry.bytes, _RANGE_BYTES):
            count = min(_RANGE_BYTES, entry.bytes - first)
            self._reads.take(count)
            digest.update(self.store.read_range(key, first, count))
        if digest.hexdigest() != entry.sha256:
            raise IntegrityError(
                "shard-checksum",
                f"{key} in the store has SHA-256 {digest.hexdigest()[:16]}..., "
                f"its manifest says {entry.sha256[:16]}...",
            )

    def commit(self, manifest: Manifest) -> bool:
        """Make the checkpoint exist in the store; False when it was deleted meanwhile.

        Call only when nothing is missing; of several nodes that do so one writes the manifest.
        Raises: as is_committed.
        """
        if not self.store.put_new(self.key(manifest.id, MANIFEST_NAME), encode(manifest)):
            return self.is_committed(manifest)
        if not self.is_deleted(manifest.id):
            return True
        # It was deleted while it was being committed.
        self.delete(manifest.id)
        return False

    def is_committed(self, manifest: Manifest) -> bool:
        """Whether this very checkpoint is in the store.

        Raises: Fatal[store-taken] when another checkpoint of that name is there; IntegrityError as
            manifest.
        """
        there = self.manifest(manifest.id)
        if there is not None and encode(there) != encode(manifest):
            raise Fatal(
                "store-taken",
                f"another checkpoint is in the store as {self.key(manifest.id, '')}.",
                remedy="Give the run another name or another checkpoints.store.url.",
            )
        return there is not None

    def is_deleted(self, checkpoint: str) -> bool:
        """Whether the checkpoint was deleted, or is being deleted."""
        return self.store.read(self._mark(checkpoint)) is not None

    def delete(self, checkpoint: str) -> None:
        """Remove a checkpoint: the mark first, then its commit, then its files.

        A crash anywhere leaves it whole and unmarked, or marked for the next sweep.
        Raises: IntegrityError[other-run] when it is not of this run: nothing is touched.
        """
        try:
            self.manifest(checkpoint)
        except IntegrityError as error:
            if error.code == "other-run":
                raise
        self.store.put_new(self._mark(checkpoint), b"")
        self._remove(checkpoint)

    def _remove(self, checkpoint: str) -> None:
        self.store.delete([self.key(checkpoint, MANIFEST_NAME)])
        keys = [found.key for found in self.store.listing(self.key(checkpoint, ""))]
        if keys:
            self.store.delete(keys)
        with contextlib.suppress(Fatal):
            # Without the right to it time sweeps them up, or the bucket's own rule.
            self.abort_uploads(checkpoint, ("",))

    def abort_uploads(self, checkpoint: str, names: Collection[str]) -> None:
        """Give up what was begun of files of a checkpoint that have no use for it any more."""
        wanted = tuple(self.key(checkpoint, name) for name in names)
        for upload in self.store.unfinished(self.key(checkpoint, "")):
            if upload.key.startswith(wanted):
                self.store.abort(upload)

    def _mark(self, checkpoint: str) -> str:
        return f"{self._run}/{_DELETED}/{checkpoint}.{self._run_id}"

    # --- all of them -----------------------------------------------------------------------------

    def committed(self) -> tuple[str, ...]:
        """Return the ids of all committed checkpoints, by step."""
        found = self._by_checkpoint(self.store.listing(f"{self._run}/"))
        return tuple(name for name, objects in found.items() if _has_manifest(objects))

    def sweep(self, attempt: int, now_s: float) -> Swept:
        """Finish what was left half done: deletions, saves of dead attempts, uploads cut short.

        An upload that others may still finish is left alone: only what an attempt older than
        this one left, and nobody has added to for ORPHAN_S, goes. What another run of this name
        has committed stays, even where one of ours was deleted.
        """
        objects = self.store.listing(f"{self._run}/")
        marked = {o.key for o in objects if o.key.startswith(f"{self._run}/{_DELETED}/")}
        deleted: list[str] = []
        unfinished: list[str] = []
        for name, found in self._by_checkpoint(objects).items():
            parsed = parse_checkpoint_id(name)
            if self._mark(name) in marked:
                deleted += self._deleted(name)
            elif parsed is not None and parsed[1] < attempt and _is_orphan(found, now_s):
                unfinished += self._deleted(name)
        trials = [o for o in objects if o.key.startswith(f"{self._run}/{TRIALS}/")]
        if old := [o.key for o in trials if o.modified_s < now_s - ORPHAN_S]:
            # Whoever put them there was killed before it could remove them.
            self.store.delete(old)
        return Swept(tuple(deleted), tuple(unfinished), self.abort_orphans(now_s))

    def _deleted(self, name: str) -> tuple[str, ...]:
        """Delete a checkpoint and return its id, or nothing when it is another run's."""
        try:
            self.delete(name)
        except IntegrityError:
            return ()
        return (name,)

    def abort_orphans(self, now_s: float) -> tuple[str, ...]:
        """Give up uploads of this run that were begun more than ORPHAN_S ago; return their keys."""
        old = [u for u in self.store.unfinished(f"{self._run}/") if u.begun_s < now_s - ORPHAN_S]
        for upload in old:
            self.store.abort(upload)
        return tuple(upload.key for upload in old)

    def _by_checkpoint(self, objects: Sequence[StoredObject]) -> dict[str, list[StoredObject]]:
        found: dict[str, list[StoredObject]] = {}
        for entry in objects:
            name = entry.key.removeprefix(f"{self._run}/").partition("/")[0]
            if parse_checkpoint_id(name) is not None:
                found.setdefault(name, []).append(entry)
        return found


def check_run(manifest: Manifest, run_id: str, where: str) -> None:
    """Refuse the checkpoint of another run. Raises: IntegrityError[other-run]."""
    if run_id and manifest.run_id != run_id:
        raise IntegrityError(
            "other-run",
            f"{where} was saved by another run named {manifest.run} ({manifest.run_id or 'old'}), "
            f"this one is {run_id}.",
            remedy="Give the run another name or another checkpoints.store.url.",
        )


def _is_orphan(objects: Sequence[StoredObject], now_s: float) -> bool:
    newest_s = max(entry.modified_s for entry in objects)
    return not _has_manifest(objects) and newest_s < now_s - ORPHAN_S


def _has_manifest(objects: Sequence[StoredObject]) -> bool:
    return any(entry.key.endswith(f"/{MANIFEST_NAME}") for entry in objects)
