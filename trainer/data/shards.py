"""Tokenised shards on disk, and the token stream that a trainer maps from them.

A corpus is a folder:

    manifest.json        what is there: splits, shards with sizes and SHA-256, tokenizer hash
    tokenizer.json       the byte-level BPE
    train-00000.bin ...  little-endian uint16 (uint32 for a vocabulary past 65536) token ids
    valid-00000.bin ...  held-out documents, never trained on

The manifest is written last, so a folder without one is no corpus.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from ...logbook.decoding import prepared
from ...logbook.errors import ConfigError, IntegrityError

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer.json"
_UINT16_VOCAB_MAX = 1 << 16


class Shard(msgspec.Struct, frozen=True):
    """One file of token ids."""

    file: str
    tokens: int
    bytes: int
    sha256: str


class Split(msgspec.Struct, frozen=True):
    """The shards of one split, in stream order."""

    documents: int
    tokens: int
    shards: tuple[Shard, ...]


class Manifest(msgspec.Struct, frozen=True):
    """What a corpus holds. content_key identifies the sources and settings it was built from."""

    format_version: int
    content_key: str
    vocab_size: int
    dtype: str
    tokenizer_sha256: str
    source_bytes: int
    train: Split
    valid: Split


def token_dtype(vocab_size: int) -> str:
    """Return the numpy name of the smallest stored type that holds every id of the vocabulary."""
    return "<u2" if vocab_size <= _UINT16_VOCAB_MAX else "<u4"


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of the corpus in folder.

    Raises: ConfigError[corpus-missing] when there is none, IntegrityError[corpus-corrupt] when it
            cannot be read.
    """
    path = folder / MANIFEST_NAME
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=prepared(Manifest))
    except FileNotFoundError as error:
        raise ConfigError(
            "corpus-missing",
            f"there is no tokenised corpus in {folder} ({MANIFEST_NAME} not found).",
            remedy=f"Build one: midwatch data build --stdlib --out {folder}",
        ) from error
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _corrupt(folder, f"{MANIFEST_NAME} cannot be read: {error}") from error
    if manifest.format_version != FORMAT_VERSION:
        raise _corrupt(
            folder, f"format version {manifest.format_version}, this code reads {FORMAT_VERSION}"
        )
    return manifest


def verify_sizes(folder: Path, manifest: Manifest) -> None:
    """Check that every file is there at full length. Raises IntegrityError[corpus-corrupt]."""
    if not (folder / TOKENIZER_NAME).is_file():
        raise _corrupt(folder, f"{TOKENIZER_NAME} is missing")
    for shard in _all_shards(manifest):
        try:
            size = (folder / shard.file).stat().st_size
        except OSError as error:
            raise _corrupt(folder, f"{shard.file} cannot be read: {error.strerror}") from error
        if size != shard.bytes:
            raise _corrupt(folder, f"{shard.file} has {size} bytes, expected {shard.bytes}")


def verify_checksums(folder: Path, manifest: Manifest) -> None:
    """Read every file and compare its SHA-256. Raises IntegrityError[corpus-corrupt]."""
    verify_sizes(folder, manifest)
    expected = {shard.file: shard.sha256 for shard in _all_shards(manifest)}
    expected[TOKENIZER_NAME] = manifest.tokenizer_sha256
    for file, sha256 in expected.items():
        with (folder / file).open("rb") as stream:
            observed = hashlib.file_digest(stream, "sha256").hexdigest()
        if observed != sha256:
            raise _corrupt(folder, f"{file} has SHA-256 {observed[:12]}, expected {sha256[:12]}")


class ShardWriter:
    """Append documents' tokens to the shards of one split; finish() returns what was written."""

    def __init__(self, folder: Path, split: str, dtype: str, shard_tokens: int) -> None:
        self._folder = folder
        self._split = split
        self._dtype = dtype
        self._shard_tokens = shard_tokens
        self._pending: list[int] = []
        self._shards: list[Shard] = []
        self._documents = 0

    def add(self, documents: Iterable[list[int]]) -> None:
        for tokens in documents:
            self._documents += 1
            self._pending.extend(tokens)
            while len(self._pending) >= self._shard_tokens:
                self._write(self._pending[: self._shard_tokens])
                del self._pending[: self._shard_tokens]

    def finish(self) -> Split:
        if self._pending:
            self._write(self._pending)
            self._pending = []
        tokens = sum(shard.tokens for shard in self._shards)
        return Split(self._documents, tokens, tuple(self._shards))

    def _write(self, tokens: list[int]) -> None:
        raw = np.asarray(tokens, dtype=self._dtype).tobytes()
        file = f"{self._split}-{len(self._shards):05d}.bin"
        (self._folder / file).write_bytes(raw)
        digest = hashlib.sha256(raw).hexdigest()
        self._shards.append(Shard(file, len(tokens), len(raw), digest))


class TokenStream:
    """The tokens of one split as one long memory-mapped sequence."""

    def __init__(self, folder: Path, manifest: Manifest, split: str = "train") -> None:
        shards = (manifest.train if split == "train" else manifest.valid).shards
        self._parts = [_map_shard(folder, shard, manifest.dtype) for shard in shards]
        self._starts: list[int] = []
        self.num_tokens = 0
        for part in self._parts:
            self._starts.append(self.num_tokens)
            self.num_tokens += len(part)

    def read(self, first: int, count: int) -> npt.NDArray[np.int64]:
        """Return count tokens from position first on; windows may cross shards.

        Shapes: (count,) int64.
        """
        assert 0 <= first <= self.num_tokens - count
        window = np.empty(count, dtype=np.int64)
        filled = 0
        index = bisect.bisect_right(self._starts, first) - 1
        while filled < count:
            offset = first + filled - self._starts[index]
            piece = self._parts[index][offset : offset + count - filled]
            window[filled : filled + len(piece)] = piece
            filled += len(piece)
            index += 1
        return window


def open_stream(folder: Path, split: str = "train", *, checksums: bool = False) -> TokenStream:
    """Return the token stream of a corpus whose sizes, or checksums too, were found right.

    Raises: ConfigError[corpus-missing], IntegrityError[corpus-corrupt].
    """
    manifest = read_manifest(folder)
    (verify_checksums if checksums else verify_sizes)(folder, manifest)
    return TokenStream(folder, manifest, split)


def _map_shard(folder: Path, shard: Shard, dtype: str) -> npt.NDArray[np.unsignedinteger]:
    try:
        return np.memmap(folder / shard.file, dtype=dtype, mode="r", shape=(shard.tokens,))
    except (OSError, ValueError) as error:
        raise _corrupt(folder, f"{shard.file} cannot be mapped: {error}") from error


def _all_shards(manifest: Manifest) -> tuple[Shard, ...]:
    return manifest.train.shards + manifest.valid.shards


def _corrupt(folder: Path, reason: str) -> IntegrityError:
    return IntegrityError(
        "corpus-corrupt",
        f"the corpus in {folder} is damaged: {reason}.",
        remedy="Build it again with --force: midwatch data build DIR --out " + str(folder),
    )
