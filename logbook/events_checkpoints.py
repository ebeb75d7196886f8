"""What can happen to checkpoints; part of events.py, through which everybody reads them."""

from __future__ import annotations

from .event_base import EventBase
from .wire import CheckpointTags


class CheckpointCommitted(EventBase, frozen=True, tag="checkpoint-committed"):
    """The manifest of a checkpoint appeared. blocked_s: how long the training loop stood still."""

    attempt: int
    checkpoint: str
    step: int
    bytes: int
    blocked_s: float
    save_s: float
    tags: CheckpointTags | None = None


class CheckpointFailed(EventBase, frozen=True, tag="checkpoint-failed"):
    attempt: int
    checkpoint: str
    step: int
    error: str


class CheckpointVerified(EventBase, frozen=True, tag="checkpoint-verified"):
    """Every byte of a committed checkpoint was read back. error "" means it is sound."""

    checkpoint: str
    error: str = ""


class CheckpointsPruned(EventBase, frozen=True, tag="checkpoints-pruned"):
    checkpoints: tuple[str, ...]


class CheckpointUploaded(EventBase, frozen=True, tag="checkpoint-uploaded"):
    """A checkpoint is in the durable store, whole: node was the first to say so.

    upload_s: since that node's part lay on its disk.
    """

    checkpoint: str
    node: str
    bytes: int
    upload_s: float


class UploadFailed(EventBase, frozen=True, tag="upload-failed"):
    """The uploads of a node do not get on since since_s; they are tried again all the time."""

    node: str
    code: str
    message: str
    since_s: float
