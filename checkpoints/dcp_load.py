"""Copy a verified checkpoint into a training state, whatever mesh saved it.

Every rank plans and verifies alone from what it sees in the directory, so a load needs no message;
on the mesh that saved it a rank reads one file. Nothing in a file is ever executed: tensors are raw
bytes found through our own index, plain values pass torch's weights_only reader.
"""

from __future__ import annotations

import io
import math
import pickle
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist

from ..logbook.errors import (
    ConfigError,
    IntegrityError,
    MidwatchError,
    Retryable,
    is_out_of_reach,
)
from .dcp_state import Boxes, dtype_name, dtype_of, flatten, local_part, rank_file
from .index import Index, Read, TensorEntry, ValuePart, plan_reads
from .manifest import Manifest, SaveHeader
from .source import FolderSource, Opener, Repaired, Source


class LoadReport(msgspec.Struct, frozen=True):
    """What a load did. checkpoint "" means that no candidate was given.

    read_bytes:  of the shards that this rank read, every one of them verified.
    passed_over: (checkpoint id, "[code] message") of every candidate that could not be loaded.
    tier, repaired: where it came from, as in source.Source; repaired by any rank.
    """

    checkpoint: str
    manifest: Manifest | None
    load_s: float
    read_bytes: int
    passed_over: tuple[tuple[str, str], ...] = ()
    tier: str = ""
    repaired: Repaired = ()

    @property
    def header(self) -> SaveHeader | None:
        """What the loop knew when it saved: step, data position, hyper, tags."""
        return self.manifest.header if self.manifest else None


class _Plan:
    """What of a checkpoint's files goes where in a state; reads nothing yet.

    files: numbers of the files needed. own: the reading rank's, -1 when it has none.
    """

    def __init__(self, name: str, index: Index, state: dict[str, Any], rank: int) -> None:
        self._name = name
        self._index = index
        self.own = index.file_number(rank_file(rank))
        self.copies: list[tuple[torch.Tensor, str, Read]] = []
        self.values: list[tuple[str, Any, int, ValuePart]] = []
        flat, paths = flatten(state)
        boxes = Boxes()
        for key, leaf in flat.items():
            if isinstance(leaf, torch.Tensor):
                self._plan_tensor(key, leaf, boxes)
            else:
                entry = index.values.get(key)
                if entry is None:
                    raise _mismatch(name, key, "is not in it")
                self.values.append((key, paths[key], *entry.nearest(self.own)))
        read = [read.piece.file for _, _, read in self.copies]
        self.files = sorted({*read, *(number for _, _, number, _ in self.values)})

    def _plan_tensor(self, key: str, leaf: torch.Tensor, boxes: Boxes) -> None:
        entry = self._index.tensors.get(key)
        if entry is None:
            if not math.prod(boxes.of(leaf)[1]):
                return  # A part of nothing is of no file.
            raise _mismatch(self._name, key, "is not in it")
        _check_alike(self._name, key, entry, leaf)
        reads = plan_reads(key, entry, boxes.of(leaf), self.own)
        local = local_part(leaf) if reads else leaf
        for read in reads:
            target = _narrowed(local, read.target_start, read.shape)
            self.copies.append((target, entry.dtype, read))


def files_needed(name: str, index: Index, state: dict[str, Any], rank: int) -> list[str]:
    """Return the files of a checkpoint that a rank must read to fill a state.

    Raises: ConfigError[state-mismatch]; IntegrityError[shard-missing].
    """
    return [index.files[number] for number in _Plan(name, index, state, rank).files]


