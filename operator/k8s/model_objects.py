"""Intervention, InterventionApproval, and what the operator writes into the status of each kind.

An Intervention is written once and never changed; what becomes of it stands in its status. It has
no owner, so that deleting a run does not erase who changed what: it is found by its labels.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from .model import ActionName, Decimal, Name, Part

Text = Annotated[str, Field(max_length=1024)]
Uid = Annotated[str, Field(max_length=64)]
Automatic = Literal["Restart", "Pause", "AwaitNodes", "End"]


class RunRef(Part):
    """The TrainingRun that is meant, in the same namespace."""

    name: Annotated[str, Field(min_length=1, max_length=63)]
    """Its name."""
    uid: Uid | None = None
    """Its uid; given, the request is not for a later run of the same name."""


class ActionParams(Part):
    """What an action needs to know; numbers are decimal strings."""

    value: Decimal | None = None
    """New value: of the learning rate or of the clip; a step for Rollback."""
    multiplier: Decimal | None = None
    """SetLearningRate: factor on the remaining schedule, instead of a value."""
    values: dict[str, Decimal] = Field(default={}, max_length=8)
    """SetOptimizer and SetScaler: new values by parameter, such as beta2 or loss-scale-floor."""
    target: Annotated[str, Field(max_length=253)] = ""
    """What is meant: a node, a checkpoint, an incident, DETECTOR=MODE, a range FIRST:LAST."""


class Expect(Part):
    """What its author saw: where it no longer holds, the request is refused."""

    attempt: int | None = Field(default=None, ge=0)
    """Number of the attempt."""
    learning_rate: Decimal | None = None
    """Learning rate of the last step; within 1%, for it moves with its schedule."""
    seq: int | None = Field(default=None, ge=0)
    """Newest journal record known, as in `status.run.seq` of the run: a later change by somebody
    else to the same thing is a conflict."""


class InterventionSpec(Part):
    """What a person asks of a run, or what the controller did by itself. Never changed."""

    run_ref: RunRef
    action: ActionName | Automatic
    """What is done. Restart, Pause, AwaitNodes and End are also done by the controller itself."""
    params: ActionParams = ActionParams()
    reason: Annotated[str, Field(min_length=1, max_length=1024)]
    """Why; it goes into the record."""
    requested_by: Annotated[str, Field(min_length=1, max_length=253)]
    """Who asks, as the API server knows him; the admission policy holds it to that."""
    expect: Expect = Expect()
    at_step: int | None = Field(default=None, ge=1)
    """Take effect at this step, not before."""
    for_steps: int | None = Field(default=None, ge=1)
    """Go back to the value before after so many steps."""
    expires_at: AwareDatetime | None = None
    """A request that has not been sent to the run by then never is."""
    dry_run: bool = False
    """Only say what would be decided."""


class InterventionRef(Part):
    """The Intervention that is meant, in the same namespace."""

    name: Name
    """Its name."""
    uid: Uid
    """Its uid."""


class ApprovalSpec(Part):
    """A second person's word on an Intervention. Never changed."""

    intervention_ref: InterventionRef
    decision: Literal["Approve", "Reject"]
    """Approve lets it go ahead, Reject ends it."""
    reason: Text = ""
    """Why."""
    approved_by: Annotated[str, Field(min_length=1, max_length=253)]
    """Who says so, as the API server knows him; not the person who asked."""


