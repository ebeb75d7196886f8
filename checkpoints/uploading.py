"""Bring what a node has saved to the durable store, newest first, for as long as it takes.

Works from what lies on the disk and in the store alone, so a crash at any point costs only what was
on its way. Every node sends the files that it has; whoever finds that nothing is missing any more
writes the manifest, which is the commit. Local parts go only once the store has the checkpoint.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Protocol

from ..logbook.errors import IntegrityError, MidwatchError, Retryable
from .manifest import (
    CHECKPOINTS_DIR,
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    checkpoint_dir,
    parse_checkpoint_id,
    read_manifest,
)
from .remote import RunObjects, check_run
from .retrying import Backoff
from .saving import DESCRIPTION_NAMES
from .store import LocalStore
from .upload_part import OTHERS_MAX_S, RETRY_FIRST_S, Troubles, UploadPart

OUTAGES = frozenset(
    {
        "store-unreachable",
        "store-busy",
        "store-full",
        "store-clock-skew",
        "credentials-expired",
        "credentials-missing",
        "bucket-missing",
    }
)
"""What says that the store takes nothing at all; anything else is about one checkpoint."""
ORPHANS_EVERY_S = 3600.0


class Witness(Protocol):
    """Who is told what comes of it; called on the uploader's own thread."""

    def part_found(self, manifest: Manifest, held: tuple[str, ...]) -> None:
        """A part of a checkpoint lies on this node; held: which of its files."""
        ...

    def uploaded(self, manifest: Manifest, upload_s: float) -> None:
        """The checkpoint is in the store, upload_s after its part was found; told by every node."""
        ...

    def trouble(self, code: str, message: str, since_s: float) -> None:
        """Uploads do not get on since then (seconds since the epoch); told again now and then."""
        ...


