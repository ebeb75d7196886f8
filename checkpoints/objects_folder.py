"""The durable store in a folder that all nodes share: what S3 promises, by rename and link.

Beside a file stands a note of its SHA-256, as S3 keeps one in an object's metadata: files of one
size are told apart without reading them over the network. A mark in the root tells the store from
the empty folder that is there while it is not mounted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..logbook.errors import ConfigError, Fatal, IntegrityError, MidwatchError, Retryable
from .manifest import FileEntry
from .objects import StoredObject, Unfinished, verified_pieces
from .retrying import Bandwidth
from .shardfile import BLOCK_BYTES, RETRY_DELAY_S, sync_directory

MARK = ".midwatch-store"
TEMPORARY = ".unfinished"
_NOTE = ".sha256"


def prepare_folder(root: str | Path) -> None:
    """Make the folder of a store and mark it; what it stands in must be there.

    Done once, when a run is submitted: later only a mount brings the folder back.
    Raises: ConfigError[store-not-there].
    """
    try:
        Path(root).mkdir(exist_ok=True)
        Path(root, MARK).touch()
    except OSError as error:
        raise ConfigError(
            "store-not-there",
            f"checkpoints.store.url {root} cannot be made a store: {error.strerror or error}.",
            remedy="Mount it where the run is started, writable, and make the folders above it.",
        ) from error


class FolderStore:
    """Objects are files under root; while one is being written it has another name."""

    def __init__(self, root: str | Path, bandwidth: Bandwidth | None = None) -> None:
        self._root = Path(root)
        self._bandwidth = bandwidth or Bandwidth(None)

    def has(self, key: str, entry: FileEntry) -> bool:
        with _translated(f"look at {key} in {self._root}"):
            try:
                is_size_right = (self._root / key).stat().st_size == entry.bytes
                return is_size_right and _note_of(self._root / key).read_text() == entry.sha256
            except (FileNotFoundError, NotADirectoryError):
                self._require_mark()
                return False

    def put_file(self, key: str, path: Path, entry: FileEntry) -> int:
        target = self._root / key
        with _translated(f"write {target}"), self._temporary(target) as (temporary, fd):
            # Its own errors are about the local file and pass through as they are.
            for piece in verified_pieces(path, entry, BLOCK_BYTES):
                self._bandwidth.take(len(piece))
                _write_fully(fd, piece)
            os.fsync(fd)
            # While the file changes there is no note: none may ever speak of another's bytes.
            _note_of(target).unlink(missing_ok=True)
            os.rename(temporary, target)
            sync_directory(target.parent)
            self._put_note(target, entry)
        return entry.bytes

    def _put_note(self, target: Path, entry: FileEntry) -> None:
        note = _note_of(target)
        with self._temporary(note) as (temporary, fd):
            _write_fully(fd, entry.sha256.encode())
            os.fsync(fd)
            os.rename(temporary, note)
            sync_directory(note.parent)

    def put_new(self, key: str, data: bytes) -> bool:
        target = self._root / key
        with _translated(f"write {target}"), self._temporary(target) as (temporary, fd):
            _write_fully(fd, data)
            os.fsync(fd)
            try:
                # Unlike a rename, a link never takes the place of what is there.
                os.link(temporary, target)
            except FileExistsError:
                return False
            sync_directory(target.parent)
        return True

    def read(self, key: str) -> bytes | None:
        with _translated(f"read {key} in {self._root}"):
            try:
                return (self._root / key).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                self._require_mark()
                return None

    def read_range(self, key: str, first: int, count: int) -> bytes:
        path = self._root / key
        with _translated(f"read {path}"):
            try:
                with path.open("rb", buffering=0) as file:
                    data = os.pread(file.fileno(), count, first)
                    while len(data) < count:
                        more = os.pread(file.fileno(), count - len(data), first + len(data))
                        if not more:
                            break
                        data += more
            except (FileNotFoundError, NotADirectoryError) as error:
                self._require_mark()
                raise IntegrityError("object-missing", f"{path} is missing.") from error
        if len(data) != count:
            raise IntegrityError("object-size", f"{path} ends before byte {first + count}.")
        return data

    def listing(self, prefix: str) -> Sequence[StoredObject]:
        return [
            StoredObject(key, size, modified_s)
            for key, size, modified_s in self._walk(prefix)
            if key != MARK and not key.endswith((TEMPORARY, _NOTE))
        ]

    def delete(self, keys: Sequence[str]) -> None:
        folders = set()
        with _translated(f"delete from {self._root}"):
            self._require_mark()
            for key in keys:
                path = self._root / key
                _note_of(path).unlink(missing_ok=True)
                path.unlink(missing_ok=True)
                folders.add(path.parent)
            for folder in sorted(folders):
                with contextlib.suppress(OSError):
                    sync_directory(folder)
                    # Only an empty one goes.
                    folder.rmdir()

    def unfinished(self, prefix: str) -> Sequence[Unfinished]:
        return [
            Unfinished(key, key, modified_s)
            for key, _, modified_s in self._walk(prefix)
            if key.endswith(TEMPORARY)
        ]

    def abort(self, upload: Unfinished) -> None:
        self.delete([upload.id])

    @contextlib.contextmanager
    def _temporary(self, target: Path) -> Iterator[tuple[Path, int]]:
        self._require_mark()
        self._make_folder(target.parent)
        temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex}{TEMPORARY}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            yield temporary, fd
        finally:
            os.close(fd)
            temporary.unlink(missing_ok=True)

    def _make_folder(self, folder: Path) -> None:
        # Never the root: a store that has just been unmounted must not grow on the disk below.
        if folder != self._root:
            self._make_folder(folder.parent)
            folder.mkdir(exist_ok=True)

    def _walk(self, prefix: str) -> list[tuple[str, int, float]]:
        found = []
        with _translated(f"list {self._root}"):
            top = self._root / prefix.rpartition("/")[0]
            for folder, _, names in os.walk(top, onerror=_unless_gone):
                for name in names:
                    path = Path(folder, name)
                    key = path.relative_to(self._root).as_posix()
                    if not key.startswith(prefix):
                        continue
                    # Files may vanish while others delete or finish them.
                    with contextlib.suppress(FileNotFoundError):
                        status = path.stat()
                        found.append((key, status.st_size, status.st_mtime))
            if not found:
                self._require_mark()
        return sorted(found)

    def _require_mark(self) -> None:
        """Tell what is not there from a store that is not: asked before a write, after a miss."""
        if not (self._root / MARK).exists():
            raise Retryable(
                "store-unreachable",
                f"{self._root} has no {MARK}: the store is not mounted here.",
                delay_s=1.0,
                remedy=f"Mount it. If this is the right folder, `touch {self._root / MARK}`.",
            )


def _note_of(path: Path) -> Path:
    return path.with_name(path.name + _NOTE)


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _write_fully(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _store_error(error, what) from error


def _store_error(error: OSError, what: str) -> MidwatchError:
    detail = f"cannot {what}: {error.strerror or error}."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Retryable(
            "store-full", detail, delay_s=RETRY_DELAY_S, remedy="Free space in the store."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Fatal("store-denied", detail, remedy="Make the store's folder writable by the run.")
    return Retryable(
        "store-unreachable", detail, delay_s=1.0, remedy="Check that the store is mounted."
    )
