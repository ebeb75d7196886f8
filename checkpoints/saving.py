"""What happens to a staged copy of the state: each rank writes, rank 0 commits, all learn of it.

Runs on the writing thread, off the training loop, and knows neither torch nor how ranks talk: it is
given the bytes of this rank's file and an Exchange. Two small exchanges per save: every rank's
entry (or its failure) goes to rank 0, and rank 0's outcome comes back. If a rank dies in between,
the exchange fails on the others and no manifest is written: the checkpoint never existed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from ..logbook.decoding import prepared
from ..logbook.errors import MidwatchError, Retryable
from ..logbook.wire import CheckpointStage
from .index import INDEX_NAME, Index, RankPart, encode_index, merge_parts
from .manifest import FileEntry, Manifest, SaveHeader, SaverConfig, checkpoint_dir, checkpoint_id
from .shardfile import commit_manifest, remove_uncommitted, save_error, write_file

METADATA_NAME = ".metadata"
DESCRIPTION_NAMES = (INDEX_NAME, METADATA_NAME)
"""What says where everything lies: our index, and DCP's own."""
MAX_ERROR_CHARS = 600


Description = tuple[bytes, bytes]
"""The content of DESCRIPTION_NAMES."""


class Exchange(Protocol):
    """How the ranks of one save talk. Every call is collective and raises when a peer is gone."""

    def gather(self, payload: bytes) -> Sequence[bytes]:
        """Return every rank's payload in rank order on rank 0, nothing on the others."""
        ...

    def broadcast(self, payload: bytes) -> bytes:
        """Return rank 0's payload on every rank."""
        ...


class StagedFile(msgspec.Struct, frozen=True):
    """This rank's file, ready to be written; part is the same object until its layout changes."""

    name: str
    data: memoryview
    part: RankPart


class _RankReport(msgspec.Struct, frozen=True):
    entry: FileEntry | None
    part: RankPart | None = None
    error: str = ""


class Committer:
    """Carries saves of one rank to their end; rank 0 also keeps what describes the files.

    describe: returns the content of DCP's `.metadata` for an index; called on rank 0 only, and
        again only when a rank's layout has changed.
    """

    def __init__(
        self, config: SaverConfig, exchange: Exchange, describe: Callable[[Index], bytes]
    ) -> None:
        self._config = config
        self._exchange = exchange
        self._describe = describe
        self._parts: list[RankPart | None] = [None] * config.world_size
        self._description: Description | None = None
        self._sent: RankPart | None = None

    def run(self, header: SaveHeader, staged: StagedFile, begun_s: float) -> CheckpointStage:
        """Write this rank's file, have rank 0 commit; return the outcome, the same on all ranks.

        begun_s: time.monotonic() when the save was asked for. Never raises.
        """
        directory = checkpoint_dir(
            self._config.root, checkpoint_id(header.step, self._config.attempt)
        )
        part = None if staged.part is self._sent else staged.part
        report = self._write(directory, staged, part)
        try:
            reports = self._exchange.gather(msgspec.msgpack.encode(report))
            self._sent = staged.part
            outcome = b""
            if reports:
                outcome = msgspec.msgpack.encode(
                    self._conclude(directory, header, reports, begun_s)
                )
            return msgspec.msgpack.decode(
                self._exchange.broadcast(outcome), type=prepared(CheckpointStage)
            )
        except Exception as error:  # The death of a peer has no type of its own in torch.
            return failed(directory, header, lost_peer(error))

    def _write(self, directory: Path, staged: StagedFile, part: RankPart | None) -> _RankReport:
        try:
            directory.mkdir(exist_ok=True)
            entry = write_file(directory / staged.name, staged.data, sync=self._config.sync_files)
        except OSError as error:
            cause = save_error(error, directory)
            return _RankReport(None, part, f"rank {self._config.rank}: {cause}"[:MAX_ERROR_CHARS])
        return _RankReport(entry, part)

    def _conclude(
        self, directory: Path, header: SaveHeader, payloads: Sequence[bytes], begun_s: float
    ) -> CheckpointStage:
        # Whatever happens here, an outcome must go out: the other ranks are waiting for it.
        try:
            entries, cause = self._entries(payloads)
            if not cause:
                return self._commit(directory, header, entries, begun_s)
        except OSError as error:
            cause = str(save_error(error, directory))
        except MidwatchError as error:
            cause = str(error)
        except Exception as error:
            cause = f"[save-failed] {type(error).__name__}: {error}"
        remove_uncommitted(directory)
        return failed(directory, header, cause)

    def _entries(self, payloads: Sequence[bytes]) -> tuple[list[FileEntry], str]:
        """Return every rank's entry, and why there is none, "" when all ranks have written."""
        reports = [
            msgspec.msgpack.decode(payload, type=prepared(_RankReport)) for payload in payloads
        ]
        self._learn(reports)
        cause = next((report.error for report in reports if report.error), "")
        return [report.entry for report in reports if report.entry], cause

    def _learn(self, reports: Sequence[_RankReport]) -> None:
        for rank, report in enumerate(reports):
            if report.part is not None:
                self._parts[rank] = report.part
                self._description = None

    def _commit(
        self, directory: Path, header: SaveHeader, entries: list[FileEntry], begun_s: float
    ) -> CheckpointStage:
        entries += self._write_description(directory, self._described())
        manifest = self._manifest(header, entries)
        commit_manifest(directory, manifest, sync=self._config.sync_files)
        return committed(manifest, begun_s)

    def _described(self) -> Description:
        if self._description is None:
            index = merge_parts([part for part in self._parts if part is not None])
            self._description = encode_index(index), self._describe(index)
        return self._description

    def _write_description(self, directory: Path, description: Description) -> list[FileEntry]:
        return [
            write_file(directory / name, memoryview(content), sync=self._config.sync_files)
            for name, content in zip(DESCRIPTION_NAMES, description, strict=True)
        ]

    def _manifest(self, header: SaveHeader, entries: Sequence[FileEntry]) -> Manifest:
        config = self._config
        return Manifest(
            id=checkpoint_id(header.step, config.attempt),
            run=config.run,
            attempt=config.attempt,
            created_s=time.time(),
            mesh=config.mesh,
            world_size=config.world_size,
            header=header,
            fingerprint=config.fingerprint,
            files=tuple(entries),
            total_bytes=sum(entry.bytes for entry in entries),
            run_id="" if config.storage is None else config.storage.run_id,
        )


def committed(manifest: Manifest, begun_s: float) -> CheckpointStage:
    """Return the outcome of a save that went well; begun_s on the monotonic clock."""
    return CheckpointStage(
        manifest.id,
        manifest.step,
        "committed",
        bytes=manifest.total_bytes,
        save_s=time.monotonic() - begun_s,
        tags=manifest.header.tags,
    )


def failed(directory: Path, header: SaveHeader, error: str) -> CheckpointStage:
    """Return the outcome of a save that went wrong."""
    return CheckpointStage(
        directory.name, header.step, "failed", tags=header.tags, error=error[:MAX_ERROR_CHARS]
    )


def lost_peer(error: Exception) -> str:
    """Say that an exchange was cut off, which is how the death of a rank shows."""
    return str(
        Retryable(
            "peer-lost",
            f"the ranks could not finish the save together: {type(error).__name__}: {error}",
            delay_s=0.0,
            remedy="A new attempt saves again.",
        )
    )
