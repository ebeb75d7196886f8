"""One buffer of the memory tier: a rank's state in a node's memory, and what it says of itself.

A buffer is a memfd that the node's agent holds, so it outlives the worker that wrote it and goes
with the agent. It starts with a page of facts, then comes the body: the image of the rank's
checkpoint file, as it would lie on disk, and what describes it. A body is whole only while the page
says so, and sound only if its checksum agrees; a writer that dies in between leaves neither.

Each rank has four buffers on its node: two for its own state in turn, two for the copy of a rank of
another node. While one of a pair is written the other holds a state before, so whatever dies
when, all ranks together hold one whole generation.
Source: ring placement with two replicas after Gemini, SOSP 2023.
"""

from __future__ import annotations

import mmap
import os
import struct

import msgspec
import xxhash

from ..logbook.decoding import prepared
from ..logbook.errors import IntegrityError
from ..logbook.wire import Mesh
from .index import RankPart
from .manifest import Fingerprint, Manifest, SaveHeader, checkpoint_id

PAGE_BYTES = 4096
_MAGIC = b"midw-mem"
_FACTS = struct.Struct("<8sqqq16s")
_EMPTY, _WHOLE = 0, 1
_ALIGNMENT = 64
# What describes an image grows from save to save (recent steps, changes in force); this much may.
_SPARE_BYTES = 1 << 18


class Generation(msgspec.Struct, frozen=True, order=True):
    """The state of a run after a step, saved by an attempt; the newest is the greatest."""

    step: int
    attempt: int

    @property
    def id(self) -> str:
        """Its id, as if it were a checkpoint on disk."""
        return checkpoint_id(self.step, self.attempt)


class ShardHead(msgspec.Struct, frozen=True, kw_only=True):
    """What a buffer holds. rank: whose state, on mesh.

    is_sufficient: the rank's own image holds all that it needs to resume on the same mesh.
    """

    run: str
    attempt: int
    rank: int
    mesh: Mesh
    header: SaveHeader
    fingerprint: Fingerprint
    image_bytes: int
    part_bytes: int
    is_sufficient: bool

    @property
    def generation(self) -> Generation:
        return Generation(self.header.step, self.attempt)

    def as_manifest(self, total_bytes: int) -> Manifest:
        """Return the manifest that a checkpoint on disk of this state would have, without files."""
        return Manifest(
            id=self.generation.id,
            run=self.run,
            attempt=self.attempt,
            created_s=0.0,
            mesh=self.mesh,
            world_size=self.mesh.world_size,
            header=self.header,
            fingerprint=self.fingerprint,
            files=(),
            total_bytes=total_bytes,
        )


class _StepOf(msgspec.Struct, frozen=True):
    step: int


class _Origin(msgspec.Struct, frozen=True):
    """The part of a ShardHead that names its generation, read without the rest of it."""

    attempt: int
    header: _StepOf


_heads = msgspec.msgpack.Decoder(prepared(ShardHead))
_origins = msgspec.msgpack.Decoder(prepared(_Origin))
_parts = msgspec.msgpack.Decoder(prepared(RankPart))


class BodyFacts(msgspec.Struct, frozen=True, array_like=True):
    """Sizes and XXH3-128 of a body on its way from node to node."""

    body_bytes: int
    head_bytes: int
    digest: bytes


