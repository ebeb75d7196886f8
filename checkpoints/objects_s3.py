"""The durable store in a bucket of any S3-compatible service.

boto3 is imported at the first call, so who keeps no checkpoints there does not pay for it, and a
process that is yet to be forked starts no thread. Its own retries are off: who calls here knows how
long it is worth trying. Large files go in parts, each with its SHA-256; what an upload that was cut
short has already sent is found again by size and checksum.
"""

from __future__ import annotations

import base64
import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..logbook.errors import IntegrityError, MidwatchError, Retryable
from ..logbook.tiers import Storage
from .manifest import FileEntry
from .objects import MIB, StoredObject, Unfinished, verified_pieces
from .objects_s3_errors import (
    EXISTS,
    NO_UPLOAD,
    NOT_FOUND,
    PAST_END,
    UNSUPPORTED,
    error_code,
    is_foreign,
    translate,
)
from .objects_s3_parts import Part, PartsUpload, md5, sha256_base64
from .retrying import Bandwidth

_PARTS_MAX = 10_000
_DELETE_MAX = 1000
_SHA256 = "sha256"
_CONNECT_TIMEOUT_S_MAX = 10.0
# A key that is not known any more is refused like one that lacks a right.
_OF_CREDENTIALS = frozenset({"credentials-expired", "credentials-missing", "store-denied"})
# A signature needs some region; services that are not AWS rarely care which.
_ANY_REGION = "us-east-1"