class Condition(Part):
    """A condition as everywhere in Kubernetes."""

    type: Annotated[str, Field(max_length=316)]
    """What it is about."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    observed_generation: int = Field(ge=0)
    """Generation of the spec that it is about."""
    last_transition_time: AwareDatetime
    """When its status changed last."""
    reason: Annotated[str, Field(max_length=1024)]
    """Why, in one word for programs."""
    message: Annotated[str, Field(max_length=32768)]
    """Why, in a sentence for people."""


class RunFigures(Part):
    """The run as its controller told it last."""

    status: str = ""
    """What it is doing, in one word."""
    doing: Text = ""
    """What it is doing and why, in a sentence."""
    step: int = 0
    """Completed steps."""
    attempt: int = 0
    """Number of the attempt."""
    loss: str = ""
    """Loss of the last step, nats per token."""
    learning_rate: str = ""
    """Learning rate of the last step."""
    loss_scale: str = ""
    """Loss scale of the last step."""
    grad_norm: str = ""
    """Gradient norm of the last step."""
    goodput: str = ""
    """Productive time over wall time."""
    restarts: int = 0
    """Attempts after the first."""
    last_good: str = ""
    """Newest checkpoint that a rollback would trust."""
    open_incidents: tuple[str, ...] = ()
    """Incidents that are not closed."""
    nodes: int = 0
    """Nodes that the run may use, spares included."""
    seq: int = 0
    """Journal record up to which this tells."""
    updated_at: AwareDatetime | None = None
    """When it was told."""


class ClusterFigures(Part):
    """The Ray cluster of the run."""

    name: str = ""
    """Its name."""
    uid: str = ""
    """Its uid."""
    head_pod: str = ""
    """Pod of its head."""
    ready_pods: int = 0
    """Pods of nodes that are ready, spares included."""
    wanted_pods: int = 0
    """Pods of nodes that the run wants, spares included."""


class JobFigures(Part):
    """The Ray job that put the controller on the cluster last."""

    id: str = ""
    """Its submission id."""
    status: str = ""
    """What Ray says of it."""
    spec_digest: str = ""
    """Digest of the run spec that it brought."""


class ApiFigures(Part):
    """Where the HTTP API of the run answers."""

    service: str = ""
    """Service in the namespace of the run."""
    port: int = 0
    """Its port."""
    viewer_secret: str = ""
    """Secret with the token of those who may read, under `token`."""
    operator_secret: str = ""
    """Secret with the token of those who may ask for changes, under `token`."""


class ExcludedNode(Part):
    """A node of the Kubernetes cluster on which nothing of the run is placed."""

    node: str
    """Its name."""
    reason: Text
    """Why."""
    since: AwareDatetime
    """Since when."""
    sign: str = ""
    """Sign that asked for it, such as cordon: the exclusion ends with it. Empty: with a release."""


class TrainingRunStatus(Part):
    """What the operator sees."""

    conditions: tuple[Condition, ...] = ()
    """Admitted, Ready (the summary), Progressing, Degraded, Stalled, Succeeded, CheckpointFresh,
    SpecApplied (whether spec.run is what the controller was started with)."""
    observed_generation: int = 0
    """Generation of the spec that this is about."""
    run: RunFigures = RunFigures()
    """The run as its controller told it last."""
    cluster: ClusterFigures = ClusterFigures()
    """Its Ray cluster."""
    job: JobFigures = JobFigures()
    """The Ray job that put the controller there last."""
    api: ApiFigures = ApiFigures()
    """Where its HTTP API answers."""
    excluded_nodes: tuple[ExcludedNode, ...] = ()
    """Nodes on which nothing of it is placed, and why."""
    finished_at: AwareDatetime | None = None
    """When it ended."""
    stopping_since: AwareDatetime | None = None
    """Since when it has its time to save and stop, before its pods are taken away."""


class InterventionStatus(Part):
    """What became of an Intervention."""

    conditions: tuple[Condition, ...] = ()
    """Accepted, Approved, Applied, Reverted, Failed."""
    observed_generation: int = 0
    """Generation of the spec that this is about."""
    stage: str = ""
    """How far it got, as in the logbook: requested, rejected, sent, applied, failed, reverted."""
    applied_at_step: int | None = None
    """First step under it."""
    previous: dict[str, str] = Field(default={})
    """Values before, read back from the ranks."""
    current: dict[str, str] = Field(default={})
    """Values after, read back from the ranks."""
    acks: str = ""
    """Ranks that confirmed it, out of all."""
    ledger_seq: int | None = None
    """Number of the command in the logbook."""
    message: Text = ""
    """What came of it, in a sentence."""
    settled_at: AwareDatetime | None = None
    """When nothing more was to come of it."""
