"""What the terminal logbook can do to a run: handed to it by whoever knows how."""

from __future__ import annotations

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


class Controls(Protocol):
    """The way to the controller. Both calls may take a while, and are made off the event loop."""

    def preview(self, state: RunState, ask: Ask) -> str:
        """Return what would be decided about a request now; nothing is changed."""
        ...

    def submit(self, ask: Ask) -> str:
        """Lay the request where the controller finds it; return its id. Raises MidwatchError."""
        ...

    def switches(self, state: RunState) -> tuple[str, ...]:
        """Return every NAME=MODE that a detector can be switched to."""
        ...
