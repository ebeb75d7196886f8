"""A save of which every node keeps its own part: its ranks' files, and what describes the whole.

Rank 0 gathers the entries of all ranks and proposes a manifest; the first rank of each node writes
it, with the index, beside that node's files; when all of them have, the checkpoint is committed.
So whichever nodes are left, each knows what its files belong to, and any of them can bring the
checkpoint to the store. Four small exchanges; the index travels only when it has changed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from ..logbook.decoding import prepared
from ..logbook.wire import CheckpointStage
from .index import Index
from .manifest import FileEntry, Manifest, SaveHeader, SaverConfig, checkpoint_dir, checkpoint_id
from .retention import collect_garbage
from .saving import (
    DESCRIPTION_NAMES,
    MAX_ERROR_CHARS,
    Committer,
    Description,
    Exchange,
    StagedFile,
    committed,
    failed,
    lost_peer,
)
from .shardfile import commit_manifest, entry_of, remove_uncommitted, save_error
from .store import LocalStore


class _Proposal(msgspec.Struct, frozen=True):
    """What rank 0 makes of the entries. description None: the same as the last time."""

    manifest: Manifest | None
    description: Description | None = None
    error: str = ""


class NodeCommitter(Committer):
    """Carries saves of one rank to their end; see saving.Committer."""

    def __init__(
        self, config: SaverConfig, exchange: Exchange, describe: Callable[[Index], bytes]
    ) -> None:
        super().__init__(config, exchange, describe)
        self._is_node_first = config.local_rank == 0
        self._local = LocalStore(config.root)
        self._held: Description | None = None
        self._proposed: Description | None = None
        self._is_swept = not self._is_node_first

    def run(self, header: SaveHeader, staged: StagedFile, begun_s: float) -> CheckpointStage:
        name = checkpoint_id(header.step, self._config.attempt)
        directory = checkpoint_dir(self._config.root, name)
        self._sweep()
        part = None if staged.part is self._sent else staged.part
        report = self._write(directory, staged, part)
        try:
            reports = self._exchange.gather(msgspec.msgpack.encode(report))
            self._sent = staged.part
            offer = msgspec.msgpack.encode(self._propose(header, reports)) if reports else b""
            proposal = msgspec.msgpack.decode(
                self._exchange.broadcast(offer), type=prepared(_Proposal)
            )
            acks = self._exchange.gather(self._keep(directory, proposal).encode())
            verdict = b""
            if acks:
                verdict = msgspec.msgpack.encode(
                    self._conclude_acks(directory, header, proposal, acks, begun_s)
                )
            outcome = msgspec.msgpack.decode(
                self._exchange.broadcast(verdict), type=prepared(CheckpointStage)
            )
        except Exception as error:  # The death of a peer has no type of its own in torch.
            return failed(directory, header, lost_peer(error))
        if outcome.stage == "failed":
            self._take_back(name)
        return outcome

    def _sweep(self) -> None:
        """Remove what the saves of dead attempts left on this node; nobody writes it any more."""
        if not self._is_swept:
            self._is_swept = True
            with contextlib.suppress(OSError):
                collect_garbage(self._local, self._config.attempt)

    def _propose(self, header: SaveHeader, payloads: Sequence[bytes]) -> _Proposal:
        # Whatever happens here, an answer must go out: the other ranks are waiting for it.
        try:
            entries, cause = self._entries(payloads)
            if cause:
                return _Proposal(None, error=cause)
            description = self._described()
            for name, content in zip(DESCRIPTION_NAMES, description, strict=True):
                entries.append(entry_of(name, memoryview(content)))
            is_new = description is not self._proposed
            self._proposed = description
            return _Proposal(self._manifest(header, entries), description if is_new else None)
        except Exception as error:
            self._proposed = None
            return _Proposal(None, error=_told(error))

    def _keep(self, directory: Path, proposal: _Proposal) -> str:
        """Write this node's description and manifest; return "" or why that was not possible."""
        if proposal.description is not None:
            self._held = proposal.description
        if proposal.manifest is None or not self._is_node_first:
            return ""
        assert self._held is not None
        try:
            written = self._write_description(directory, self._held)
            self._check(proposal.manifest, written)
            commit_manifest(directory, proposal.manifest, sync=self._config.sync_files)
        except OSError as error:
            return f"rank {self._config.rank}: {save_error(error, directory)}"[:MAX_ERROR_CHARS]
        return ""

    def _check(self, manifest: Manifest, written: Sequence[FileEntry]) -> None:
        for entry in written:
            assert entry == manifest.entry(entry.name)

    def _conclude_acks(
        self,
        directory: Path,
        header: SaveHeader,
        proposal: _Proposal,
        acks: Sequence[bytes],
        begun_s: float,
    ) -> CheckpointStage:
        cause = proposal.error or next((ack.decode() for ack in acks if ack), "")
        if cause or proposal.manifest is None:
            # A node that could not keep the index may lack it the next time, too.
            self._proposed = None
            return failed(directory, header, cause)
        return committed(proposal.manifest, begun_s)

    def _take_back(self, name: str) -> None:
        """Delete this node's part of a save that failed, its manifest included."""
        if self._is_node_first:
            # On a full disk a deletion has no room for its marker; what has no manifest needs none.
            remove_uncommitted(checkpoint_dir(self._config.root, name))
            with contextlib.suppress(OSError):
                self._local.delete(name)


def _told(error: Exception) -> str:
    code = getattr(error, "code", "")
    return (str(error) if code else f"[save-failed] {type(error).__name__}: {error}")[
        :MAX_ERROR_CHARS
    ]


def committer_for(
    config: SaverConfig, exchange: Exchange, describe: Callable[[Index], bytes]
) -> Committer:
    """Return who carries saves to their end: into one shared folder, or to each node's own."""
    kind = Committer if config.storage is None else NodeCommitter
    return kind(config, exchange, describe)
