"""This rank's checkpoint file as one image in host memory.

DCP writes a tensor as the record of torch.save, of which only the raw bytes change from save to
save. So the image is laid out once, the constant frames are written into it, and a save is staged
by copying the state into the holes, all tensors in one fused call. Plain values stand behind the
tensors, each in a room with some space to grow.
"""

from __future__ import annotations

import contextlib
import io
import math
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.serialization import get_crc32_options, set_crc32_options

from .dcp_state import (
    Boxes,
    check_plain,
    dtype_name,
    dtype_of,
    is_written_here,
    layout_of,
    local_part,
)
from .index import Box, Index, RankPart, TensorPart, ValuePart

_ALIGNMENT = 64
_VALUE_SPARE_BYTES = 256

Frame = tuple[bytes, bytes]


class Image:
    """The bytes of this rank's file, and a view into every tensor's hole."""

    def __init__(
        self,
        flat: Mapping[str, Any],
        paths: dict[str, Any],
        name: str,
        allocate: Callable[[int, RankPart], torch.Tensor] | None = None,
    ) -> None:
        """Lay the image out in the zeroed bytes (uint8) that allocate returns for its size."""
        self._layouts = {key: layout_of(leaf) for key, leaf in flat.items()}
        tensors, frames, end = _place_tensors(flat)
        values, end = _place_values(encode_values(flat), end)
        self.part = RankPart(name, tensors, values, paths, _is_sufficient(flat, tensors))
        on_device = any(isinstance(t, torch.Tensor) and not t.is_cpu for t in flat.values())
        if allocate is None:
            buffer = torch.zeros(end, dtype=torch.uint8, pin_memory=on_device)
        else:
            buffer = allocate(end, self.part)
            if on_device:
                pin(buffer)
        self.view = buffer.numpy().data
        self._holes = [
            _hole(buffer, self.view, part, frame)
            for part, frame in zip(tensors.values(), frames, strict=True)
        ]

    def is_for(self, flat: Mapping[str, Any]) -> bool:
        """Whether a state has the tensors, in the layout, that this image was made for."""
        return self._layouts.keys() == flat.keys() and all(
            layout_of(leaf) == self._layouts[key] for key, leaf in flat.items()
        )

    def stage(self, flat: Mapping[str, Any]) -> bool:
        """Copy a state into the image; False when a plain value has outgrown its room."""
        values = encode_values(flat)
        if any(len(content) > self.part.values[key].bytes for key, content in values.items()):
            return False
        for key, content in values.items():
            room = self.part.values[key]
            self.view[room.offset : room.offset + room.bytes] = content.ljust(room.bytes, b"\0")
        sources = [local_part(flat[key]) for key in self.part.tensors]
        if sources:
            torch._foreach_copy_(self._holes, sources, non_blocking=True)
        if any(not source.is_cpu for source in sources):
            torch.accelerator.synchronize()
        return True


def _place_tensors(flat: Mapping[str, Any]) -> tuple[dict[str, TensorPart], list[Frame], int]:
    """Return (where each tensor goes, the frame of each, end of the last one)."""
    boxes = Boxes()
    known: dict[tuple[torch.dtype, tuple[int, ...]], Frame] = {}
    parts: dict[str, TensorPart] = {}
    frames: list[Frame] = []
    end = 0
    for key, leaf in flat.items():
        if not isinstance(leaf, torch.Tensor):
            continue
        box = boxes.of(leaf)
        if not is_written_here(leaf, box):
            continue
        kind = (leaf.dtype, box[1])
        if kind not in known:
            known[kind] = _frame(*kind)
        parts[key] = _tensor_part(leaf, box, _aligned(end), known[kind])
        frames.append(known[kind])
        end = parts[key].item_offset + parts[key].item_bytes
    return parts, frames, end


def _is_sufficient(flat: Mapping[str, Any], placed: Mapping[str, TensorPart]) -> bool:
    boxes = Boxes()
    return all(
        key in placed or not math.prod(boxes.of(leaf)[1])
        for key, leaf in flat.items()
        if isinstance(leaf, torch.Tensor)
    )


def pin(buffer: torch.Tensor) -> None:
    """Let a GPU copy straight into this memory; where that is refused, copies take longer."""
    runtime: Any = torch.cuda.cudart()
    runtime.cudaHostRegister(buffer.data_ptr(), buffer.numel(), 0)