class S3Store:
    """One bucket and prefix."""

    def __init__(self, storage: Storage, bandwidth: Bandwidth | None = None) -> None:
        parts = urlsplit(storage.url)
        self._bucket = parts.netloc
        folder = parts.path.strip("/")
        self._folder = f"{folder}/" if folder else ""
        self._storage = storage
        self._bandwidth = bandwidth or Bandwidth(None)
        self._lock = threading.Lock()
        self._known_client: Any = None
        self._close_client: Callable[[], object] = _nothing
        self._has_sha256 = True
        self._has_conditions = True

    # --- the verbs -------------------------------------------------------------------------------

    def has(self, key: str, entry: FileEntry) -> bool:
        try:
            with self._asking(f"look at {key}", NOT_FOUND) as s3:
                head = s3.head_object(Bucket=self._bucket, Key=self._folder + key)
        except _Said:
            return False
        is_same = head.get("Metadata", {}).get(_SHA256) == entry.sha256
        return bool(is_same and head["ContentLength"] == entry.bytes)

    def put_file(self, key: str, path: Path, entry: FileEntry) -> int:
        part_bytes = max(self._storage.part_mib * MIB, -(-entry.bytes // _PARTS_MAX))
        if entry.bytes > part_bytes:
            return PartsUpload(self, key, entry, part_bytes).run(path)
        data = b"".join(verified_pieces(path, entry, part_bytes))
        self._bandwidth.take(len(data))
        self._put(key, data, Metadata={_SHA256: entry.sha256})
        return len(data)

    def put_new(self, key: str, data: bytes) -> bool:
        if self._has_conditions:
            try:
                self._put(key, data, UNSUPPORTED | EXISTS, IfNoneMatch="*")
            except _Said as answer:
                if answer.code in EXISTS:
                    return False
                # An endpoint from before conditional writes: the content of a commit is the same
                # whoever writes it, so what is left is a look before the put.
                self._has_conditions = False
            else:
                return True
        if self.read(key) is not None:
            return False
        self._put(key, data)
        return True

    def _put(
        self, key: str, data: bytes, expected: frozenset[str] = frozenset(), **options: Any
    ) -> None:
        """Put an object with a checksum that the endpoint knows; raise _Said for what is expected.

        Of an endpoint that knows no SHA-256, which is tried first, one is asked no more; where it
        refuses MD5 alike, it was something else that it does not know.
        """
        if self._has_sha256:
            try:
                self._put_with(self._sha256, key, data, expected | UNSUPPORTED, options)
                return
            except _Said as answer:
                if answer.code not in UNSUPPORTED:
                    raise
        self._put_with(self._md5, key, data, expected, options)
        self._has_sha256 = False

    def _put_with(
        self,
        checksum: Callable[[bytes], dict[str, str]],
        key: str,
        data: bytes,
        expected: frozenset[str],
        options: dict[str, Any],
    ) -> None:
        target = {"Bucket": self._bucket, "Key": self._folder + key}
        with self._asking(f"put {key}", expected) as s3:
            s3.put_object(**target, Body=data, **options, **checksum(data))

    def read(self, key: str) -> bytes | None:
        try:
            with self._asking(f"read {key}", NOT_FOUND) as s3:
                answer = s3.get_object(Bucket=self._bucket, Key=self._folder + key)
                data = _body(answer)
        except _Said:
            return None
        if len(data) != answer["ContentLength"]:
            raise _short(key, len(data), answer["ContentLength"])
        return data

    def read_range(self, key: str, first: int, count: int) -> bytes:
        wanted = f"bytes={first}-{first + count - 1}"
        target = {"Bucket": self._bucket, "Key": self._folder + key}
        try:
            with self._asking(f"read {key}", NOT_FOUND | PAST_END) as s3:
                answer = s3.get_object(Range=wanted, **target)
                data = _body(answer)
        except _Said as said:
            if said.code in PAST_END:
                raise _ends_early(key, first + count) from None
            where = self._storage.url
            raise IntegrityError("object-missing", f"{key} is not in {where}.") from None
        if len(data) == count:
            return data
        size = int(answer.get("ContentRange", "/0").rpartition("/")[2])
        if 0 < size < first + count:
            raise _ends_early(key, first + count)
        raise _short(key, len(data), count)

    def listing(self, prefix: str) -> Sequence[StoredObject]:
        found: list[StoredObject] = []
        with self._asking(f"list {prefix}") as s3:
            pages = s3.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._folder + prefix):
                found += [
                    StoredObject(
                        item["Key"].removeprefix(self._folder),
                        item["Size"],
                        item["LastModified"].timestamp(),
                    )
                    for item in page.get("Contents", ())
                ]
        return found

    def delete(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), _DELETE_MAX):
            batch = [{"Key": self._folder + key} for key in keys[start : start + _DELETE_MAX]]
            with self._asking(f"delete {keys[start]} and others") as s3:
                order = {"Objects": batch, "Quiet": True}
                answer = s3.delete_objects(Bucket=self._bucket, Delete=order)
            refused = [e["Code"] for e in answer.get("Errors", ()) if e["Code"] not in NOT_FOUND]
            if refused:
                raise Retryable(
                    "store-error",
                    f"cannot delete {len(refused)} objects: {refused[0]}.",
                    delay_s=1.0,
                    remedy="Grant the run s3:DeleteObject; it is tried again.",
                )

    def unfinished(self, prefix: str) -> Sequence[Unfinished]:
        found: list[Any] = []
        target = {"Bucket": self._bucket, "Prefix": self._folder + prefix}
        # What does not know uploads in parts holds none of them.
        with (
            contextlib.suppress(_Said),
            self._asking(f"list uploads of {prefix}", UNSUPPORTED) as s3,
        ):
            for page in s3.get_paginator("list_multipart_uploads").paginate(**target):
                found += page.get("Uploads", ())
        return [
            Unfinished(
                item["Key"].removeprefix(self._folder),
                item["UploadId"],
                item["Initiated"].timestamp(),
            )
            for item in found
        ]

    def abort(self, upload: Unfinished) -> None:
        target = {"Bucket": self._bucket, "Key": self._folder + upload.key}
        try:
            with self._asking(f"abort {upload.key}", NO_UPLOAD) as s3:
                s3.abort_multipart_upload(**target, UploadId=upload.id)
        except _Said:
            # It was finished or given up meanwhile.
            return

    # --- for uploads in parts --------------------------------------------------------------------

    @property
    def concurrency(self) -> int:
        return self._storage.concurrency

    def begin(self, key: str, entry: FileEntry) -> str:
        """Begin an upload in parts and return its id."""
        options = {"ChecksumAlgorithm": "SHA256"} if self._has_sha256 else {}
        try:
            with self._asking(f"begin {key}", UNSUPPORTED if options else frozenset()) as s3:
                answer = s3.create_multipart_upload(
                    Bucket=self._bucket,
                    Key=self._folder + key,
                    Metadata={_SHA256: entry.sha256},
                    **options,
                )
                return str(answer["UploadId"])
        except _Said:
            self._has_sha256 = False
            return self.begin(key, entry)

    def sent_parts(self, key: str, upload_id: str) -> dict[int, Part]:
        """Return the parts that the store already has of an upload."""
        with self._asking(f"list parts of {key}") as s3:
            target = {"Bucket": self._bucket, "Key": self._folder + key, "UploadId": upload_id}
            pages = s3.get_paginator("list_parts").paginate(**target)
            return {part["PartNumber"]: part for page in pages for part in page.get("Parts", ())}

    def put_part(self, key: str, upload_id: str, number: int, data: bytes) -> Part:
        """Send one part and return what finish needs of it."""
        self._bandwidth.take(len(data))
        checksum = self.checksum(data)
        with self._asking(f"put part {number} of {key}") as s3:
            answer = s3.upload_part(
                Bucket=self._bucket,
                Key=self._folder + key,
                UploadId=upload_id,
                PartNumber=number,
                Body=data,
                **checksum,
            )
        return self._part(number, answer["ETag"], checksum)

    def part(self, number: int, etag: str, data: bytes) -> Part:
        """Return a part as finish needs it."""
        return self._part(number, etag, self.checksum(data))

    def _part(self, number: int, etag: str, checksum: dict[str, str]) -> Part:
        # A hash costs as much as the sending: it is taken once.
        return {"PartNumber": number, "ETag": etag} | (checksum if self._has_sha256 else {})

    def finish(self, key: str, upload_id: str, parts: list[Part]) -> None:
        """Make the object of all parts appear."""
        with self._asking(f"finish {key}") as s3:
            s3.complete_multipart_upload(
                Bucket=self._bucket,
                Key=self._folder + key,
                UploadId=upload_id,
                MultipartUpload={"Parts": sorted(parts, key=lambda part: part["PartNumber"])},
            )

    def checksum(self, data: bytes) -> dict[str, str]:
        """Return the header by which the endpoint checks what it received."""
        return self._sha256(data) if self._has_sha256 else self._md5(data)

    @staticmethod
    def _sha256(data: bytes) -> dict[str, str]:
        return {"ChecksumSHA256": sha256_base64(data)}

    @staticmethod
    def _md5(data: bytes) -> dict[str, str]:
        return {"ContentMD5": base64.b64encode(md5(data).digest()).decode()}

    # --- the client ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _asking(self, what: str, expected: frozenset[str] = frozenset()) -> Iterator[Any]:
        """Give out the client; an expected answer comes out as _Said, any other error as ours."""
        client = None
        try:
            client = self._client()
            yield client
        except Exception as error:
            if not is_foreign(error):
                raise
            said = error_code(error)
            if said in expected:
                raise _Said(said) from None
            ours = translate(error, f"{what} in {self._storage.url}")
            if ours.code in _OF_CREDENTIALS:
                # The chain is walked anew: whoever renews them need not restart anything.
                self._drop(client)
            raise ours from None

    def _client(self) -> Any:
        with self._lock:
            if self._known_client is None:
                self._known_client = _connect(self._storage)
                self._close_client = weakref.finalize(self, self._known_client.close)
            return self._known_client

    def _drop(self, client: Any) -> None:
        with self._lock:
            # Of several threads that were refused, one drops it, and nobody the next.
            if client is not None and client is self._known_client:
                self._close_client()
                self._known_client, self._close_client = None, _nothing


