"""What the controller can resolve to do, and the record of why it did.

A Decision is data: it names one Action, the reason, the evidence a person can check and the
alternatives passed over. It is journaled (events.DecisionMade) before anything is done about it.
"""

from __future__ import annotations

import msgspec

from .plan import AttemptPlan, PreflightPlan
from .wire import Command


class StartAttempt(msgspec.Struct, frozen=True, tag="start-attempt"):
    """Kill what is left of older attempts and start this one.

    rollback_onset: onset step of the numeric trouble that this attempt rolls back from; None for
        a first start or a hardware fault.
    lr_factor:   what the learning rate is multiplied by for this rollback.
    quarantines: checkpoints not to be resumed from again.
    intervention: the request that this attempt answers, "" where nobody asked for it.
    """

    plan: AttemptPlan
    rollback_onset: int | None = None
    lr_factor: float = 1.0
    quarantines: tuple[str, ...] = ()
    intervention: str = ""


class RunPreflight(msgspec.Struct, frozen=True, tag="run-preflight"):
    """Try these nodes out, in worker processes of their own; a gate ends what is left of attempts.

    A node that carries ranks is never tried out beside them.
    """

    plan: PreflightPlan


class EndPreflight(msgspec.Struct, frozen=True, tag="end-preflight"):
    """The outcome of a preflight is known: end what is left of it."""

    preflight: int


class QuarantineNode(msgspec.Struct, frozen=True, tag="quarantine-node"):
    """Place nothing on this node until it is released."""

    node: str


class ReleaseNode(msgspec.Struct, frozen=True, tag="release-node"):
    """A quarantined node may be used again."""

    node: str


class ResumeRun(msgspec.Struct, frozen=True, tag="resume-run"):
    """A human set a paused run going again; spent budgets start anew."""


class AwaitNodes(msgspec.Struct, frozen=True, tag="await-nodes"):
    """Stop the workers; the run goes on by itself as soon as enough nodes are usable."""


ON_REQUEST = "on-request"
"""The code of a pause that a person has asked for."""


class PauseRun(msgspec.Struct, frozen=True, tag="pause-run"):
    """Stop the workers, keep everything, wait for a human."""

    code: str


class EndRun(msgspec.Struct, frozen=True, tag="end-run"):
    """The run is over: completed, or stopped on request, its state saved."""

    stopped: bool
    step: int


class SendCommand(msgspec.Struct, frozen=True, tag="send-command"):
    """Give every rank an order; intervention names the request it answers."""

    command: Command
    intervention: str | None = None


class RejectIntervention(msgspec.Struct, frozen=True, tag="reject-intervention"):
    """Refuse a request; the decision's reason says why."""

    intervention: str


class CompleteIntervention(msgspec.Struct, frozen=True, tag="complete-intervention"):
    """A request that needs no order to the ranks has been carried out by another decision."""

    intervention: str


class ExpireIntervention(msgspec.Struct, frozen=True, tag="expire-intervention"):
    """A change that was made for a while is over; not every rank has said so."""

    intervention: str


class AcknowledgeIncident(msgspec.Struct, frozen=True, tag="acknowledge-incident"):
    """A person has taken note of an incident."""

    incident: str
    by: str


class VerifyCheckpoint(msgspec.Struct, frozen=True, tag="verify-checkpoint"):
    """Have an agent read every byte of a committed checkpoint back."""

    checkpoint: str


class QuarantineCheckpoint(msgspec.Struct, frozen=True, tag="quarantine-checkpoint"):
    """Resume from this checkpoint no more until a person releases it."""

    checkpoint: str


class ReleaseCheckpoint(msgspec.Struct, frozen=True, tag="release-checkpoint"):
    """A quarantined checkpoint may be resumed from again."""

    checkpoint: str


class PinCheckpoint(msgspec.Struct, frozen=True, tag="pin-checkpoint"):
    """Keep this checkpoint, whatever retention says."""

    checkpoint: str


class UnpinCheckpoint(msgspec.Struct, frozen=True, tag="unpin-checkpoint"):
    """Leave a pinned checkpoint to retention again."""

    checkpoint: str


class PruneCheckpoints(msgspec.Struct, frozen=True, tag="prune-checkpoints"):
    """Delete checkpoints that retention no longer keeps."""

    checkpoints: tuple[str, ...]


class CloseIncident(msgspec.Struct, frozen=True, tag="close-incident"):
    """The run trains again past the incident, or the incident came to nothing."""

    incident: str
    outcome: str


class SetDetector(msgspec.Struct, frozen=True, tag="set-detector"):
    """Switch a detector. mode: "act", "shadow" (recorded, no action) or "off"."""

    detector: str
    mode: str


class Observe(msgspec.Struct, frozen=True, tag="observe"):
    """Nothing is done: the incident is only written down."""


Action = (
    StartAttempt
    | RunPreflight
    | EndPreflight
    | QuarantineNode
    | ReleaseNode
    | ResumeRun
    | CompleteIntervention
    | AwaitNodes
    | PauseRun
    | EndRun
    | SendCommand
    | RejectIntervention
    | ExpireIntervention
    | AcknowledgeIncident
    | VerifyCheckpoint
    | QuarantineCheckpoint
    | ReleaseCheckpoint
    | PinCheckpoint
    | UnpinCheckpoint
    | PruneCheckpoints
    | CloseIncident
    | SetDetector
    | Observe
)


class IncidentDraft(msgspec.Struct, frozen=True):
    """A new incident as first seen. fault is one of design.md's fault names, kebab-case.

    seen_s:  when the first sign reached the controller; step: last completed step then.
    node, rank: whom it is blamed on, None when nobody in particular.
    finding: id of the finding behind it, if one is.
    """

    id: str
    fault: str
    title: str
    step: int
    seen_s: float
    onset_step: int
    node: str | None = None
    rank: int | None = None
    is_numeric: bool = False
    finding: str = ""


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
