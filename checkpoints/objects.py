"""What is asked of a durable store: whole files in, ranges out, a commit that only one can make.

The same few verbs over any S3-compatible service (objects_s3.py) and over a path that all nodes
share (objects_folder.py). An object is visible only when it is whole. What a foreign system says is
translated here into Retryable and Fatal with codes of ours; nothing above sees its errors.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

from ..logbook.errors import ConfigError, IntegrityError
from ..logbook.tiers import Storage
from .manifest import FileEntry
from .retrying import Bandwidth

MIB = 1 << 20
S3_SCHEME = "s3://"


class StoredObject(msgspec.Struct, frozen=True):
    """An object as a listing shows it. modified_s: since the epoch, by the store's clock."""

    key: str
    bytes: int
    modified_s: float


class Unfinished(msgspec.Struct, frozen=True):
    """An upload that was begun and neither finished nor given up."""

    key: str
    id: str
    begun_s: float


class ObjectStore(Protocol):
    """Keys are relative to the URL that the store was opened with, parts separated by "/".

    Every call may be repeated without harm, from any process, and raises Retryable or Fatal:
    [store-unreachable], [store-busy], [store-error], [store-denied], [bucket-missing],
    [store-clock-skew], [credentials-expired], [credentials-missing], [store-full].
    """

    def has(self, key: str, entry: FileEntry) -> bool:
        """Whether the object is there with the size and, as the store noted it, the SHA-256."""
        ...

    def put_file(self, key: str, path: Path, entry: FileEntry) -> int:
        """Store a file if its bytes are still those of entry; return how many had to be sent.

        An upload of the same file that was cut short is taken up where it stopped.
        Raises: IntegrityError[shard-missing], [shard-size], [shard-checksum], [shard-unreadable]
            of the local file; nothing is visible then.
        """
        ...

    def put_new(self, key: str, data: bytes) -> bool:
        """Store a small object unless there is one already; return whether it was stored.

        Of any number of callers exactly one gets True, unless its answer is lost on the way.
        """
        ...

    def read(self, key: str) -> bytes | None:
        """Return a small object whole, None when there is none."""
        ...

    def read_range(self, key: str, first: int, count: int) -> bytes:
        """Return exactly count bytes of an object.

        Raises: IntegrityError[object-missing]; IntegrityError[object-size] when it ends too soon.
        """
        ...

    def listing(self, prefix: str) -> Sequence[StoredObject]:
        """Return every object whose key begins with prefix, in order of their keys."""
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are not there do not matter."""
        ...

    def unfinished(self, prefix: str) -> Sequence[Unfinished]:
        """Return the uploads under a prefix that nobody has finished."""
        ...

    def abort(self, upload: Unfinished) -> None:
        """Give an upload up and free what it holds."""
        ...


def open_store(storage: Storage) -> ObjectStore:
    """Return the store that a spec names; nothing is connected before the first call.

    Raises: ConfigError[store-url].
    """
    check_url(storage.url)
    bandwidth = bandwidth_of(storage)
    if storage.url.startswith(S3_SCHEME):
        from .objects_s3 import S3Store

        return S3Store(storage, bandwidth)
    from .objects_folder import FolderStore

    return FolderStore(storage.url, bandwidth)


def bandwidth_of(storage: Storage) -> Bandwidth:
    """Return what one node may send, or read back, of its checkpoints in a second."""
    limit = storage.bandwidth_mib_s
    return Bandwidth(None if limit is None else limit * MIB)


def prepare_store(url: str) -> None:
    """Make the store that a run will use, where that is ours to do: a folder, not a bucket.

    Raises: ConfigError[store-not-there].
    """
    if not url.startswith(S3_SCHEME):
        from .objects_folder import prepare_folder

        prepare_folder(url)


def check_url(url: str) -> None:
    """Refuse what names no store. Raises: ConfigError[store-url]."""
    is_path = url.startswith("/")
    is_s3 = url.startswith(S3_SCHEME) and bool(urlsplit(url).hostname) and "@" not in url
    if not is_path and not is_s3:
        raise ConfigError(
            "store-url",
            f"{url!r} is neither s3://BUCKET/PREFIX nor an absolute path.",
            remedy="Name a bucket or a folder that all nodes share; credentials never belong here.",
        )


def check_endpoint(url: str) -> None:
    """Refuse what no S3 service can be asked at. Raises: ConfigError[store-endpoint]."""
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        # Brackets that hold no address.
        is_address = False
    if not is_address:
        raise ConfigError(
            "store-endpoint",
            f"{url!r} is no address of a service.",
            remedy="Write http://HOST[:PORT] or https://HOST[:PORT].",
        )


def verified_pieces(path: Path, entry: FileEntry, piece_bytes: int) -> Iterator[bytes]:
    """Yield a file in pieces; end with an error unless all of them together were those of entry.

    Whoever sends them makes them visible only after the last one, so a file that has rotted on the
    disk never becomes an object.
    Raises: IntegrityError[shard-missing], [shard-size], [shard-checksum], [shard-unreadable].
    """
    digest = hashlib.sha256()
    total = 0
    try:
        with path.open("rb", buffering=0) as file:
            while total < entry.bytes:
                piece = _read_fully(file.fileno(), min(piece_bytes, entry.bytes - total))
                if not piece:
                    break
                digest.update(piece)
                total += len(piece)
                yield piece
            size = os.fstat(file.fileno()).st_size
    except (FileNotFoundError, NotADirectoryError) as error:
        raise IntegrityError("shard-missing", f"{path} is missing.") from error
    except OSError as error:
        raise IntegrityError("shard-unreadable", f"{path} cannot be read: {error}.") from error
    if size != entry.bytes or total != entry.bytes:
        raise IntegrityError(
            "shard-size", f"{path} has {size} bytes, its manifest says {entry.bytes}."
        )
    if digest.hexdigest() != entry.sha256:
        raise IntegrityError(
            "shard-checksum",
            f"{path} has SHA-256 {digest.hexdigest()[:16]}..., "
            f"its manifest says {entry.sha256[:16]}...",
        )


def _read_fully(fd: int, count: int) -> bytes:
    pieces = []
    while count and (piece := os.read(fd, count)):
        pieces.append(piece)
        count -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
