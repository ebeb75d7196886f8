"""How a run stands, as one document: what `midwatch status -o json` and the HTTP API answer."""

from __future__ import annotations

import msgspec

from .hearing import silence_text
from .live_view import doing_text
from .state import RunState
from .summary import RunSummary, summarize


class RunStatus(msgspec.Struct, frozen=True):
    """What the run is doing and why, after event seq, and its figures.

    heard_s: when it was heard of last, by an event or by the pulse of its controller.
    silent: a sentence where that is too long ago for a run at work, "" where it is not.
    """

    doing: str
    seq: int
    summary: RunSummary
    heard_s: float = 0.0
    silent: str = ""


def status_now(state: RunState, now_s: float, alive_s: float) -> RunStatus:
    """Return how a run stands at now_s. alive_s: the last pulse of its controller, 0.0 for none."""
    return RunStatus(
        doing=doing_text(state),
        seq=state.seq,
        summary=summarize(state, now_s),
        heard_s=max(state.time_s, alive_s),
        silent=silence_text(state, now_s, alive_s),
    )