def _nothing() -> None:
    """Close no client, while there is none."""


class _Said(Exception):
    """The endpoint answered with one of the codes that the caller expects."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def _body(answer: Any) -> bytes:
    with contextlib.closing(answer["Body"]) as body:
        data: bytes = body.read()
        return data


def _short(key: str, got: int, wanted: int) -> MidwatchError:
    return Retryable(
        "store-short-read",
        f"the answer for {key} ended after {got} of {wanted} bytes.",
        delay_s=0.2,
        remedy="Nothing: it is read again.",
    )


def _ends_early(key: str, wanted: int) -> IntegrityError:
    return IntegrityError("object-size", f"{key} ends before byte {wanted}.")


def _connect(storage: Storage) -> Any:
    import boto3
    from botocore.config import Config

    session = boto3.Session(region_name=storage.region)
    return session.client(
        "s3",
        region_name=session.region_name or _ANY_REGION,
        endpoint_url=storage.endpoint_url,
        verify=storage.ca_bundle,
        config=Config(
            s3={"addressing_style": "path" if storage.path_style else "auto"},
            connect_timeout=min(storage.timeout_s, _CONNECT_TIMEOUT_S_MAX),
            read_timeout=storage.timeout_s,
            retries={"total_max_attempts": 1},
            max_pool_connections=max(storage.concurrency, 10),
            # Ours are sent with each request; others confuse services that know only MD5.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
