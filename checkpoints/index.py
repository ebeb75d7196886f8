"""Where every tensor of a checkpoint lies in its files, without a pickle.

torch DCP describes its shard files in `.metadata`, which is a pickle: to read it is to run it. The
same facts stand here as plain msgpack, next to it, so that our own load never unpickles a thing;
`.metadata` is written only so that stock torch can load our checkpoints too.

A piece is a box of a tensor (origin and shape, in elements) whose raw bytes stand at an offset of a
file. Ranks that hold the same box may each have written it; then a reader takes the copy in the
file that it reads anyway.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec

from ..logbook.decoding import prepared
from ..logbook.errors import ConfigError, IntegrityError

INDEX_NAME = "index.msgpack"

Box = tuple[tuple[int, ...], tuple[int, ...]]
Path = tuple[str | int, ...]


class TensorPart(msgspec.Struct, frozen=True, array_like=True):
    """One rank's piece of a tensor. item_*: DCP's own record around the raw bytes."""

    dtype: str
    shape: tuple[int, ...]
    piece_origin: tuple[int, ...]
    piece_shape: tuple[int, ...]
    offset: int
    item_offset: int
    item_bytes: int


class ValuePart(msgspec.Struct, frozen=True, array_like=True):
    """One rank's copy of a plain value: a torch.save record, padded with zeros."""

    offset: int
    bytes: int


class RankPart(msgspec.Struct, frozen=True, array_like=True):
    """Everything in one rank's file. paths: where each key stands in the nested state.

    is_sufficient: it holds all of every tensor that the rank holds, replicas included.
    """

    file: str
    tensors: dict[str, TensorPart]
    values: dict[str, ValuePart]
    paths: dict[str, Path]
    is_sufficient: bool = False


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """A box of a tensor at an offset of files[file]."""

    file: int
    origin: tuple[int, ...]
    shape: tuple[int, ...]
    offset: int
    item_offset: int
    item_bytes: int

    @property
    def box(self) -> Box:
        return self.origin, self.shape


class TensorEntry(msgspec.Struct, frozen=True, array_like=True):
    """A whole tensor and its pieces, those of the lowest rank first."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    def distinct(self, preferred: int = -1) -> dict[Box, Piece]:
        """Return one piece per box: the one in file preferred, else the lowest rank's."""
        chosen: dict[Box, Piece] = {}
        for piece in self.pieces:
            if piece.file == preferred or piece.box not in chosen:
                chosen[piece.box] = piece
        return chosen


class ValueEntry(msgspec.Struct, frozen=True, array_like=True):
    """Copies of a plain value: (file, where in it)."""

    copies: tuple[tuple[int, ValuePart], ...]

    def nearest(self, preferred: int) -> tuple[int, ValuePart]:
        """Return the copy in file preferred, else the lowest rank's."""
        return next((copy for copy in self.copies if copy[0] == preferred), self.copies[0])


class Index(msgspec.Struct, frozen=True):
    """Every tensor and plain value of a checkpoint."""

    files: tuple[str, ...]
    tensors: dict[str, TensorEntry]
    values: dict[str, ValueEntry]
    paths: dict[str, Path]

    def file_number(self, name: str) -> int:
        """Return the number of a file, -1 when there is none of that name."""
        return self.files.index(name) if name in self.files else -1


class Read(msgspec.Struct, frozen=True):
    """Copy one box: from source_start within piece to target_start within the wanted box."""

    piece: Piece
    source_start: tuple[int, ...]
    target_start: tuple[int, ...]
    shape: tuple[int, ...]


