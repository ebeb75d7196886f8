"""Every kind of thing that can happen to a run, as it stands in the journal.

Events are facts in the past tense; folding them (fold.evolve) gives the RunState. The kind on the
line is the struct's tag. Fields are added with defaults and never renamed, so old journals read.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .decisions import Decision
from .event_base import EventBase
from .events_checkpoints import CheckpointCommitted as CheckpointCommitted
from .events_checkpoints import CheckpointFailed as CheckpointFailed
from .events_checkpoints import CheckpointsPruned as CheckpointsPruned
from .events_checkpoints import CheckpointUploaded as CheckpointUploaded
from .events_checkpoints import CheckpointVerified as CheckpointVerified
from .events_checkpoints import UploadFailed as UploadFailed
from .events_nodes import EnergyUsed as EnergyUsed
from .events_nodes import NodeIdentified as NodeIdentified
from .events_nodes import NodeJoined as NodeJoined
from .events_nodes import NodeLost as NodeLost
from .events_nodes import PreflightAnswered as PreflightAnswered
from .events_nodes import PreflightBegun as PreflightBegun
from .events_nodes import PreflightJudged as PreflightJudged
from .events_outward import ApiFailed as ApiFailed
from .events_outward import ApiServed as ApiServed
from .events_validation import ValidationDone as ValidationDone
from .events_validation import ValidationUnderWay as ValidationUnderWay
from .findings import Finding
from .wire import CollectiveMark, Hyper, StepSample

# --- the run -------------------------------------------------------------------------------------


class RunSubmitted(EventBase, frozen=True, tag="run-submitted"):
    """The first event. spec is the validated run spec as plain data; digest is its SHA-256.

    Values in its env that look like secrets are kept back: "(kept back)" stands for each.
    """

    run: str
    spec: dict[str, Any]
    digest: str
    policy_version: int
    midwatch_version: str
    by: str


class ControllerStarted(EventBase, frozen=True, tag="controller-started"):
    """A controller opened the journal and folded what it found."""

    epoch: int
    host: str
    pid: int
    folded_events: int


class FaultInjected(EventBase, frozen=True, tag="fault-injected"):
    """A planned fault struck (demonstrations and chaos tests); injected_s is when, exactly."""

    fault: str
    target: str
    injected_s: float
    step: int = 0


# --- attempts ------------------------------------------------------------------------------------


class WorkersStarted(EventBase, frozen=True, tag="workers-started"):
    """The worker processes of one node are born; pids in local rank order."""

    attempt: int
    node: str
    pids: tuple[int, ...]


class AttemptResumed(EventBase, frozen=True, tag="attempt-resumed"):
    """Rank 0 holds its state: checkpoint ("" for a fresh start) at step, loaded in load_s.

    passed_over: (checkpoint, why) for each better candidate that failed to load.
    tier, repaired, differs: as in wire.Resumed, of all ranks together.
    """

    attempt: int
    step: int
    checkpoint: str
    load_s: float
    passed_over: tuple[tuple[str, str], ...] = ()
    tier: str = ""
    repaired: tuple[tuple[str, str], ...] = ()
    differs: tuple[str, ...] = ()


class WorkerExited(EventBase, frozen=True, tag="worker-exited"):
    """A worker process ended while its attempt was current. Exactly one of exit_code, signal.

    code: stable code of the worker's last words ("" if it left none); log_tail is bounded.
    label: what its text reads like, whose fault that is, and how surely; "" where nobody knows.
    """

    attempt: int
    rank: int
    node: str
    exit_code: int | None = None
    signal: int | None = None
    step: int = 0
    phase: str = ""
    code: str = ""
    message: str = ""
    log_tail: str = ""
    label: str = ""


class WorkersExited(EventBase, frozen=True, tag="workers-exited"):
    """Several workers of one node ended together, after another one had; mostly the echo of that.

    Log tails of those that only lost a peer are left out.
    """

    attempt: int
    node: str
    exits: tuple[WorkerExited, ...]


class StartFailed(EventBase, frozen=True, tag="start-failed"):
    """An agent could not start its workers."""

    attempt: int
    node: str
    code: str
    message: str


class HangRow(msgspec.Struct, frozen=True):
    """Where one rank stood when its node's progress deadline passed.

    process_state: letter of /proc/PID/stat. waits: whether its stack is inside a collective, None
    when no stack was to be had. marks: where it stands in its collectives, where it could say.
    rounds: of a validation after that step that it has completed.
    """

    rank: int
    step: int
    phase: str
    age_s: float
    process_state: str
    waits: bool | None = None
    marks: tuple[CollectiveMark, ...] = ()
    rounds: int = 0


class HangSuspected(EventBase, frozen=True, tag="hang-suspected"):
    """No local rank of node has made progress within deadline_s. stacks: path of the dump file."""

    attempt: int
    node: str
    deadline_s: float
    rows: tuple[HangRow, ...]
    stacks: str = ""


class RankFinished(EventBase, frozen=True, tag="rank-finished"):
    attempt: int
    rank: int
    step: int
    stopped: bool = False


class StaleIgnored(EventBase, frozen=True, tag="stale-ignored"):
    """Something of an older attempt spoke and was not listened to."""

    attempt: int
    what: str
    node: str


# --- training ------------------------------------------------------------------------------------


class StepDone(EventBase, frozen=True, tag="step"):
    """A completed optimizer update, as all ranks agree on it."""

    attempt: int
    sample: StepSample


class StepsRecalled(EventBase, frozen=True, tag="steps-recalled"):
    """Steps before the state that attempt resumed from, whose reports were lost with an earlier
    attempt. They are part of the lineage like any other; nobody trains them again."""

    attempt: int
    samples: tuple[StepSample, ...]


class RankTimes(EventBase, frozen=True, tag="rank-times"):
    """Where the time of one step went on the ranks of one node, for stragglers and for people.

    rows: (rank, step_s, data_s, forward_s, backward_s, comm_s, optimizer_s).
    """

    attempt: int
    step: int
    node: str
    rows: tuple[tuple[int, float, float, float, float, float, float], ...]


class FindingSeen(EventBase, frozen=True, tag="finding"):
    """A detector spoke. id is unique in the run."""

    id: str
    attempt: int
    finding: Finding


# --- decisions -----------------------------------------------------------------------------------


class DecisionMade(EventBase, frozen=True, tag="decision"):
    """Written, and synced to disk, before anything is done about it."""

    decision: Decision


class ActionDone(EventBase, frozen=True, tag="action-done"):
    """The outcome of a decision's effect. error "" means it was carried out."""

    decision: str
    error: str = ""


