"""Bring what a node has saved to the durable store, newest first, for as long as it takes.

Works from what lies on the disk and in the store alone, so a crash at any point costs only what was
on its way. Every node sends the files that it has; whoever finds that nothing is missing any more
writes the manifest, which is the commit. Local parts go only once the store has the checkpoint.
"""

from __future__ import annotations

import contextlib
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

TROUBLE_EVERY_S = 300.0
"""The same trouble is told again no sooner."""
_OTHERS_FIRST_S, _OTHERS_MAX_S = 0.5, 15.0


class Witness(Protocol):
    """Who is told what comes of it; called on the uploader's own thread."""

    def part_found(self, manifest: Manifest, held: tuple[str, ...]) -> None:
        """A part of a checkpoint lies on this node; held: which of its files."""
        ...

    def uploaded(self, manifest: Manifest, upload_s: float) -> None:
        """This node wrote the manifest: the checkpoint is in the store, upload_s after its save."""
        ...

    def trouble(self, code: str, message: str, since_s: float) -> None:
        """Uploads do not get on since then (seconds since the epoch); told again now and then."""
        ...


class _Part:
    """A checkpoint of which this node has files, on its way to the store."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.found_s = time.monotonic()
        self.known: set[str] = set()
        self.is_sent = False
        self.is_stored = False
        self.is_spoiled = False
        self.look_s = 0.0
        self.backoff = Backoff(_OTHERS_FIRST_S, _OTHERS_MAX_S)


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
        self._backoff = Backoff(0.5, retry_max_s)
        self._parts: dict[str, _Part] = {}
        self._refused: set[str] = set()
        self._trouble: tuple[str, float, float] | None = None

    def turn(self) -> float:
        """Do what can be done now; return after how many seconds there may be more to do.

        Never raises for anything a disk or a store does: that is told to the witness.
        """
        try:
            self._look()
            wait_s = min(map(self._bring, self._newest_first()), default=_OTHERS_MAX_S)
            self._let_go()
        except (MidwatchError, OSError) as error:
            return self._failed(error)
        self._trouble = None
        self._backoff.reset()
        return wait_s

    @property
    def is_well(self) -> bool:
        """Whether the last turn met no trouble."""
        return self._trouble is None

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
            self._tell(error.code, str(error))
            return
        self._parts[name] = _Part(manifest)
        self._witness.part_found(manifest, self._files(manifest))

    def _files(self, manifest: Manifest) -> tuple[str, ...]:
        return tuple(entry.name for entry in manifest.files if self._path(manifest, entry).exists())

    def _path(self, manifest: Manifest, entry: FileEntry) -> Path:
        return checkpoint_dir(self._root, manifest.id) / entry.name

    def _newest_first(self) -> list[_Part]:
        parts = self._parts.values()
        return sorted(parts, key=lambda p: (p.manifest.step, p.manifest.attempt), reverse=True)

    # --- to the store ----------------------------------------------------------------------------

    def _bring(self, part: _Part) -> float:
        """Do what is due for one part; return after how many seconds to come back to it."""
        now_s = time.monotonic()
        if part.is_stored or part.is_spoiled:
            return _OTHERS_MAX_S
        if now_s < part.look_s:
            return part.look_s - now_s
        name = part.manifest.id
        if self._remote.is_deleted(name):
            LocalStore(self._root).delete(name)
            return 0.0
        if not part.is_sent:
            if self._remote.manifest(name) is not None:
                part.is_stored = True
                return 0.0
            if not self._send(part):
                return 0.0
        return self._finish(part)

    def _send(self, part: _Part) -> bool:
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
            if self._is_outdated(manifest):
                return False
            try:
                self._remote.store.put_file(key, path, entry)
                part.known.add(entry.name)
            except IntegrityError as error:
                if not (path.parent / MANIFEST_NAME).exists():
                    return False
                # The other nodes may still have sound copies of what they hold; this one has not.
                part.is_spoiled = True
                self._tell(error.code, f"{path} cannot be uploaded: {error}")
                return False
        part.is_sent = True
        return True

    def _is_outdated(self, manifest: Manifest) -> bool:
        known = len(self._parts)
        self._look()
        newest = self._newest_first()[0].manifest if self._parts else manifest
        return len(self._parts) != known and newest.id != manifest.id

    def _finish(self, part: _Part) -> float:
        """Commit the checkpoint if nothing is missing, or see whether another node has."""
        manifest = part.manifest
        missing = self._remote.missing(manifest, part.known)
        mine = set(self._files(manifest))
        if missing:
            # What somebody else has deleted from the store meanwhile is sent again.
            part.is_sent = mine.isdisjoint(missing)
            part.known.difference_update(missing)
            wait_s = part.backoff.next_s()
            part.look_s = time.monotonic() + wait_s
            return wait_s
        is_mine = self._remote.commit(manifest)
        part.is_stored = True
        if is_mine:
            self._witness.uploaded(manifest, time.monotonic() - part.found_s)
        return 0.0

    # --- what may go -----------------------------------------------------------------------------

    def _let_go(self) -> None:
        """Delete the oldest uploaded parts beyond those that are kept on the disk."""
        stored = [part for part in self._newest_first() if part.is_stored]
        for part in stored[self._keep_local :]:
            with contextlib.suppress(OSError):
                LocalStore(self._root).delete(part.manifest.id)
                del self._parts[part.manifest.id]

    # --- when it does not go well ----------------------------------------------------------------

    def _failed(self, error: MidwatchError | OSError) -> float:
        code = error.code if isinstance(error, MidwatchError) else "upload-failed"
        self._tell(code, str(error))
        return self._backoff.next_s(error.delay_s if isinstance(error, Retryable) else 0.0)

    def _tell(self, code: str, message: str) -> None:
        now_s = time.time()
        last_code, since_s, told_s = self._trouble or ("", now_s, 0.0)
        if code != last_code or now_s - told_s > TROUBLE_EVERY_S:
            told_s = now_s
            self._witness.trouble(code, message, since_s)
        self._trouble = (code, since_s, told_s)