class Uploader:
    """Uploads of one node. Call turn() again and again.

    retry_max_s: longest wait after a failure. keep_local: uploaded parts kept on the disk.
    """

    def __init__(
        self,
        root: Path,
        remote: RunObjects,
        witness: Witness,
        *,
        run_id: str = "",
        keep_local: int = 2,
        retry_max_s: float = 60.0,
    ) -> None:
        self._root = root
        self._remote = remote
        self._witness = witness
        self._run_id = run_id
        self._keep_local = keep_local
        self._retry_max_s = retry_max_s
        self._backoff = Backoff(RETRY_FIRST_S, retry_max_s)
        self._parts: dict[str, UploadPart] = {}
        self._listed: set[str] = set()
        self._gave_way = False
        self._is_firm = False
        self._refused: set[str] = set()
        self._troubles = Troubles(witness.trouble)
        self._outage = ""
        self._orphans_s = 0.0

    def turn(self) -> float:
        """Do what can be done now; return after how many seconds there may be more to do.

        Never raises for anything a disk or a store does: that is told to the witness. One
        checkpoint that cannot be brought waits alone: neither older ones nor cleaning wait with it.
        """
        self._outage = ""
        # What overtook is not overtaken itself: in a stream of newcomers none would arrive.
        self._is_firm = self._gave_way
        try:
            self._look()
            self._abort_orphans()
            wait_s = self._try_all()
            self._backoff.reset()
        except (MidwatchError, OSError) as error:
            wait_s = self._cut_off(error)
        for part in self._newest_first():
            self._clean(part)
        self._let_go()
        self._troubles.keep({part.trouble for part in self._parts.values()} | {self._outage})
        self._gave_way = self._has_newcomer and not self.is_cut_off
        return 0.0 if self._gave_way else wait_s

    @property
    def is_well(self) -> bool:
        """Whether nothing is in trouble after the last turn."""
        return not self.is_cut_off and not any(part.trouble for part in self._parts.values())

    @property
    def is_cut_off(self) -> bool:
        """Whether the last turn ended because there was no way to go on with anything."""
        return bool(self._outage)

    @property
    def is_idle(self) -> bool:
        """Whether all that lies here is in the store, or never will be."""
        return all(part.is_stored or part.is_spoiled for part in self._parts.values())

    # --- what lies here --------------------------------------------------------------------------

    def _look(self) -> None:
        folder = self._root / CHECKPOINTS_DIR
        try:
            names = {name for name in os.listdir(folder) if parse_checkpoint_id(name)}
        except FileNotFoundError:
            names = set()
        for name in sorted(names):
            is_known = name in self._parts or name in self._refused
            if not is_known and (folder / name / MANIFEST_NAME).exists():
                self._meet(name)
        gone = [n for n in self._parts if not (folder / n / MANIFEST_NAME).exists()]
        for name in gone:
            del self._parts[name]

    def _meet(self, name: str) -> None:
        try:
            manifest = read_manifest(checkpoint_dir(self._root, name))
            check_run(manifest, self._run_id, name)
        except IntegrityError as error:
            # Of another run, or rotten: nothing that may be called a checkpoint of this run.
            self._refused.add(name)
            self._troubles.tell(error.code, str(error))
            return
        self._parts[name] = UploadPart(manifest, self._retry_max_s)
        self._witness.part_found(manifest, self._files(manifest))

    def _files(self, manifest: Manifest) -> tuple[str, ...]:
        return tuple(entry.name for entry in manifest.files if self._path(manifest, entry).exists())

    def _path(self, manifest: Manifest, entry: FileEntry) -> Path:
        return checkpoint_dir(self._root, manifest.id) / entry.name

    def _newest_first(self) -> list[UploadPart]:
        parts = self._parts.values()
        return sorted(parts, key=lambda p: (p.manifest.step, p.manifest.attempt), reverse=True)

    # --- to the store ----------------------------------------------------------------------------

    def _try_all(self) -> float:
        """Do what is due, newest first, until another comes; return how long to wait."""
        parts = self._newest_first()
        self._listed = {part.manifest.id for part in parts}
        wait_s = OTHERS_MAX_S
        for part in parts:
            wait_s = min(wait_s, self._try(part))
            if self._is_overtaken:
                break
        return wait_s

    @property
    def _is_overtaken(self) -> bool:
        """Whether what is being done gives way now, so that a newcomer goes first."""
        return self._has_newcomer and not self._is_firm

    @property
    def _has_newcomer(self) -> bool:
        """Whether a checkpoint has been found that the list of this turn has not."""
        now_s = time.monotonic()
        return any(p.is_due(now_s) for name, p in self._parts.items() if name not in self._listed)

    def _try(self, part: UploadPart) -> float:
        """Do what is due for one part; return after how many seconds to come back to it.

        Raises: what says that the others will fare no better.
        """
        now_s = time.monotonic()
        if not part.is_due(now_s):
            return max(part.look_s - now_s, 0.0) or OTHERS_MAX_S
        try:
            wait_s = self._bring(part)
        except (MidwatchError, OSError) as error:
            if _code_of(error) in OUTAGES:
                raise
            return self._put_off(part, error)
        part.trouble = ""
        part.retries.reset()
        return wait_s

    def _bring(self, part: UploadPart) -> float:
        name = part.manifest.id
        if self._remote.is_deleted(name):
            LocalStore(self._root).delete(name)
            return 0.0
        if self._remote.is_committed(part.manifest):
            return self._stored(part)
        if not part.is_sent and not self._send(part):
            return 0.0
        return self._finish(part)

    def _stored(self, part: UploadPart) -> float:
        # Told by each node: whoever wrote the manifest may have died before it could say so.
        part.is_stored = True
        self._clean(part)
        self._witness.uploaded(part.manifest, time.monotonic() - part.found_s)
        return 0.0

    def _send(self, part: UploadPart) -> bool:
        """Send this node's files; False when a newer checkpoint came first or files are no good."""
        manifest = part.manifest
        # What every node has goes last: by then the first of them has mostly sent it.
        entries = sorted(manifest.files, key=lambda entry: entry.name in DESCRIPTION_NAMES)
        for entry in entries:
            path = self._path(manifest, entry)
            key = self._remote.key(manifest.id, entry.name)
            if not path.exists():
                continue
            if self._remote.store.has(key, entry):
                part.known.add(entry.name)
                continue
            self._look()
            if self._is_overtaken:
                return False
            try:
                self._remote.store.put_file(key, path, entry)
                part.known.add(entry.name)
            except IntegrityError as error:
                self._spoil(part, path, error)
                return False
        part.is_sent = True
        self._is_firm = False
        return True

    def _finish(self, part: UploadPart) -> float:
        """Commit the checkpoint if nothing is missing."""
        manifest = part.manifest
        missing = self._remote.missing(manifest, part.known)
        mine = set(self._files(manifest))
        if missing:
            # What somebody else has deleted from the store meanwhile is sent again.
            part.is_sent = mine.isdisjoint(missing)
            part.known.difference_update(missing)
            return part.wait(part.others)
        return self._stored(part) if self._remote.commit(manifest) else 0.0

    def _abort_orphans(self) -> None:
        """Give up what nobody will finish; the first time this shows whether the store is there."""
        if time.monotonic() < self._orphans_s:
            return
        try:
            self._remote.abort_orphans(time.time())
        except MidwatchError as error:
            if error.code in OUTAGES:
                raise
            # It is only cleaning: without the right to it, or with uploads that end meanwhile.
        self._orphans_s = time.monotonic() + ORPHANS_EVERY_S

    def _clean(self, part: UploadPart) -> None:
        """Give up uploads of this node's own files that a lost answer or a kill has left behind."""
        is_due = part.is_stored and not part.is_clean and time.monotonic() >= part.look_s
        if not is_due or self.is_cut_off:
            return
        # What describes a checkpoint may be on its way from every node.
        own = set(self._files(part.manifest)).difference(DESCRIPTION_NAMES)
        try:
            self._remote.abort_uploads(part.manifest.id, own)
            part.is_clean = True
        except MidwatchError as error:
            # Nothing is lost by it: it is tried again, and told by nobody.
            part.wait(part.retries, _delay_s(error))

    # --- what may go -----------------------------------------------------------------------------

    def _let_go(self) -> None:
        """Delete the oldest uploaded parts beyond those that are kept on the disk.

        Only once what the store has of them was read back: here may be the last sound copy.
        """
        if self.is_cut_off:
            return
        self._is_firm = self._gave_way
        stored = [p for p in self._newest_first() if p.is_stored and not p.is_spoiled]
        for part in reversed(stored[self._keep_local :]):
            if time.monotonic() < part.look_s:
                continue
            try:
                if self._is_safe(part):
                    LocalStore(self._root).delete(part.manifest.id)
                    self._parts.pop(part.manifest.id, None)
                    self._is_firm = False
            except (MidwatchError, OSError) as error:
                if _code_of(error) in OUTAGES:
                    self._cut_off(error)
                    return
                self._put_off(part, error)

    def _is_safe(self, part: UploadPart) -> bool:
        """Whether the store is known to have, sound, what lies here of a part, and its commit.

        False as well when a newer checkpoint came meanwhile, which goes first.
        """
        manifest = part.manifest
        for entry in manifest.files:
            if entry.name in part.read_back or not self._path(manifest, entry).exists():
                continue
            self._look()
            if self._is_overtaken:
                return False
            try:
                self._remote.read_back(manifest.id, entry)
                part.read_back.add(entry.name)
            except IntegrityError as error:
                if self._remote.is_deleted(manifest.id):
                    return True
                self._troubles.tell(error.code, f"the store's copy is sent again: {error}")
                if not self._mend(part, entry):
                    return False
        return self._is_still_committed(part)

    def _is_still_committed(self, part: UploadPart) -> bool:
        """Whether the commit stands; where it is lost, the part is brought to the store again."""
        manifest = part.manifest
        code = "manifest-missing"
        try:
            if self._remote.is_committed(manifest):
                return True
        except IntegrityError as error:
            # It was this checkpoint's when the part was stored, so nobody else's is replaced.
            if error.code != "manifest-corrupt":
                raise
            code = error.code
        if self._remote.is_deleted(manifest.id):
            return True
        if code == "manifest-corrupt":
            self._remote.store.delete([self._remote.key(manifest.id, MANIFEST_NAME)])
        self._troubles.tell(code, f"the commit of {manifest.id} in the store is made again.")
        part.is_stored = part.is_sent = False
        return False

    def _mend(self, part: UploadPart, entry: FileEntry) -> bool:
        """Put a file in the store once more; True when it can be read back from there."""
        path, key = self._path(part.manifest, entry), self._remote.key(part.manifest.id, entry.name)
        try:
            self._remote.store.put_file(key, path, entry)
        except IntegrityError as error:
            self._spoil(part, path, error)
            return False
        self._remote.read_back(part.manifest.id, entry)
        part.read_back.add(entry.name)
        return True

    # --- when it does not go well ----------------------------------------------------------------

    def _put_off(self, part: UploadPart, error: MidwatchError | OSError) -> float:
        """Have one part wait for a failure of its own; return for how long."""
        part.trouble = _code_of(error)
        self._troubles.tell(part.trouble, str(error))
        return part.wait(part.retries, _delay_s(error))

    def _spoil(self, part: UploadPart, path: Path, error: IntegrityError) -> None:
        """Give a part up for a file of its that is no good, unless it is being deleted."""
        if (path.parent / MANIFEST_NAME).exists():
            # The other nodes may still have sound copies of what they hold; this one has not.
            part.is_spoiled, part.trouble = True, ""
            self._troubles.tell(error.code, f"{path} cannot be uploaded: {error}")

    def _cut_off(self, error: MidwatchError | OSError) -> float:
        self._outage = _code_of(error)
        self._troubles.tell(self._outage, str(error))
        return self._backoff.next_s(_delay_s(error))


def _code_of(error: MidwatchError | OSError) -> str:
    return error.code if isinstance(error, MidwatchError) else "upload-failed"


def _delay_s(error: MidwatchError | OSError) -> float:
    return error.delay_s if isinstance(error, Retryable) else 0.0
