"""What an agent and its uploader process say to each other: frames on two pipes, as in wire."""

from __future__ import annotations

import msgspec

from ...logbook.events import CheckpointCommitted
from ...logbook.tiers import Storage
from ...logbook.wire import FrameReader

BAD_MAX, BAD_CHARS_MAX = 500, 500


class UploadConfig(msgspec.Struct, frozen=True, kw_only=True, tag="config"):
    """What an agent's uploads are set up with. env: on top of the agent's own."""

    run: str
    storage: Storage
    keep_local: int = 2
    env: dict[str, str] = {}


# --- agent -> uploader ---------------------------------------------------------------------------


class Forget(msgspec.Struct, frozen=True, tag="forget"):
    """Delete this node's parts of checkpoints that retention has let go."""

    checkpoints: tuple[str, ...]


class Delete(msgspec.Struct, frozen=True, tag="delete"):
    """Delete checkpoints from the store."""

    checkpoints: tuple[str, ...]


class Sweep(msgspec.Struct, frozen=True, tag="sweep"):
    """Remove from the store what attempts older than this one left unfinished."""

    attempt: int


class CheckPart(msgspec.Struct, frozen=True, tag="check-part"):
    """Read back the files of a checkpoint that lie on this node."""

    checkpoint: str


class CheckStored(msgspec.Struct, frozen=True, tag="check-stored"):
    """Read back these files of a checkpoint from the store; names None: all of them."""

    checkpoint: str
    names: tuple[str, ...] | None = None


Errand = Forget | Delete | Sweep | CheckPart | CheckStored


class Request(msgspec.Struct, frozen=True, tag="request"):
    """An errand under a number that its answer carries."""

    number: int
    errand: Errand


# --- uploader -> agent ---------------------------------------------------------------------------


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """What came of an errand. error "" means that it was done.

    sound, bad: of a reading back: names, and (name, why).
    missing: files of the checkpoint that are not on this node.
    """

    number: int = 0
    error: str = ""
    sound: tuple[str, ...] = ()
    bad: tuple[tuple[str, str], ...] = ()
    missing: tuple[str, ...] = ()


class PartFound(msgspec.Struct, frozen=True, tag="part-found"):
    """A part of a committed checkpoint lies on this node; held: which of its num_files files."""

    commit: CheckpointCommitted
    held: tuple[str, ...]
    num_files: int


class Stored(msgspec.Struct, frozen=True, tag="stored"):
    """A checkpoint is in the store, upload_s after its part lay here; each node says so."""

    checkpoint: str
    bytes: int
    upload_s: float


class Trouble(msgspec.Struct, frozen=True, tag="trouble"):
    """Uploads do not get on, since then (seconds since the epoch)."""

    code: str
    message: str
    since_s: float


News = Answer | PartFound | Stored | Trouble
Order = UploadConfig | Request


def order_reader() -> FrameReader[Order]:
    """Return the reader an uploader uses on its standard input; the first is its config."""
    return FrameReader(Order)


def news_reader() -> FrameReader[News]:
    """Return the reader an agent uses on its uploader's standard output."""
    return FrameReader(News)


def bounded(answer: Answer) -> Answer:
    """Return an answer that fits into a frame however much is wrong."""
    bad = tuple((name, why[:BAD_CHARS_MAX]) for name, why in answer.bad[:BAD_MAX])
    return msgspec.structs.replace(answer, bad=bad, error=answer.error[: BAD_CHARS_MAX * 4])
