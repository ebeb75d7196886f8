"""How a run stands, as one document: what `midwatch status -o json` and the HTTP API answer."""

from __future__ import annotations

import msgspec

from .live_view import doing_text
from .state import RunState
from .summary import RunSummary, summarize


class RunStatus(msgspec.Struct, frozen=True):
    """What the run is doing and why, after event seq, and its figures."""

    doing: str
    seq: int
    summary: RunSummary


def status_now(state: RunState, now_s: float) -> RunStatus:
    """Return how a run stands at now_s."""
    return RunStatus(doing_text(state), state.seq, summarize(state, now_s))
