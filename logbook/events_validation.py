"""What is measured on held-out text; part of events.py, through which everybody reads it."""

from __future__ import annotations

import math

from .event_base import EventBase


class ValidationUnderWay(EventBase, frozen=True, tag="validation-under-way"):
    """The ranks measure the weights of a step on held-out text: done of total rounds so far.

    Told at the start and every few seconds, so that a long measurement is not taken for silence.
    """

    attempt: int
    step: int
    done: int
    total: int


class ValidationDone(EventBase, frozen=True, tag="validation"):
    """The loss on held-out text of the weights after a step, mean over ranks.

    Units: loss nats/token. ended_s: when the ranks were done; spent_s: how long training waited.
    """

    attempt: int
    step: int
    loss: float
    sequences: int
    tokens: int
    ended_s: float
    spent_s: float

    @property
    def perplexity(self) -> float:
        """exp(loss), infinite where that is past any number."""
        return perplexity_of(self.loss)


def perplexity_of(loss: float) -> float:
    """Return the perplexity that a mean loss in nats/token amounts to."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