class _Loading:
    """One rank's load in two halves: read and verify everything, then copy.

    A state is touched only in the second half, which cannot fail for anything a disk does.
    """

    def __init__(self, source: Source, state: dict[str, Any], rank: int) -> None:
        self.source = source
        self.manifest = source.manifest
        self._state = state
        self._plan = _Plan(self.manifest.id, source.index, state, rank)
        self._files = {
            number: source.read(source.index.files[number]) for number in self._plan.files
        }
        self._values = [
            (path, self._value(key, number, part)) for key, path, number, part in self._plan.values
        ]
        self.read_bytes = sum(len(data) for data in self._files.values())
        self.tier = source.tier
        self.repaired = source.repaired

    def _value(self, key: str, number: int, part: ValuePart) -> Any:
        content = self._files[number][part.offset : part.offset + part.bytes]
        try:
            return torch.load(io.BytesIO(content), weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            raise IntegrityError(
                "value-unsafe",
                f"{key} in checkpoint {self.manifest.id} is no plain value: {error}",
                remedy="Load another checkpoint.",
            ) from error

    def copy(self) -> None:
        """Write the verified bytes into the state."""
        with torch.no_grad():
            sources = [self._source(dtype, read) for _, dtype, read in self._plan.copies]
            if sources:
                torch._foreach_copy_([target for target, _, _ in self._plan.copies], sources)
        for path, value in self._values:
            container: Any = self._state
            for name in path[:-1]:
                container = container[name]
            container[path[-1]] = value

    def _source(self, dtype_in_file: str, read: Read) -> torch.Tensor:
        dtype = dtype_of(dtype_in_file)
        count = math.prod(read.piece.shape)
        data = self._files[read.piece.file]
        flat = torch.frombuffer(data, dtype=dtype, count=count, offset=read.piece.offset)
        return _narrowed(flat.view(read.piece.shape), read.source_start, read.shape)

    def report(self, begun_s: float, passed_over: Sequence[tuple[str, str]] = ()) -> LoadReport:
        """Say what the load did; begun_s on the monotonic clock."""
        return LoadReport(
            checkpoint=self.manifest.id,
            manifest=self.manifest,
            load_s=time.monotonic() - begun_s,
            read_bytes=self.read_bytes,
            passed_over=tuple(passed_over),
            tier=self.tier,
            repaired=self.repaired,
        )


def load(directory: str | Path, state: dict[str, Any], *, rank: int = 0) -> LoadReport:
    """Verify one checkpoint and copy it into state, in place; any mesh loads any checkpoint.

    Tensors of state are written through; plain values are replaced in the dict that holds them.
    What the checkpoint holds beyond the keys of state is left alone. No collective is used, and
    nothing in state is touched before every byte needed is verified.
    rank: whose file is read first where replicas leave a choice; pass the caller's own.
    Raises: IntegrityError as verify.verify, and [index-corrupt], [value-unsafe];
        ConfigError[state-mismatch] when a key is missing or has another shape or type.
    """
    begun_s = time.monotonic()
    loading = _Loading(FolderSource(directory), state, rank)
    loading.copy()
    return loading.report(begun_s)


def load_first(
    candidates: Sequence[tuple[str, Opener]], state: dict[str, Any], *, rank: int = 0
) -> LoadReport:
    """Load the first candidate that every rank can verify; collective over the default group.

    candidates: (checkpoint id, what opens it), best first, the same ids on all ranks.

    All ranks load the same one: each verifies what it needs, then they vote, then they copy. A
    vote costs one small all-reduce, and the reasons of a rejection travel only when there is one.
    Raises: IntegrityError[no-usable-checkpoint] when candidates were given and none is usable;
        Retryable[checkpoints-out-of-reach] when some could not be got at, and may be sound.
    """
    begun_s = time.monotonic()
    passed_over: list[tuple[str, str]] = []
    for name, opened in candidates:
        loading, error = None, ""
        try:
            loading = _Loading(opened(), state, rank)
        except MidwatchError as cause:
            error = str(cause)
        said = _Said(error) if loading is None else _Said("", loading.tier, loading.repaired)
        agreed = _agree(said)
        if loading is not None and not agreed.error:
            loading.copy()
            report = loading.report(begun_s, passed_over)
            return msgspec.structs.replace(report, tier=agreed.tier, repaired=agreed.repaired)
        passed_over.append((name, agreed.error))
    if passed_over:
        raise _no_candidate("; ".join(": ".join(pair) for pair in passed_over))
    return LoadReport("", None, time.monotonic() - begun_s, 0)


class _Said(msgspec.Struct, frozen=True):
    """What one rank has to say of a candidate, and what all of them say together."""

    error: str = ""
    tier: str = ""
    repaired: Repaired = ()


def _agree(said: _Said) -> _Said:
    """Return what holds for all ranks: the first refusal, the farthest tier, every repair.

    One small vote; only when a rank has something to say beyond "from the disk" do they talk.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return said
    device = "cpu" if "gloo" in dist.get_backend() else torch.accelerator.current_accelerator()
    is_odd = bool(said.error or said.repaired)
    marks = torch.tensor([is_odd, said.tier == "store"], dtype=torch.int32, device=device)
    dist.all_reduce(marks)
    odd, from_store = marks.tolist()
    tier = "store" if from_store else said.tier
    if not odd:
        return _Said("", tier)
    told: list[_Said] = [said] * dist.get_world_size()
    dist.all_gather_object(told, said)
    error = next((f"rank {rank}: {one.error}" for rank, one in enumerate(told) if one.error), "")
    repaired = {name: why for one in told for name, why in one.repaired}
    return _Said(error, tier, tuple(repaired.items()))


def _no_candidate(reasons: str) -> MidwatchError:
    message = f"no candidate could be loaded: {reasons}"
    if is_out_of_reach(reasons):
        return Retryable(
            "checkpoints-out-of-reach",
            message,
            delay_s=1.0,
            remedy="Bring the store back; the next attempt tries again.",
        )
    remedy = "Resume from an older checkpoint, or start afresh."
    return IntegrityError("no-usable-checkpoint", message, remedy=remedy)


def _narrowed(tensor: torch.Tensor, start: tuple[int, ...], shape: tuple[int, ...]) -> torch.Tensor:
    for dim, (first, length) in enumerate(zip(start, shape, strict=True)):
        if length != tensor.shape[dim]:
            tensor = tensor.narrow(dim, first, length)
    return tensor


def _check_alike(checkpoint: str, key: str, entry: TensorEntry, leaf: torch.Tensor) -> None:
    saved, wanted = (entry.dtype, entry.shape), (dtype_name(leaf.dtype), tuple(leaf.shape))
    if saved != wanted:
        told = f"is {saved[0]}{list(saved[1])} in it, but {wanted[0]}{list(wanted[1])} here"
        raise _mismatch(checkpoint, key, told)


def _mismatch(checkpoint: str, key: str, told: str) -> ConfigError:
    return ConfigError(
        "state-mismatch",
        f"checkpoint {checkpoint} does not fit this model: {key} {told}.",
        remedy="Resume with the configuration that saved it.",
    )
