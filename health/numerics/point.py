"""What the panel is fed, what a detector answers, and the shape every detector has."""

from __future__ import annotations

import math
from typing import Protocol

import msgspec

from ...logbook.findings import Severity

NAN = math.nan


class Point(msgspec.Struct, gc=False):
    """One logged point of a run.

    None means "not recorded at this point"; NaN or infinity means "recorded, and not finite". The
    difference matters: a log that prints its loss every tenth step is healthy, one whose loss field
    vanishes for good is not.
    Units:   loss nats/token; grad_norm before clipping; activation_norm L2, mean over tokens.
    skipped: how many optimizer steps were skipped since the point before (True counts as one).
             The grad_norm of such a point is not used: several frameworks print the previous one.
    """

    step: int
    loss: float | None = None
    grad_norm: float | None = None
    loss_scale: float | None = None
    activation_norm: float | None = None
    lr: float | None = None
    skipped: int = 0


class Signal(msgspec.Struct, frozen=True, gc=False):
    """What a detector says at one point, before the verdict merges it with what others say.

    ended: the episode that the detector had open is over; severity is then OBSERVE.
    momentary: stands for itself and opens no episode.
    """

    detector: str
    kind: str
    severity: Severity
    onset_step: int
    value: float
    reference: float
    message: str
    rank: int | None = None
    node: str | None = None
    ended: bool = False
    momentary: bool = False


class Detector(Protocol):
    """One way of looking at a run: one pass, constant memory, no clock, no randomness.

    observe() is edge-triggered: it answers when something begins, gets worse or ends, and None at
    every other point.
    """

    name: str

    def observe(self, point: Point) -> Signal | None:
        """Take one point; return what changed, if anything did."""
        ...

    def restarted(self, at_step: int) -> None:
        """Forget the open episode: the run continues from at_step, perhaps with another rate."""
        ...
