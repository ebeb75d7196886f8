"""The state of a run: what a fold of its journal amounts to.

Controller, terminal, notes, report and `midwatch status` all read this one structure. Everything
in it is an immutable value: a dict held here is replaced, never changed.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from .decisions import CloseIncident, Decision, IncidentDraft, Observe
from .energy import Energy
from .events import (
    FaultInjected,
    FindingSeen,
    HangSuspected,
    InterventionRequested,
    StartFailed,
    UploadFailed,
    ValidationDone,
    ValidationUnderWay,
    WorkerExited,
)
from .plan import AttemptPlan
from .quantile import RunningMedian
from .state_checkpoints import CheckpointState as CheckpointState
from .state_checkpoints import FindingMark as FindingMark
from .state_checkpoints import SaveCost as SaveCost
from .state_checkpoints import SaveTrouble as SaveTrouble
from .state_nodes import NodeState as NodeState
from .state_preflight import NodeAnswers as NodeAnswers
from .state_preflight import PreflightState as PreflightState
from .wire import CheckpointTags, Hyper, StepSample

RECENT_STEPS = 256
RECENT_FINDINGS = 64
RECENT_SAVES = 16
RECENT_VALIDATIONS = 64
MAX_REMARKS = 64
TREND_STEPS = 50


class Status(StrEnum):
    """What the run is doing, in one word."""

    NEW = "new"
    WAITING = "waiting"
    STARTING = "starting"
    TRAINING = "training"
    RECOVERING = "recovering"
    STOPPING = "stopping"
    PAUSED = "paused"
    COMPLETED = "completed"
    STOPPED = "stopped"

    @property
    def is_terminal(self) -> bool:
        return self in (Status.COMPLETED, Status.STOPPED)


class AttemptState(msgspec.Struct, frozen=True):
    """The current attempt and every sign of trouble it has shown. Times are seconds since epoch.

    heard_s: since when silence counts against it: its start, its last step, or the start of a
        controller, which heard nothing before.
    unheard: its nodes that a controller which took over has yet to hear of; what they have kept
        for it may hold the cause of what others tell. listening_s: when it took over, or heard of
        the last one since.
    signal_s: when the first sign of failure was recorded; None while all is well.
    tier, repaired, differs: as in events.AttemptResumed.
    readback: what its ranks read back last from their live objects.
    finished_step, finished_s: the last step of the ranks in finished, and when the last of them
        told of it; step 0 where none has.
    """

    plan: AttemptPlan
    started_s: float
    heard_s: float = 0.0
    unheard: tuple[str, ...] = ()
    listening_s: float = 0.0
    pids: dict[str, tuple[int, ...]] = {}
    resumed_s: float | None = None
    resumed_step: int = 0
    resumed_from: str = ""
    load_s: float = 0.0
    passed_over: tuple[tuple[str, str], ...] = ()
    tier: str = ""
    repaired: tuple[tuple[str, str], ...] = ()
    differs: tuple[str, ...] = ()
    first_step_s: float | None = None
    num_steps: int = 0
    signal_s: float | None = None
    exits: tuple[WorkerExited, ...] = ()
    lost_nodes: tuple[tuple[str, str], ...] = ()
    start_failures: tuple[StartFailed, ...] = ()
    hangs: tuple[HangSuspected, ...] = ()
    alarm: FindingSeen | None = None
    finished: tuple[int, ...] = ()
    finished_step: int = 0
    finished_s: float = 0.0
    stopped: bool = False
    readback: dict[str, float] = {}

    @property
    def number(self) -> int:
        return self.plan.attempt

    @property
    def is_finished(self) -> bool:
        """Whether every rank reached the end (or stopped on request)."""
        return len(self.finished) >= self.plan.mesh.world_size

    @property
    def is_well_ended(self) -> bool:
        """Whether every rank has finished with numbers that nobody called sick.

        Who stops a run takes its numbers as they are.
        """
        return self.is_finished and (self.stopped or self.alarm is None)


class Remark(msgspec.Struct, frozen=True):
    """What a person added to the record, and where it stands there. id: as in events.NoteAdded."""

    by: str
    text: str
    time_s: float
    seq: int
    id: str = ""


class Incident(msgspec.Struct, frozen=True):
    """Something that went wrong, from the first sign to the outcome.

    onset_s: as onset.py has it. step_before, lr_before and loss_before are of the last step before
        the answer, lr_after and loss_after of the first step after it. steps_lost counts completed
        steps to be trained again.
    tier, differs: of the load that answered it, as in events.AttemptResumed.
    remarks: what people added to its note, oldest first.
    acknowledged: the person who has taken note of it and why, "" before one has.
    """

    draft: IncidentDraft
    opened_s: float
    opened_seq: int
    attempt_before: int
    step_before: int = 0
    onset_s: float | None = None
    decisions: tuple[Decision, ...] = ()
    attempt_after: int | None = None
    checkpoint: str | None = None
    checkpoint_tags: CheckpointTags | None = None
    tier: str = ""
    differs: tuple[str, ...] = ()
    steps_lost: int = 0
    lr_before: float | None = None
    lr_after: float | None = None
    loss_before: float | None = None
    loss_after: float | None = None
    recovered_s: float | None = None
    closed_s: float | None = None
    outcome: str = ""
    remarks: tuple[Remark, ...] = ()
    acknowledged: str = ""

    @property
    def is_watched(self) -> bool:
        """Whether nothing was done about it but to write it down, and in the end to close it."""
        notes = (Observe, CloseIncident)
        return all(isinstance(decision.action, notes) for decision in self.decisions)

    @property
    def is_open(self) -> bool:
        return self.closed_s is None


class Intervention(msgspec.Struct, frozen=True):
    """A person's change and how far it got.

    stage: requested | rejected | sent | scheduled | applied | expired | failed | reverted.
    at_step, until_step: its first step, and the first step after it (None: for good).
    acks, expired_acks: ranks that have said so of its beginning, and of its end.
    previous, readback, after: what ranks held before, under it, and after its end.
    sent_attempt, sent_s, num_sent: to which attempt it was last sent, when, and how many times so.
    applied_s: when the first rank said that it holds, 0.0 before one has.
    """

    request: InterventionRequested
    requested_s: float
    stage: str = "requested"
    seq: int | None = None
    at_step: int | None = None
    acks: tuple[int, ...] = ()
    previous: dict[str, float] = {}
    readback: dict[str, float] = {}
    sent_attempt: int = 0
    sent_s: float = 0.0
    num_sent: int = 0
    detail: str = ""
    until_step: int | None = None
    expired_acks: tuple[int, ...] = ()
    after: dict[str, float] = {}
    applied_s: float = 0.0


class Touch(msgspec.Struct, frozen=True):
    """What changed something last: where that stands in the journal, who did it, what it was."""

    seq: int
    time_s: float
    by: str
    what: str


class Rollback(msgspec.Struct, frozen=True):
    """A numeric rollback, remembered so that no identical retry is made and the ladder climbs.

    onset_data: data step of the onset, where that step is still remembered.
    """

    onset_step: int
    resume_step: int
    checkpoint: str
    nodes: tuple[str, ...]
    lr_factor: float
    time_s: float
    attempt: int
    onset_data: int | None = None


class RunState(msgspec.Struct, frozen=True):
    """Everything known about a run after the event with sequence number seq.

    idle_s: since when no attempt has been current, where none is.
    lineage: (attempt, step it resumed from), both rising: what an earlier attempt made beyond that
        step was left behind.
    cut_preflights: how many in a row came to nothing because a node was lost.
    detectors: modes of detectors that people have switched, by name.
    places: the nodes of the last attempt in the order of their ranks: each may hold their state.
    pruned: the checkpoints deleted last, so that late news of one does not bring it back.
    memory_since: what earlier attempts kept in the nodes' memory was dropped.
    pins: checkpoints that people want kept, and why.
    recent_saves: what the last RECENT_SAVES saves cost, oldest first.
    num_setbacks: how often training had to go back to a checkpoint after a failure.
    steps_lost: completed steps that were left behind, whether for a failure or because a person
        asked for a rollback.
    failed_saves: all that ever failed. save_trouble: the last that did so in a row, over or not.
    upload_trouble: why uploads do not get on, by node; over once a checkpoint is in the store.
    uploaded_early: when checkpoints were in the store whose commit, told by another node, is yet to
        be heard of.
    remarks: what people wrote down about the run as a whole, the last of it.
    validations: the last RECENT_VALIDATIONS of this lineage, oldest first.
    validating: how far the measurement on held-out text is that is under way, None while none is.
    touched: what changed a thing last, by its topic (fold_interventions.topics_of).
    """

    run: str = ""
    spec: dict[str, Any] = {}
    policy_version: int = 0
    seq: int = 0
    time_s: float = 0.0
    submitted_s: float = 0.0
    ended_s: float | None = None
    epoch: int = 0
    controller_pid: int = 0
    end: Status | None = None
    paused: str = ""
    pause_reason: str = ""
    end_reason: str = ""
    resumed_s: float = 0.0
    idle_s: float = 0.0
    num_attempts: int = 0
    attempt: AttemptState | None = None
    places: tuple[str, ...] = ()
    energy: Energy = Energy()
    preflight: PreflightState | None = None
    num_preflights: int = 0
    cut_preflights: int = 0
    nodes: dict[str, NodeState] = {}
    step: int = 0
    last: StepSample | None = None
    recent: tuple[StepSample, ...] = ()
    recent_before: tuple[StepSample, ...] = ()
    step_median: RunningMedian = RunningMedian()
    hyper: Hyper = Hyper()
    checkpoints: dict[str, CheckpointState] = {}
    trending: tuple[str, ...] = ()
    pruned: tuple[str, ...] = ()
    memory_since: int = 0
    pins: dict[str, str] = {}
    recent_saves: tuple[SaveCost, ...] = ()
    num_setbacks: int = 0
    lineage: tuple[tuple[int, int], ...] = ()
    incidents: dict[str, Incident] = {}
    open_incidents: tuple[str, ...] = ()
    pending: dict[str, Decision] = {}
    num_decisions: int = 0
    interventions: dict[str, Intervention] = {}
    next_command: int = 1
    restarts_s: tuple[float, ...] = ()
    barren_attempts: int = 0
    rollbacks: tuple[Rollback, ...] = ()
    num_findings: int = 0
    findings: tuple[FindingSeen, ...] = ()
    noted_finding: str = ""
    detectors: dict[str, str] = {}
    num_stale: int = 0
    steps_total: int = 0
    steps_lost: int = 0
    failed_saves: int = 0
    save_trouble: SaveTrouble | None = None
    faults: tuple[FaultInjected, ...] = ()
    stopping: str = ""
    upload_trouble: dict[str, UploadFailed] = {}
    uploaded_early: dict[str, float] = {}
    remarks: tuple[Remark, ...] = ()
    validations: tuple[ValidationDone, ...] = ()
    validating: ValidationUnderWay | None = None
    touched: dict[str, Touch] = {}

    @property
    def validation(self) -> ValidationDone | None:
        """The newest measurement on held-out text of this lineage."""
        return self.validations[-1] if self.validations else None

    @property
    def validated_step(self) -> int:
        """The newest step of this lineage that was measured on held-out text; 0: none."""
        return self.validations[-1].step if self.validations else 0

    @property
    def status(self) -> Status:
        """The run's state in one word."""
        if self.end is not None:
            return self.end
        if self.paused:
            return Status.PAUSED
        if not self.run:
            return Status.NEW
        if self.attempt is None:
            return Status.WAITING
        if self.attempt.first_step_s is None:
            return Status.RECOVERING if self.num_attempts > 1 else Status.STARTING
        if self.attempt.signal_s is not None:
            return Status.RECOVERING
        return Status.STOPPING if self.stopping else Status.TRAINING

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing more will happen by itself: paused, or ended with every incident closed.

        The end is written down before what is left open is closed, and who submits a paused run
        again has asked for it to go on before anything else is done.
        """
        if self.status is Status.PAUSED:
            asked = self.interventions.values()
            return not any(i.request.action == "resume" and i.stage == "requested" for i in asked)
        return self.status.is_terminal and not self.open_incidents

    def running(self, attempt: int) -> AttemptState | None:
        """Return the current attempt if its number is attempt, else None: the fence."""
        current = self.attempt
        return current if current is not None and current.number == attempt else None

    @property
    def samples(self) -> tuple[StepSample, ...]:
        """The last RECENT_STEPS to 2 * RECENT_STEPS step samples of this lineage, oldest first."""
        return self.recent_before + self.recent
