"""What is known of each checkpoint; part of state.py, through which everybody reads it."""

from __future__ import annotations

import msgspec

from .findings import Severity
from .trend import Trend
from .wire import CheckpointTags


class FindingMark(msgspec.Struct, frozen=True):
    """A finding near a checkpoint; steps: how many lie between the two."""

    kind: str
    severity: Severity
    steps: int


class SaveCost(msgspec.Struct, frozen=True):
    """What one save cost: how long the loop stood still, and how long until the commit."""

    step: int
    blocked_s: float
    save_s: float


class SaveTrouble(msgspec.Struct, frozen=True):
    """Saves that failed one after the other.

    attempt, step, error: of the last of them. num: how many in a row. since_s: when the first
    failed. over_s: when one was committed after them, None while that is yet to come.
    """

    attempt: int
    step: int
    error: str
    since_s: float
    num: int = 1
    over_s: float | None = None


class CheckpointState(msgspec.Struct, frozen=True):
    """One committed checkpoint and what became of the run after it.

    verified: None until its bytes were read back. abandoned: it belongs to a lineage that a
    rollback left behind. quarantined holds the reason, "" when it may be used.
    before, after: the last finding about the run's numbers before it, the first after it.
    num_resumed: attempts that trained on from it. num_failed: restarts from it in a row that made
        no step, where nothing else was to blame. num_passed_over: loads that could not use it.
    doubted_s: since when it is not verified any more; a reading asked for later may clear it.
    uploaded_s: when it was whole in the durable store, None while it is not, or there is none.
    """

    checkpoint: str
    step: int
    attempt: int
    bytes: int
    time_s: float
    save_s: float
    blocked_s: float
    tags: CheckpointTags | None
    verify_asked_s: float | None = None
    verified: bool | None = None
    error: str = ""
    abandoned: bool = False
    quarantined: str = ""
    activation_trend: Trend = Trend()
    grad_trend: Trend = Trend()
    before: FindingMark | None = None
    after: FindingMark | None = None
    num_resumed: int = 0
    num_failed: int = 0
    num_passed_over: int = 0
    doubted_s: float | None = None
    uploaded_s: float | None = None