# --- interventions -------------------------------------------------------------------------------


class InterventionRequested(EventBase, frozen=True, tag="intervention-requested"):
    """A person asks for a change. value, target and values as the action needs them:

    "lr", "lr-factor", "grad-clip" (value), "optimizer", "scaler" (values, by the names of
    parameters.PARAMETERS), "skip" (target a range, as in hyper.Command), "checkpoint", "stop",
    "pause", "resume", "rollback" (target a checkpoint, or else value a step), "revert" (target an
    intervention), "ack" (target an incident), "quarantine", "release" (target a node), "detector"
    (target "NAME=MODE"), "pin", "unpin", "verify", "quarantine-checkpoint", "release-checkpoint"
    (target a checkpoint), "prune".
    at_step: the step at which it is to take effect, None at once. for_steps: for so many steps
        only, None for good.
    seen_seq: the newest event that its author knew of: what was changed behind that is a conflict.
    expect_value: the value that its author expects to change.
    """

    id: str
    action: str
    by: str
    reason: str
    value: float = 0.0
    target: str = ""
    expect_attempt: int | None = None
    values: dict[str, float] = msgspec.field(default_factory=dict)
    at_step: int | None = None
    for_steps: int | None = None
    seen_seq: int | None = None
    expect_value: float | None = None


class CommandApplied(EventBase, frozen=True, tag="command-applied"):
    """The ranks of one node hold the new values, read back from the live optimizer.

    at_step is the first step under them; error "" means it took effect.
    phase, cause, until_step: as in wire.Applied; phase "loaded" is what the ranks hold after the
        load with which their attempt began.
    """

    attempt: int
    seq: int
    node: str
    ranks: tuple[int, ...]
    at_step: int
    readback: dict[str, float]
    previous: dict[str, float]
    error: str = ""
    hyper: Hyper | None = None
    phase: str = "applied"
    cause: str = ""
    until_step: int | None = None


class NoteAdded(EventBase, frozen=True, tag="note-added"):
    """Prose by a person, attached to an incident or, with incident None, to the run.

    id: by which it is known again when it is told twice, "" where it was made without one.
    """

    by: str
    text: str
    incident: str | None = None
    id: str = ""


Event = (
    RunSubmitted
    | ControllerStarted
    | FaultInjected
    | NodeJoined
    | NodeLost
    | EnergyUsed
    | NodeIdentified
    | PreflightBegun
    | PreflightAnswered
    | PreflightJudged
    | WorkersStarted
    | AttemptResumed
    | WorkerExited
    | WorkersExited
    | StartFailed
    | HangSuspected
    | RankFinished
    | StaleIgnored
    | StepDone
    | StepsRecalled
    | RankTimes
    | ValidationUnderWay
    | ValidationDone
    | CheckpointCommitted
    | CheckpointFailed
    | CheckpointVerified
    | CheckpointUploaded
    | UploadFailed
    | CheckpointsPruned
    | FindingSeen
    | DecisionMade
    | ActionDone
    | InterventionRequested
    | CommandApplied
    | NoteAdded
    | ApiServed
    | ApiFailed
)
