"""One file on its way into a bucket in parts, several at once.

What an upload that was cut short has already sent is found again by size and checksum, whichever
process sent it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from ..logbook.errors import IntegrityError, MidwatchError, Retryable
from .manifest import FileEntry
from .objects import Unfinished, verified_pieces

Part = dict[str, Any]
"""A part as the S3 interface shows and takes it: PartNumber, ETag, ChecksumSHA256, Size."""


class PartsStore(Protocol):
    """What an upload in parts asks of the bucket; see S3Store."""

    @property
    def concurrency(self) -> int: ...

    def has(self, key: str, entry: FileEntry) -> bool: ...

    def begin(self, key: str, entry: FileEntry) -> str: ...

    def unfinished(self, prefix: str) -> Sequence[Unfinished]: ...

    def sent_parts(self, key: str, upload_id: str) -> dict[int, Part]: ...

    def put_part(self, key: str, upload_id: str, number: int, data: bytes) -> Part: ...

    def part(self, number: int, etag: str, data: bytes) -> Part: ...

    def finish(self, key: str, upload_id: str, parts: list[Part]) -> None: ...

    def abort(self, upload: Unfinished) -> None: ...


class PartsUpload:
    """One upload of one file; no more parts are in memory than are on their way."""

    def __init__(self, store: PartsStore, key: str, entry: FileEntry, part_bytes: int) -> None:
        self._store = store
        self._key = key
        self._entry = entry
        self._part_bytes = part_bytes
        self._sent_bytes = 0
        self._parts: list[Part] = []
        self._flying: deque[Future[Part]] = deque()

    def run(self, path: Path) -> int:
        """Send the file and make it appear; return how many bytes had to be sent."""
        taken_up = self._take_up()
        self._send_all(path, *(taken_up or self._begin()))
        if taken_up and not self._store.has(self._key, self._entry):
            # Whoever began that upload named another SHA-256, and that is what the object now says.
            self._send_all(path, *self._begin())
        return self._sent_bytes

    def _send_all(self, path: Path, upload_id: str, sent: dict[int, Part]) -> None:
        self._parts = []
        pieces = verified_pieces(path, self._entry, self._part_bytes)
        with ThreadPoolExecutor(self._store.concurrency, "upload") as pool:
            try:
                for number, data in enumerate(pieces, 1):
                    self._send(pool, upload_id, number, data, sent.get(number))
                while self._flying:
                    self._parts.append(self._flying.popleft().result())
            except BaseException as error:
                for future in self._flying:
                    future.cancel()
                if isinstance(error, IntegrityError):
                    # These bytes will never be right; what was sent of them must not stay.
                    with contextlib.suppress(MidwatchError):
                        self._store.abort(Unfinished(self._key, upload_id, 0.0))
                raise
        self._store.finish(self._key, upload_id, self._parts)

    def _begin(self) -> tuple[str, dict[int, Part]]:
        return self._store.begin(self._key, self._entry), {}

    def _take_up(self) -> tuple[str, dict[int, Part]] | None:
        begun = [u for u in self._store.unfinished(self._key) if u.key == self._key]
        if not begun:
            return None
        newest = max(begun, key=lambda upload: upload.begun_s)
        try:
            return newest.id, self._store.sent_parts(self._key, newest.id)
        except Retryable as error:
            if error.code != "upload-lost":
                raise
            # It was finished or given up between the two looks.
            return None

    def _send(
        self, pool: ThreadPoolExecutor, upload_id: str, number: int, data: bytes, sent: Part | None
    ) -> None:
        if sent is not None and _is_same(sent, data):
            self._parts.append(self._store.part(number, sent["ETag"], data))
            return
        while len(self._flying) >= self._store.concurrency:
            self._parts.append(self._flying.popleft().result())
        self._sent_bytes += len(data)
        self._flying.append(pool.submit(self._store.put_part, self._key, upload_id, number, data))


def _is_same(sent: Part, data: bytes) -> bool:
    """Whether a part in the store is these bytes, as far as its checksums can tell."""
    if sent.get("Size") != len(data):
        return False
    if "ChecksumSHA256" in sent:
        return bool(sent["ChecksumSHA256"] == sha256_base64(data))
    # Without encryption by a key service the ETag of a part is its MD5; else it is sent again.
    return bool(sent.get("ETag", "").strip('"') == md5(data).hexdigest())


def sha256_base64(data: bytes) -> str:
    """Return the SHA-256 as the S3 interface writes it."""
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def md5(data: bytes) -> Any:
    """Return the MD5 object of data: a check against accidents, not against people."""
    return hashlib.md5(data, usedforsecurity=False)
