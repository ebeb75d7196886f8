"""What the terminal logbook can do to a run: handed to it by whoever knows how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from ..interventions import Answers, Form
from ..state import RunState


class Ask(msgspec.Struct, frozen=True):
    """A form filled in, and why.

    expect_attempt: the attempt its author saw, where that counts. seen_seq: the newest event then.
    """

    form: Form
    answers: Answers
    reason: str
    expect_attempt: int | None = None
    seen_seq: int | None = None


class Places(msgspec.Struct, frozen=True):
    """Where checkpoints lie now, as somebody has looked.

    tiers: of each checkpoint that lies anywhere. trouble: why something could not be seen.
    """

    tiers: Mapping[str, tuple[str, ...]]
    trouble: str = ""


class Controls(Protocol):
    """The way to the controller. Its calls may take a while, and are made off the event loop."""

    def preview(self, state: RunState, ask: Ask) -> str:
        """Return what would be decided about a request now; nothing is changed."""
        ...

    def submit(self, ask: Ask) -> str:
        """Lay the request where the controller finds it; return its id. Raises MidwatchError."""
        ...

    def switches(self, state: RunState) -> tuple[str, ...]:
        """Return every NAME=MODE that a detector can be switched to."""
        ...

    def places(self, state: RunState) -> Places:
        """Look where the checkpoints of a run lie."""
        ...