def merge_parts(parts: Sequence[RankPart], *, is_whole: bool = True) -> Index:
    """Return the index of a checkpoint from the parts of all ranks, in rank order.

    is_whole: False takes parts of some ranks, and describes what they hold.
    Raises: ConfigError[state-differs] when ranks disagree about a tensor,
        ConfigError[state-incomplete] when the pieces do not fill it.
    """
    heads: dict[str, TensorPart] = {}
    pieces: dict[str, list[Piece]] = {}
    values: dict[str, list[tuple[int, ValuePart]]] = {}
    paths: dict[str, Path] = {}
    for number, part in enumerate(parts):
        paths |= part.paths
        for key, value in part.values.items():
            values.setdefault(key, []).append((number, value))
        for key, found in part.tensors.items():
            head = heads.setdefault(key, found)
            if (head.dtype, head.shape) != (found.dtype, found.shape):
                raise ConfigError(
                    "state-differs",
                    f"{key} is {head.dtype}{list(head.shape)} in {parts[0].file} but "
                    f"{found.dtype}{list(found.shape)} in {part.file}.",
                    remedy="Save the same state on every rank.",
                )
            pieces.setdefault(key, []).append(_piece(number, found))
    entries = {
        key: TensorEntry(head.dtype, head.shape, tuple(pieces[key])) for key, head in heads.items()
    }
    if is_whole:
        for key, entry in entries.items():
            _check_filled(key, entry)
    return Index(
        files=tuple(part.file for part in parts),
        tensors=entries,
        values={key: ValueEntry(tuple(copies)) for key, copies in values.items()},
        paths=paths,
    )


def encode_index(index: Index) -> bytes:
    """Return the content of the index file."""
    return msgspec.msgpack.encode(index)


def decode_index(data: memoryview) -> Index:
    """Return the index in data, whose checksum has been verified by the caller.

    Raises: IntegrityError[index-corrupt].
    """
    try:
        return msgspec.msgpack.decode(data, type=prepared(Index))
    except msgspec.DecodeError as error:
        raise IntegrityError(
            "index-corrupt", f"{INDEX_NAME} is not readable: {error}.", remedy="Load another."
        ) from error


def plan_reads(key: str, entry: TensorEntry, wanted: Box, preferred: int) -> list[Read]:
    """Return the copies that fill the wanted box of a tensor, from whatever mesh saved it.

    preferred: file to read from where there is a choice.
    Raises: IntegrityError[shard-missing] when the pieces leave part of the box empty.
    """
    origin, shape = wanted
    if not math.prod(shape):
        return []
    distinct = entry.distinct(preferred)
    zeros = (0,) * len(shape)
    if wanted in distinct:
        return [Read(distinct[wanted], zeros, zeros, shape)]
    reads = [
        read for piece in distinct.values() if (read := _overlap(piece, origin, shape)) is not None
    ]
    if sum(math.prod(read.shape) for read in reads) != math.prod(shape):
        raise IntegrityError(
            "shard-missing",
            f"the pieces of {key} do not fill {list(shape)} at {list(origin)}.",
            remedy="Load another checkpoint.",
        )
    return reads


def _overlap(piece: Piece, origin: tuple[int, ...], shape: tuple[int, ...]) -> Read | None:
    start = [max(a, b) for a, b in zip(piece.origin, origin, strict=True)]
    stop = [
        min(a, b) for a, b in zip(_end(piece.origin, piece.shape), _end(origin, shape), strict=True)
    ]
    if any(a >= b for a, b in zip(start, stop, strict=True)):
        return None
    return Read(
        piece,
        source_start=tuple(a - b for a, b in zip(start, piece.origin, strict=True)),
        target_start=tuple(a - b for a, b in zip(start, origin, strict=True)),
        shape=tuple(b - a for a, b in zip(start, stop, strict=True)),
    )


def _end(origin: Iterable[int], shape: Iterable[int]) -> list[int]:
    return [a + b for a, b in zip(origin, shape, strict=True)]


def _piece(number: int, part: TensorPart) -> Piece:
    return Piece(
        number, part.piece_origin, part.piece_shape, part.offset, part.item_offset, part.item_bytes
    )


def _check_filled(key: str, entry: TensorEntry) -> None:
    held = sum(math.prod(shape) for _, shape in entry.distinct())
    whole = math.prod(entry.shape)
    if held != whole:
        raise ConfigError(
            "state-incomplete",
            f"the ranks hold {held} of the {whole} elements of {key}.",
            remedy="Save the whole state: every shard on the rank that owns it.",
        )