def _place_values(values: dict[str, bytes], end: int) -> tuple[dict[str, ValuePart], int]:
    parts = {}
    for key, content in values.items():
        start = _aligned(end)
        end = start + _aligned(len(content) + _VALUE_SPARE_BYTES)
        parts[key] = ValuePart(start, end - start)
    return parts, end


def _tensor_part(leaf: torch.Tensor, box: Box, item_offset: int, frame: Frame) -> TensorPart:
    raw_bytes = math.prod(box[1]) * leaf.element_size()
    return TensorPart(
        dtype=dtype_name(leaf.dtype),
        shape=tuple(leaf.shape),
        piece_origin=box[0],
        piece_shape=box[1],
        offset=item_offset + len(frame[0]),
        item_offset=item_offset,
        item_bytes=len(frame[0]) + raw_bytes + len(frame[1]),
    )


def _hole(buffer: torch.Tensor, view: memoryview, part: TensorPart, frame: Frame) -> torch.Tensor:
    """Write the frame of one tensor and return the view between its two halves."""
    end = part.item_offset + part.item_bytes
    stop = end - len(frame[1])
    view[part.item_offset : part.offset] = frame[0]
    view[stop:end] = frame[1]
    raw = buffer[part.offset : stop]
    return raw.view(dtype_of(part.dtype)).view(part.piece_shape)


def _frame(dtype: torch.dtype, shape: tuple[int, ...]) -> Frame:
    """Return what torch.save writes before and after the raw bytes of such a tensor."""
    stream = io.BytesIO()
    with _without_crc32():
        torch.save(torch.empty(shape, dtype=dtype), stream)
    record = stream.getbuffer()
    with zipfile.ZipFile(stream) as archive:
        info = next(entry for entry in archive.infolist() if entry.filename.endswith("/data/0"))
    # A local file header is 30 bytes, the lengths of its name and of its padding the last four.
    header_end = info.header_offset + 30
    start = header_end + sum(memoryview(bytes(record[header_end - 4 : header_end])).cast("H"))
    return bytes(record[:start]), bytes(record[start + info.file_size :])


@contextlib.contextmanager
def _without_crc32() -> Iterator[None]:
    # A checksum in the constant frame would be wrong for every later content of the hole; torch
    # has a mode without, and the SHA-256 of the whole file says more.
    before = get_crc32_options()
    set_crc32_options(False)
    try:
        yield
    finally:
        set_crc32_options(before)


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def encode_values(flat: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the torch.save record of every plain value. Raises: ConfigError[state-not-plain]."""
    encoded = {}
    for key, value in flat.items():
        if not isinstance(value, torch.Tensor):
            check_plain(key, value)
            stream = io.BytesIO()
            # The older of torch's two formats ends where it ends; the newer one is found from the
            # end of the file, which the room behind a value would hide.
            torch.save(value, stream, _use_new_zipfile_serialization=False)
            encoded[key] = stream.getvalue()
    return encoded


def describe_for_dcp(index: Index) -> bytes:
    """Return the content of `.metadata`, by which stock torch finds its way in our files."""
    described: dict[str, Any] = {key: BytesStorageMetadata() for key in index.values}
    stored: dict[MetadataIndex, _StorageInfo] = {}
    for key, value in index.values.items():
        number, part = value.nearest(0)
        stored[MetadataIndex(key)] = _StorageInfo(index.files[number], part.offset, part.bytes)
    for key, entry in index.tensors.items():
        chunks: list[ChunkStorageMetadata] = []
        for (origin, shape), piece in entry.distinct().items():
            where = MetadataIndex(key, origin, len(chunks))
            stored[where] = _StorageInfo(
                index.files[piece.file], piece.item_offset, piece.item_bytes
            )
            chunks.append(ChunkStorageMetadata(torch.Size(origin), torch.Size(shape)))
        described[key] = TensorStorageMetadata(
            TensorProperties(dtype=dtype_of(entry.dtype)), torch.Size(entry.shape), chunks
        )
    paths = {key: tuple(path) for key, path in index.paths.items()}
    return pickle.dumps(Metadata(described, paths, stored, version=CURRENT_DCP_VERSION))
