"""What one rank can find out alone: arithmetic, memory, disk and checkpoint store.

Every check has one seam at which a test can put a fault of the kind that it exists to find: a
product that comes out wrong, a word that does not hold, a write that is refused.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..checkpoints.manifest import FileEntry
from ..checkpoints.shardfile import save_error, sync_directory, verify_file, write_file
from ..checkpoints.store_trial import try_store
from ..logbook.errors import IntegrityError, MidwatchError, Retryable
from ..logbook.preflight import (
    AWAY_CHECK,
    REACH_CHECK,
    SCRATCH_CHECK,
    CheckResult,
    PreflightLimits,
)
from ..logbook.tiers import Storage

SEED = 20_211_106
"""The same on every rank, so that products can be compared across ranks."""
_EXACT_SIZE = 256
_CHUNK_BYTES = 16 << 20
_PATTERNS = (0, -1, 0x5555555555555555, -0x5555555555555556)
_USE_ANOTHER = "Make it a folder that can be written to, or look at its file system."
_NAME_ANOTHER = "Let nodes.preflight_scratch (or --scratch) name a folder that can be written to."
_LOOK_AT_STORE = "See that this node can reach the store, and what its credentials may do there."
_MISNAMED = frozenset({errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EEXIST})
"""What a sound disk answers where its user asks for the wrong place."""
_REPAIR = "Take it out of service and have it repaired; do not train on it."


class LocalChecks:
    """The checks of one rank on one device."""

    def __init__(self, rank: int, node: str, device: torch.device, limits: PreflightLimits) -> None:
        self.checksum = ""
        self._rank = rank
        self._node = node
        self._device = device
        self._limits = limits

    # --- seams -----------------------------------------------------------------------------------

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a @ b, made on the device."""
        return a @ b

    def settle(self, words: Tensor) -> None:
        """Called between writing a pattern to memory and reading it back."""

    def write(self, path: Path, data: memoryview) -> FileEntry:
        """Write data durably and return its entry. Raises: OSError."""
        entry = write_file(path, data)
        sync_directory(path.parent)
        return entry

    # --- arithmetic ------------------------------------------------------------------------------

    def matmul(self) -> list[CheckResult]:
        """Multiply until burn_in_s are over; set checksum; return what came out differently."""
        limits, is_gpu = self._limits, self._device.type == "cuda"
        size = limits.device_matmul_size if is_gpu else limits.matmul_size
        random = torch.Generator().manual_seed(SEED)
        dtype = torch.bfloat16 if is_gpu else torch.float32
        a = torch.randn(size, size, generator=random).to(self._device, dtype)
        b = torch.randn(size, size, generator=random).to(self._device, dtype)
        first = self.multiply(a, b)
        self.checksum = bits_of(first)
        repeats = differing = 0
        started_s = time.perf_counter()
        while repeats < 2 or time.perf_counter() - started_s < limits.burn_in_s:
            again = self.multiply(a, b)
            differing += not torch.equal(_as_bits(again), _as_bits(first))
            repeats += 1
        spent_s = time.perf_counter() - started_s
        flops_per_s = 2.0 * size**3 * repeats / spent_s
        said = f"{differing} of {repeats} equal products differ from the first"
        speed = f"{repeats} products, {flops_per_s:.3g} flop/s"
        wrong = self._wrong_products()
        return [
            self._result(
                "matmul-repeat",
                ok=not differing,
                quantity="differing_products_total",
                value=differing,
                message=said if differing else speed,
            ),
            self._result(
                "matmul-exact",
                ok=not wrong,
                quantity="wrong_products_total",
                value=wrong,
                message="a product of small integers is not the known one" if wrong else "",
            ),
        ]

    def _wrong_products(self, repeats: int = 4) -> int:
        """Return how many products of integers came out wrong, of some with a known answer.

        Integers up to 8 have products that float32 holds exactly in whatever order they are summed
        (TF32 too), so the weighted sum r C s of the result can be known without making C:
        (r A)(B s), in exact integers. A single wrong element changes it, since no weight is 0.
        """
        wrong = 0
        random = np.random.default_rng(SEED)
        shape = (_EXACT_SIZE, _EXACT_SIZE)
        for _ in range(repeats):
            a, b = random.integers(-8, 9, shape), random.integers(-8, 9, shape)
            r, s = random.integers(1, 256, _EXACT_SIZE), random.integers(1, 256, _EXACT_SIZE)
            on_device = [torch.from_numpy(m).to(self._device, torch.float32) for m in (a, b)]
            c = self.multiply(on_device[0], on_device[1]).cpu().numpy()
            wrong += not _is_whole(c) or int(r @ c.astype(np.int64) @ s) != int((r @ a) @ (b @ s))
        return wrong

    # --- memory ----------------------------------------------------------------------------------

    def memory(self) -> list[CheckResult]:
        """Fill memory with patterns and read them back: every bit high and low, beside each other.

        The pattern made of each word's own number finds address lines that lead to another word.
        """
        words = torch.empty(self._num_words(), dtype=torch.int64, device=self._device)
        chunk = _CHUNK_BYTES // words.element_size()
        wrong = 0
        for pattern in (*_PATTERNS, *self._walking()):
            words.fill_(pattern)
            self.settle(words)
            wrong += sum(int((part != pattern).sum()) for part in words.split(chunk))
        parts = words.split(chunk)
        for index, part in enumerate(parts):
            part.copy_(_numbers(index * chunk, part))
        self.settle(words)
        for index, part in enumerate(parts):
            wrong += int((part != _numbers(index * chunk, part)).sum())
        size_bytes = words.numel() * words.element_size()
        return [
            self._result(
                "memory",
                ok=not wrong,
                quantity="wrong_words_total",
                value=wrong,
                message=f"{wrong} words did not hold" if wrong else f"{size_bytes} bytes",
            )
        ]

    def _num_words(self) -> int:
        if self._device.type == "cuda":
            free_bytes = int(torch.cuda.mem_get_info(self._device)[0])
            wanted_bytes = self._limits.device_memory_bytes
        else:
            free_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            wanted_bytes = self._limits.memory_bytes
        return max(min(wanted_bytes, free_bytes // 2) // 8, 1)

    def _walking(self) -> Iterator[int]:
        for bit in range(0, 64, self._limits.walking_stride_bits):
            one = 1 << bit
            yield one - (1 << 64) if bit == 63 else one

    # --- disk ------------------------------------------------------------------------------------

    def disk(self, folder: str) -> list[CheckResult]:
        """Try the node's own disk: room, and a file written, synced and read back.

        A folder that cannot be made or written to by whoever trains says nothing about the disk.
        """
        misnamed = self._misnamed(folder)
        if misnamed:
            return [
                CheckResult(
                    name=SCRATCH_CHECK,
                    node=self._node,
                    rank=None,
                    ok=False,
                    quantity="usable_folders_total",
                    value=0.0,
                    limit=1.0,
                    message=f"{folder} cannot be used: {misnamed}",
                    remedy=_NAME_ANOTHER,
                )
            ]
        return [self._room(folder), self._file("disk-write", Path(folder))]

    def store(self, folder: str) -> list[CheckResult]:
        """Try the place of the checkpoints, written to as a save does."""
        return [self._file("store-write", Path(folder))]

    def reach(self, storage: Storage, run: str) -> list[CheckResult]:
        """Try the durable store, whose failures that may pass are tried again for a while."""
        began_s = time.perf_counter()
        name, message, remedy = REACH_CHECK, "", ""
        try:
            try_store(storage, run, self._node, self._limits.group_timeout_s)
        except MidwatchError as error:
            name = AWAY_CHECK if isinstance(error, Retryable) else REACH_CHECK
            message, remedy = str(error), error.remedy or _LOOK_AT_STORE
        except Exception as error:
            # Of a credential helper, say: whatever it is, it is not what the other checks found.
            name, message, remedy = AWAY_CHECK, f"{type(error).__name__}: {error}", _LOOK_AT_STORE
        took_s = time.perf_counter() - began_s
        return [
            CheckResult(
                name=name,
                node=self._node,
                rank=None,
                ok=not message,
                quantity="usable_stores_total",
                value=float(not message),
                limit=1.0,
                message=message or f"written, read back and removed in {took_s:.3f} s",
                remedy=remedy,
            )
        ]

    def _misnamed(self, folder: str) -> str:
        """Return why no file can be put there, "" where one can, or where the disk is at fault."""
        path = Path(folder) / f".preflight-path-{self._node}-{os.getpid()}"
        try:
            os.makedirs(folder, exist_ok=True)
            path.touch()
            path.unlink()
        except OSError as error:
            return (error.strerror or str(error)) if error.errno in _MISNAMED else ""
        return ""

    def _room(self, folder: str) -> CheckResult:
        free_bytes = 0
        message = ""
        try:
            os.makedirs(folder, exist_ok=True)
            status = os.statvfs(folder)
            free_bytes = status.f_bavail * status.f_frsize
        except OSError as error:
            message = f"{folder} cannot be used: {error.strerror or error}"
        limit = self._limits.disk_free_bytes_min
        ok = free_bytes >= limit
        return CheckResult(
            name="disk-free",
            node=self._node,
            rank=None,
            ok=ok,
            quantity="free_bytes",
            value=float(free_bytes),
            limit=float(limit),
            message=message or ("" if ok else f"{folder} is nearly full"),
            remedy="" if ok else _USE_ANOTHER if message else "Free space on it.",
        )

    def _file(self, name: str, folder: Path) -> CheckResult:
        """Write, sync, drop from the page cache, read back, compare; leave nothing behind."""
        path = folder / f".preflight-{self._node}-{os.getpid()}"
        size = self._limits.disk_bytes
        data = np.random.default_rng(SEED).integers(0, 256, size, np.uint8).data
        wrote_s = read_s = 0.0
        message = remedy = ""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            started_s = time.perf_counter()
            entry = self.write(path, data)
            wrote_s = time.perf_counter() - started_s
            _forget(path)
            started_s = time.perf_counter()
            verify_file(folder, entry)
            read_s = time.perf_counter() - started_s
        except OSError as error:
            is_full = save_error(error, path).code == "disk-full"
            message = f"{folder} cannot be written to: {error.strerror or error}"
            remedy = "Free space on it." if is_full else _USE_ANOTHER
        except IntegrityError as error:
            message = f"what was written to {folder} was not read back: {error.code}"
            remedy = "Replace the disk, or have the storage looked at."
        finally:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        speed = size / wrote_s if wrote_s and not message else 0.0
        limit = self._limits.disk_bytes_per_s_min
        if not message and speed < limit:
            message, remedy = f"{folder} is slow", "Find out who else uses it, and its health."
        ok = not message
        return CheckResult(
            name=name,
            node=self._node,
            rank=None,
            ok=ok,
            quantity="written_bytes_per_s",
            value=speed,
            limit=limit,
            message=message or f"{size} bytes synced in {wrote_s:.3f} s, read in {read_s:.3f} s",
            remedy=remedy,
        )

    def _result(
        self, name: str, *, ok: bool, quantity: str, value: float, message: str
    ) -> CheckResult:
        return CheckResult(
            name=name,
            node=self._node,
            rank=self._rank,
            ok=ok,
            quantity=quantity,
            value=float(value),
            limit=0.0,
            message=message,
            remedy="" if ok else _REPAIR,
        )


def _is_whole(c: NDArray[np.float32]) -> bool:
    """Whether c holds whole numbers only, none so large that an exact sum could overflow."""
    return bool((np.abs(c) < 2**24).all() and (c == np.rint(c)).all())


def bits_of(x: Tensor) -> str:
    """Return a checksum of the exact bits of x."""
    return hashlib.sha256(_as_bits(x).cpu().numpy().tobytes()).hexdigest()[:16]


def _as_bits(x: Tensor) -> Tensor:
    # Compared as integers: a NaN does not equal itself, and zero equals minus zero.
    return x.view(torch.int16 if x.element_size() == 2 else torch.int32)


def _numbers(first: int, like: Tensor) -> Tensor:
    return torch.arange(first, first + like.numel(), dtype=torch.int64, device=like.device)


def _forget(path: Path) -> None:
    """Have the next read of path come from the disk, as far as the kernel is willing."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
