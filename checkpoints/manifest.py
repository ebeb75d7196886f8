"""The manifest: what a checkpoint holds, where it came from, and the proof that it is whole.

A checkpoint is the directory `<run_dir>/checkpoints/step-00000120.a0003` (step, attempt). It exists
from the moment its manifest.json appears there, and not before: the manifest is written last, to a
temporary name, synced, then renamed. A directory without one is garbage of a save that never
finished. The manifest names every file with its size and SHA-256 and carries a checksum of its own
body, so that one flipped bit anywhere is noticed before any byte is trusted.
"""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from typing import Any

import msgspec

from ..logbook.decoding import prepared
from ..logbook.errors import IntegrityError
from ..logbook.tiers import Storage
from ..logbook.wire import CheckpointTags, Hyper, Mesh, StepSample

FORMAT = 1
MANIFEST_NAME = "manifest.json"
MANIFEST_TEMPORARY = "manifest.json.tmp"
MANIFEST_DELETING = "manifest.json.deleting"
CHECKPOINTS_DIR = "checkpoints"
RECENT_STEPS = 256
"""Steps told of with a saved state: those whose reports may be lost with their reporter."""

_ID = re.compile(r"step-(\d{8,})\.a(\d{4,})")


class FileEntry(msgspec.Struct, frozen=True):
    """One file of a checkpoint, as its writer measured it."""

    name: str
    bytes: int
    sha256: str


class Fingerprint(msgspec.Struct, frozen=True):
    """The environment that wrote a checkpoint; what differs explains surprises.

    packages: versions by name, of packages, libraries and the driver. config: the trainer's own
        configuration. Both are empty in checkpoints of before they were recorded.
    """

    python: str
    torch: str
    midwatch: str
    platform: str
    config_digest: str
    gpu: str | None = None
    packages: dict[str, str] = {}
    config: dict[str, Any] = {}


class SaveHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What the training loop knows about the state that it hands over to be saved.

    step:      completed optimizer updates.
    data_step: sampler position of the next batch.
    hyper:     every change in force (skipped data ranges included).
    rng:       how the random state can be had again, e.g. "seed 17, counter-based".
    is_ordered: whether it goes to disk on order, whatever the interval says.
    recent: samples of the last RECENT_STEPS steps, on the rank that reports them: whoever goes on
        from here can tell of those that nobody has heard of.
    """

    step: int
    data_step: int
    hyper: Hyper
    tags: CheckpointTags
    rng: str = ""
    is_ordered: bool = False
    recent: tuple[StepSample, ...] = ()


class SaverConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a rank's saves that stays the same for one attempt.

    sync_files: fsync every file before the commit; only a bench has reason to switch it off.
    timeout_s:  how long one rank waits for the others inside a save.
    local_rank: with a storage, the ranks of local rank 0 describe the checkpoint on their nodes.
    storage:    set when every node keeps its own part; run_dir is not written to then.
    """

    run: str
    run_dir: str
    attempt: int
    rank: int
    world_size: int
    mesh: Mesh
    fingerprint: Fingerprint
    sync_files: bool = True
    timeout_s: float = 600.0
    local_rank: int = 0
    storage: Storage | None = None

    @property
    def root(self) -> str:
        """Folder in which this rank's checkpoints stand."""
        return self.run_dir if self.storage is None else self.storage.local_root


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A committed checkpoint. created_s: seconds since the epoch at the commit.

    run_id: sets the run apart from another of the same name, as in wire.Storage.
    """

    id: str
    run: str
    attempt: int
    created_s: float
    mesh: Mesh
    world_size: int
    header: SaveHeader
    fingerprint: Fingerprint
    files: tuple[FileEntry, ...]
    total_bytes: int
    run_id: str = ""

    @property
    def step(self) -> int:
        return self.header.step

    def entry(self, name: str) -> FileEntry:
        """Return the entry of one file. Raises IntegrityError[shard-missing]."""
        for entry in self.files:
            if entry.name == name:
                return entry
        raise IntegrityError(
            "shard-missing",
            f"checkpoint {self.id} has no file {name} in its manifest.",
            remedy="Load another checkpoint.",
        )


class _Envelope(msgspec.Struct, frozen=True):
    format: int
    sha256: str
    manifest: msgspec.Raw


def checkpoint_id(step: int, attempt: int) -> str:
    """Return the id, which is also the directory name; ids of one attempt sort by step."""
    return f"step-{step:08d}.a{attempt:04d}"


def parse_checkpoint_id(name: str) -> tuple[int, int] | None:
    """Return (step, attempt), or None when name is not the id of a checkpoint."""
    match = _ID.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def checkpoint_dir(run_dir: str | Path, checkpoint: str) -> Path:
    """Return the directory of one checkpoint."""
    return Path(run_dir) / CHECKPOINTS_DIR / checkpoint


def encode(manifest: Manifest) -> bytes:
    """Return the file content: JSON a person can read, under a checksum of its body."""
    body = msgspec.json.format(msgspec.json.encode(_finite(msgspec.to_builtins(manifest))))
    digest = hashlib.sha256(body).hexdigest()
    return msgspec.json.encode(_Envelope(FORMAT, digest, msgspec.Raw(body))) + b"\n"


def decode(data: bytes) -> Manifest:
    """Return the manifest in data.

    Raises: IntegrityError[manifest-corrupt], IntegrityError[manifest-format].
    """
    try:
        envelope = msgspec.json.decode(data, type=prepared(_Envelope))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _corrupt(f"is not readable: {error}") from error
    if envelope.format != FORMAT:
        raise IntegrityError(
            "manifest-format",
            f"manifest has format {envelope.format}, this version reads {FORMAT}.",
            remedy="Use the version of midwatch that wrote it.",
        )
    body = bytes(envelope.manifest)
    if hashlib.sha256(body).hexdigest() != envelope.sha256:
        raise _corrupt("does not match its own checksum")
    try:
        return msgspec.json.decode(body, type=prepared(Manifest), strict=False)
    except msgspec.DecodeError as error:
        raise _corrupt(f"has unexpected content: {error}") from error


def read_manifest(directory: str | Path) -> Manifest:
    """Return the manifest of a checkpoint directory, checked against the directory's name.

    Raises: IntegrityError[manifest-missing], [manifest-corrupt], [manifest-format].
    """
    path = Path(directory) / MANIFEST_NAME
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise IntegrityError(
            "manifest-missing",
            f"{path} does not exist: the save never finished, or the checkpoint was deleted.",
            remedy="Load another checkpoint.",
        ) from error
    except OSError as error:
        raise _corrupt(f"cannot be read: {error}", path) from error
    try:
        manifest = decode(data)
    except IntegrityError as error:
        raise IntegrityError(error.code, f"{path}: {error.message}", remedy=error.remedy) from error
    if manifest.id != path.parent.name:
        raise _corrupt(f"belongs to checkpoint {manifest.id}", path)
    return manifest


def _corrupt(what: str, path: Path | None = None) -> IntegrityError:
    subject = f"{path}: manifest" if path else "manifest"
    return IntegrityError(
        "manifest-corrupt", f"{subject} {what}.", remedy="Load another checkpoint."
    )


def _finite(value: Any) -> Any:
    # JSON has no word for a loss of NaN, and a null would be lost on the way back.
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
