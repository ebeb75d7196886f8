"""What a node agent tells the controller.

Reports of one agent carry an increasing seq and the attempt they speak of, so the controller can
ignore what an older attempt still has to say, and can acknowledge what it has safely written down.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from ...health.nodes.energy import EnergyUse
from ...health.nodes.lemons import MachineIdentity
from ...health.nodes.liveness import RankProgress
from ...logbook.events import CheckpointCommitted
from ...logbook.findings import Finding
from ...logbook.wire import Phase, RankSample, StepSample, WorkerMessage


class Report(msgspec.Struct, frozen=True, kw_only=True, tag_field="report"):
    """Fields of every report. node, agent, seq and time_s are stamped by the agent's outbox.

    attempt: below zero for a preflight, as in plan.LocalPlan.
    agent:  unique id of this life of the agent; seq starts again at 1 with a new one.
    time_s: seconds since the epoch at which the agent knew.
    is_droppable: may be thrown away first when the controller is away for too long.
    """

    is_droppable: ClassVar[bool] = False

    attempt: int
    node: str = ""
    agent: str = ""
    seq: int = 0
    time_s: float = 0.0


class WorkersStarted(Report, frozen=True, kw_only=True, tag="workers-started"):
    """Every local worker of the attempt has been forked. pids: by rank."""

    pids: dict[int, int]


class WorkerMessages(Report, frozen=True, kw_only=True, tag="worker-messages"):
    """What workers said, in order, (rank, message); everything but their RankSamples."""

    batch: tuple[tuple[int, WorkerMessage], ...]


class RankSamples(Report, frozen=True, kw_only=True, tag="rank-samples"):
    """Per-rank timings. When the reader lags, whole steps are left out and counted.

    stride: samples were kept of steps divisible by it. dropped_total: left out so far.
    """

    is_droppable: ClassVar[bool] = True

    batch: tuple[RankSample, ...]
    stride: int
    dropped_total: int


class Exit(msgspec.Struct, frozen=True):
    """How one worker process ended; both None when nobody could learn the status."""

    rank: int
    pid: int
    exit_code: int | None
    signal: int | None


class WorkerExited(Report, frozen=True, kw_only=True, tag="worker-exited"):
    """A worker ended without being told to by its agent.

    step, phase: the last note in its progress page. log_tail: last part of its log, bounded.
    cause: "exit", "signal", "forkserver-lost" or "unknown".
    """

    exit: Exit
    cause: str
    step: int
    phase: Phase
    log_tail: str


class ExitRow(msgspec.Struct, frozen=True):
    """One worker's end, as in WorkerExited."""

    exit: Exit
    cause: str
    step: int
    phase: Phase
    log_tail: str


class WorkersExited(Report, frozen=True, kw_only=True, tag="workers-exited"):
    """Several workers ended by themselves within one beat, after another one on this node.

    Mostly the echo of one death: thousands of them at once would delay the answer to it.
    """

    rows: tuple[ExitRow, ...]


class StartFailed(Report, frozen=True, kw_only=True, tag="start-failed"):
    """The attempt could not be started here. code: stable kebab-case identifier.

    Codes: "stale-attempt", "bad-plan", "preload-failed", "forkserver-not-ready",
    "forkserver-stuck", "forkserver-lost", "fork-failed", "old-worker-will-not-die",
    "rendezvous-port-lost", "log-dir-unusable", "no-file-descriptors", "superseded", "node-busy".
    """

    code: str
    message: str


class AttemptStopped(Report, frozen=True, kw_only=True, tag="attempt-stopped"):
    """No worker of the attempt lives here any more; exits of those that the agent ended."""

    exits: tuple[Exit, ...]


