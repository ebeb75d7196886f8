"""What the last words and the log of a dead worker are about, and whether its node is to blame."""

from __future__ import annotations

import signal

from msgspec.structs import replace

from ..health.nodes.failure_text import Classification, classify
from ..health.nodes.labels import UNKNOWN
from ..health.nodes.verdicts import Action, Blame
from ..logbook import events as ev
from ..logbook.findings import Finding, Severity
from .policy.detectors import FAILURE_TEXT

CONFIDENCE_MIN = 0.8
"""A text costs a node its place only where it is as sure as this that the node is to blame."""
READ_PER_ATTEMPT = 4
"""Those that end first know why; thousands that follow them do not."""


class ExitReader:
    """Reads the first few exits of each attempt; one of them at most costs a node its place."""

    def __init__(self) -> None:
        self._attempt = -1
        self._left = 0
        self._has_blamed = False

    def read(
        self, event: ev.WorkerExited, traceback: str, step: int
    ) -> tuple[ev.WorkerExited, list[ev.Event]]:
        """Return the event with what its text reads like, and the finding that follows from it."""
        if event.attempt != self._attempt:
            self._attempt, self._left, self._has_blamed = event.attempt, READ_PER_ATTEMPT, False
        if self._left <= 0:
            return event, []
        self._left -= 1
        words = f"{traceback}\n{event.message}"
        found = classify(f"{event.log_tail}\n{words}", of_worker=True)
        if found.label == UNKNOWN:
            return event, []
        label = f"{found.label} ({found.blame}, {found.confidence:.2f})"
        known = replace(event, label=label)
        if self._has_blamed or not (blames_node(found) and _is_ended_by(event, words)):
            return known, []
        self._has_blamed = True
        return known, [ev.FindingSeen("", event.attempt, _finding(event, found, step))]


def blames_node(found: Classification) -> bool:
    """Whether a text is sure enough that its node must go; never for the program or its data."""
    takes_node = found.action in (Action.DRAIN, Action.EVICT)
    return takes_node and found.blame is Blame.NODE and found.confidence >= CONFIDENCE_MIN


def _is_ended_by(event: ev.WorkerExited, words: str) -> bool:
    """Whether it is a fault of the node that ended this worker, and not only stands in its log.

    A log may show anything, samples of the training data included. So an exception must blame the
    node by itself; without one the process must have aborted, as torch does on a broken GPU.
    """
    if event.code:
        return blames_node(classify(words, of_worker=True))
    return event.signal == signal.SIGABRT


def _finding(event: ev.WorkerExited, found: Classification, step: int) -> Finding:
    quoted = found.lines[0].text.strip()[:300] if found.lines else ""
    return Finding(
        detector=FAILURE_TEXT,
        kind=found.label,
        severity=Severity.WARN,
        step=step,
        onset_step=event.step,
        value=found.confidence,
        reference=CONFIDENCE_MIN,
        message=f"the end of rank {event.rank} reads like {found.label}: {quoted}",
        node=event.node,
        rank=event.rank,
        action=found.action.value,
    )
