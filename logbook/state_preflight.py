"""What is known of the preflight under way: a part of RunState."""

from __future__ import annotations

import msgspec

from .events import PreflightJudged
from .plan import PreflightPlan
from .preflight import PreflightDone, SilentRank


class NodeAnswers(msgspec.Struct, frozen=True):
    """What the ranks of one node have said in a preflight."""

    done: tuple[PreflightDone, ...] = ()
    silent: tuple[SilentRank, ...] = ()


class PreflightState(msgspec.Struct, frozen=True):
    """The preflight under way. heard_s: since when its silence counts against it.

    begun: its nodes that are known to have got their order.
    answers: by node. num_answered: ranks that have answered, or ended without.
    lost_nodes: those of its nodes that were lost meanwhile. judged: its outcome, once it has one.
    """

    plan: PreflightPlan
    heard_s: float
    begun: tuple[str, ...] = ()
    answers: dict[str, NodeAnswers] = {}
    num_answered: int = 0
    lost_nodes: tuple[str, ...] = ()
    judged: PreflightJudged | None = None

    @property
    def done(self) -> list[PreflightDone]:
        return [done for node in self.answers.values() for done in node.done]

    @property
    def silent(self) -> list[SilentRank]:
        return [silent for node in self.answers.values() for silent in node.silent]
