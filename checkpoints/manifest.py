"""The manifest: what a checkpoint holds, where it came from, and the proof that it is whole.

A checkpoint is the directory `<run_dir>/checkpoints/step-00000120.a0003` (step, attempt). It exists
from the moment its manifest.json appears there, and not before: the manifest is written last, to a
temporary name, synced, then renamed. A directory without one is garbage of a save that never
finished. The manifest names every file with its size and SHA-256 and protects itself with a
checksum over its own body, so one flipped bit anywhere is noticed before any byte is trusted.
"""

from __future__ import annotations

import msgspec

from ..logbook.wire import CheckpointTags, Hyper, Mesh

FORMAT = 1


class FileEntry(msgspec.Struct, frozen=True):
    """One file of a checkpoint, as its writer measured it."""

    name: str
    bytes: int
    sha256: str


class Fingerprint(msgspec.Struct, frozen=True):
    """The environment that wrote a checkpoint; what differs explains surprises."""

    python: str
    torch: str
    midwatch: str
    platform: str
    config_digest: str
    gpu: str | None = None


class SaveHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What the training loop knows about the state that it hands over to be saved.

    step:      completed optimizer updates.
    data_step: sampler position of the next batch.
    hyper:     every change in force (skipped data ranges included).
    rng:       how the random state can be had again, e.g. "seed 17, counter-based".
    """

    step: int
    data_step: int
    hyper: Hyper
    tags: CheckpointTags
    rng: str = ""


class SaverConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a rank's saves that stays the same for one attempt.

    sync_files: fsync every file before the commit; only a bench has reason to switch it off.
    timeout_s:  how long one rank waits for the others inside a save.
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
