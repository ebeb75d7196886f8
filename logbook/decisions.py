"""What the controller can resolve to do, and the record of why it did.

A Decision is data: it names one Action, the reason, the evidence a person can check and the
alternatives passed over. It is journaled (events.DecisionMade) before anything is done about it.
"""

from __future__ import annotations

import msgspec

from .plan import AttemptPlan
from .wire import Command


class StartAttempt(msgspec.Struct, frozen=True, tag="start-attempt"):
    """Kill what is left of older attempts and start this one."""

    plan: AttemptPlan


class QuarantineNode(msgspec.Struct, frozen=True, tag="quarantine-node"):
    node: str


class PauseRun(msgspec.Struct, frozen=True, tag="pause-run"):
    """Stop the workers, keep everything, wait for a human."""

    code: str


class EndRun(msgspec.Struct, frozen=True, tag="end-run"):
    """The run is over: completed, or stopped on request."""

    stopped: bool


class SendCommand(msgspec.Struct, frozen=True, tag="send-command"):
    command: Command
    intervention: str | None = None


class RejectIntervention(msgspec.Struct, frozen=True, tag="reject-intervention"):
    intervention: str


class VerifyCheckpoint(msgspec.Struct, frozen=True, tag="verify-checkpoint"):
    checkpoint: str


class PruneCheckpoints(msgspec.Struct, frozen=True, tag="prune-checkpoints"):
    checkpoints: tuple[str, ...]


class CloseIncident(msgspec.Struct, frozen=True, tag="close-incident"):
    """The run trains again past the incident, or the incident came to nothing."""

    incident: str
    outcome: str


class Observe(msgspec.Struct, frozen=True, tag="observe"):
    """Nothing is done: the incident is only written down."""


Action = (
    StartAttempt
    | QuarantineNode
    | PauseRun
    | EndRun
    | SendCommand
    | RejectIntervention
    | VerifyCheckpoint
    | PruneCheckpoints
    | CloseIncident
    | Observe
)


class IncidentDraft(msgspec.Struct, frozen=True):
    """A new incident as first seen. fault is one of design.md's fault names, kebab-case.

    seen_s:  when the first sign reached the controller; step: last completed step then.
    node, rank: whom it is blamed on, None when nobody in particular.
    """

    id: str
    fault: str
    title: str
    step: int
    seen_s: float
    onset_step: int
    node: str | None = None
    rank: int | None = None


class Decision(msgspec.Struct, frozen=True):
    """What the controller resolved to do, why, on what evidence, and what it passed over.

    id is "attempt/seq" and names the action for ever: repeating the effect is harmless.
    evidence: (what, value) pairs a person can check. alternatives: (option, why not).
    reverts: interventions whose change is taken back by this decision.
    """

    id: str
    action: Action
    reason: str
    evidence: tuple[tuple[str, str], ...] = ()
    alternatives: tuple[tuple[str, str], ...] = ()
    incident: str | None = None
    opens: IncidentDraft | None = None
    reverts: tuple[str, ...] = ()