class Slot:
    """A buffer of the memory tier, mapped; fd stays the caller's.

    room_bytes: of the body, 0 for a buffer never used.
    generation: what is whole here, None when nothing is. Found when the buffer is mapped and then
        set by whoever writes it through this object, so any thread may read it at any time and
        reads nothing of the buffer; what another process writes is seen by head() alone.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._map: mmap.mmap | None = None
        self._body_bytes = 0
        self._head_bytes = 0
        size = os.fstat(fd).st_size
        if size > PAGE_BYTES:
            self._map = mmap.mmap(fd, size)
        self.generation = self._read_generation()

    @property
    def room_bytes(self) -> int:
        return len(self._map) - PAGE_BYTES if self._map is not None else 0

    # --- reading ---

    def head(self) -> ShardHead | None:
        """Return what is here, None when nothing whole is."""
        encoded = self._encoded_head()
        try:
            return _heads.decode(encoded) if encoded is not None else None
        except msgspec.DecodeError:
            return None

    def _read_generation(self) -> Generation | None:
        encoded = self._encoded_head()
        try:
            origin = _origins.decode(encoded) if encoded is not None else None
        except msgspec.DecodeError:
            return None
        return Generation(origin.header.step, origin.attempt) if origin is not None else None

    def _encoded_head(self) -> memoryview | None:
        if self._map is None:
            return None
        magic, state, body_bytes, head_bytes, _ = _FACTS.unpack_from(self._map, 0)
        if (magic, state) != (
            _MAGIC,
            _WHOLE,
        ) or not 0 < head_bytes <= body_bytes <= self.room_bytes:
            return None
        self._body_bytes, self._head_bytes = body_bytes, head_bytes
        return self.body()[body_bytes - head_bytes :]

    def is_sound(self) -> bool:
        """Whether the whole body that head() told of still has its checksum."""
        assert self._map is not None
        digest = _FACTS.unpack_from(self._map, 0)[4]
        return bool(xxhash.xxh3_128_digest(self.body()) == digest)

    def body(self) -> memoryview:
        """Return the body as last told by head() or finish()."""
        return self.room()[: self._body_bytes]

    def shard(self) -> Shard:
        """Return the body in its parts. Raises: IntegrityError[memory-corrupt]."""
        return Shard(self.body(), self._head_bytes)

    @property
    def facts(self) -> BodyFacts:
        """What somebody needs to know who is to receive the body."""
        assert self._map is not None
        return BodyFacts(self._body_bytes, self._head_bytes, _FACTS.unpack_from(self._map, 0)[4])

    # --- writing ---

    def begin(self, room_bytes: int) -> None:
        """Give up what is here and make room for a body. Raises: OSError."""
        self.generation = None
        if self._map is not None:
            _FACTS.pack_into(self._map, 0, _MAGIC, _EMPTY, 0, 0, b"")
        if self.room_bytes < room_bytes:
            os.ftruncate(self._fd, PAGE_BYTES + room_bytes)
            self._map = mmap.mmap(self._fd, PAGE_BYTES + room_bytes)

    def room(self) -> memoryview:
        """Return all there is room for; what is written there counts once finish() says so."""
        assert self._map is not None
        return memoryview(self._map)[PAGE_BYTES:]

    def finish(self, body_bytes: int, head_bytes: int) -> bytes:
        """Declare the first body_bytes whole, the head at their end; return their checksum."""
        assert self._map is not None
        self._body_bytes, self._head_bytes = body_bytes, head_bytes
        digest = bytes(xxhash.xxh3_128_digest(self.body()))
        # The state comes last: a process killed between two stores leaves the buffer empty.
        _FACTS.pack_into(self._map, 0, _MAGIC, _EMPTY, body_bytes, head_bytes, digest)
        _FACTS.pack_into(self._map, 0, _MAGIC, _WHOLE, body_bytes, head_bytes, digest)
        self.generation = self._read_generation()
        return digest


def body_room_bytes(image_bytes: int, part: bytes) -> int:
    """Return the room that bodies of such an image take, whatever their head."""
    return _aligned(image_bytes) + _aligned(len(part)) + _SPARE_BYTES


def write_head(slot: Slot, head: ShardHead, part: bytes) -> tuple[int, int]:
    """Write part and head behind the image; return (bytes of the body, of the head).

    Raises: IntegrityError[memory-head-too-large] when they have outgrown the room.
    """
    encoded = msgspec.msgpack.encode(head)
    start = _aligned(head.image_bytes)
    body_bytes = start + len(part) + len(encoded)
    if body_bytes > slot.room_bytes:
        raise IntegrityError(
            "memory-head-too-large",
            f"what describes the state takes {body_bytes - start} bytes, "
            f"{slot.room_bytes - start} were laid out.",
            remedy="The next attempt lays out more.",
        )
    slot.room()[start:body_bytes] = part + encoded
    return body_bytes, len(encoded)


class Shard:
    """A whole body, in a buffer or as received: the image of a rank and its description.

    Raises: IntegrityError[memory-corrupt] when the body does not read as one.
    """

    def __init__(self, body: memoryview, head_bytes: int) -> None:
        try:
            self.head: ShardHead = _heads.decode(body[len(body) - head_bytes :])
            start = _aligned(self.head.image_bytes)
            part = body[start : start + self.head.part_bytes]
            self.part: RankPart = _parts.decode(part)
        except msgspec.DecodeError as error:
            raise IntegrityError(
                "memory-corrupt", f"a state in memory cannot be read: {error}."
            ) from error
        self.image = body[: self.head.image_bytes]

    @classmethod
    def received(cls, body: memoryview, facts: BodyFacts) -> Shard:
        """Return a body that came from another node. Raises: IntegrityError[memory-corrupt]."""
        if xxhash.xxh3_128_digest(body) != facts.digest:
            raise IntegrityError("memory-corrupt", "a state arrived damaged from another node.")
        return cls(body, facts.head_bytes)


def encode_part(part: RankPart) -> bytes:
    """Return a rank's part as it stands behind an image."""
    return msgspec.msgpack.encode(part)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