class HangSuspected(Report, frozen=True, kw_only=True, tag="hang-suspected"):
    """This node's ranks have completed no step for too long.

    rank, reason: whom the local facts blame; the controller blames across nodes from all rows.
    stacks: by rank; of a process that could not dump its own, what the kernel knows of it.
    """

    rank: int | None
    reason: str
    waited_s: float
    deadline_s: float
    median_step_s: float
    rows: tuple[RankProgress, ...]
    stacks: dict[int, str]


class StacksDumped(Report, frozen=True, kw_only=True, tag="stacks-dumped"):
    """Answer to a request for stacks."""

    rows: tuple[RankProgress, ...]
    stacks: dict[int, str]


class NodeFindings(Report, frozen=True, kw_only=True, tag="node-findings"):
    """What the agent saw on its own node. Steps are the reader's to fill in; the node is known.

    machine: as in AgentStatus, so that nobody judges a finding without knowing whose it is.
    """

    findings: tuple[Finding, ...]
    machine: MachineIdentity = MachineIdentity("")


class EnergyUsed(Report, frozen=True, kw_only=True, tag="energy-used"):
    """What this node's GPUs have used since the last such report; one a minute and attempt."""

    use: EnergyUse


class AgentStatus(Report, frozen=True, kw_only=True, tag="agent-status"):
    """The agent's heartbeat. A newer one replaces an older one that nobody has read.

    forkserver: "starting", "ready", "failed" or "closed"; forkserver_error holds its last words.
    rendezvous_host/port: a socket listening here, kept for a rank 0 of the next attempt.
    serving_port: at which rank 0 of this attempt was ordered to serve, 0 when it is not here.
    threads: of the forkserver after its preload; more than one makes forking unsafe.
    machine: what this node is, as far as its hardware has said by now; a driver may take minutes.
    """

    is_droppable: ClassVar[bool] = True

    rows: tuple[RankProgress, ...]
    pids: dict[int, int]
    forkserver: str
    forkserver_error: str
    threads: int
    rendezvous_host: str
    rendezvous_port: int
    samples_dropped_total: int
    reports_dropped_total: int
    reports_lost_total: int
    serving_port: int = 0
    machine: MachineIdentity = MachineIdentity("")


class AgentNote(Report, frozen=True, kw_only=True, tag="agent-note"):
    """Something the agent did or could not do, for the record. rank: None means the node.

    Codes: "stale-command", "unknown-attempt", "stale-stop", "bad-frame", "forkserver-lost",
    "worker-will-not-die", "log-cut", "agent-error", "command-lost".
    """

    code: str
    message: str
    rank: int | None = None


class PartHeld(Report, frozen=True, kw_only=True, tag="part-held"):
    """Some of a checkpoint's num_files files lie on this node's disk: those of held."""

    commit: CheckpointCommitted
    held: tuple[str, ...]
    num_files: int


class CheckpointStored(Report, frozen=True, kw_only=True, tag="checkpoint-stored"):
    """A checkpoint is in the durable store, upload_s after its part lay here; each node says so."""

    checkpoint: str
    bytes: int
    upload_s: float


class UploadTrouble(Report, frozen=True, kw_only=True, tag="upload-trouble"):
    """This node's uploads do not get on. since_s: seconds since the epoch.

    Said once for each code, and again every few minutes while it lasts.
    """

    code: str
    message: str
    since_s: float


AgentReport = (
    WorkersStarted
    | WorkerMessages
    | RankSamples
    | WorkerExited
    | WorkersExited
    | StartFailed
    | AttemptStopped
    | HangSuspected
    | StacksDumped
    | NodeFindings
    | EnergyUsed
    | AgentStatus
    | AgentNote
    | PartHeld
    | CheckpointStored
    | UploadTrouble
)


def is_routine(report: AgentReport) -> bool:
    """Return whether a report is one of those that come all the time while nothing happens."""
    if isinstance(report, WorkerMessages):
        return all(isinstance(message, StepSample) for _, message in report.batch)
    return isinstance(report, (AgentStatus, RankSamples, PartHeld, EnergyUsed))
