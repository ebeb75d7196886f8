"""TrainingRun: what a run is on Kubernetes, beside its run spec.

These models are the one source of the custom resource's schema (crd.py), of what is checked again
when the operator reads an object, and of what the builders take. Python names stand in snake case,
the wire has camel case; spec.run is the run spec as in a YAML file, field by field.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from ...logbook.errors import ConfigError
from ..spec import RunSpec
from . import names

Name = Annotated[str, Field(max_length=253)]
Quantity = Annotated[
    str, Field(max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")
]
Decimal = Annotated[
    str, Field(max_length=32, pattern=r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$")
]
LabelValue = Annotated[str, Field(max_length=63)]
ActionName = Literal[
    "SetLearningRate",
    "SetGradClip",
    "SetScaler",
    "SetOptimizer",
    "SkipData",
    "Checkpoint",
    "Rollback",
    "Pause",
    "Resume",
    "Stop",
    "QuarantineNode",
    "ReleaseNode",
    "AcknowledgeIncident",
    "SetDetector",
    "PinCheckpoint",
    "UnpinCheckpoint",
    "VerifyCheckpoint",
    "QuarantineCheckpoint",
    "ReleaseCheckpoint",
    "PruneCheckpoints",
    "RevertIntervention",
]


class Part(BaseModel):
    """Frozen; an unknown field is an error; the text under a field is its documentation."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        alias_generator=to_camel,
        populate_by_name=True,
    )


class ClusterSelector(Part):
    """A Ray cluster that is there already, and that the operator leaves as it is."""

    kind: Literal["RayCluster", "RayJob"] = "RayCluster"
    """Kind of the object that owns it."""
    name: Name
    """Name of that object, in the namespace of the TrainingRun."""


class HeadSpec(Part):
    """The Ray head: it carries no rank, but the job server, the run's API and Ray's own state."""

    cpu: Quantity = "4"
    """Requested and granted CPU."""
    memory: Quantity = "16Gi"
    """Requested and granted memory."""
    node_selector: dict[str, LabelValue] | None = Field(default=None, max_length=32)
    """Labels that its node must carry, such as one without GPUs; null: placement.nodeSelector."""


class WorkerSpec(Part):
    """The pods that carry ranks, one a node; spares are of the same shape."""

    gpu_resource: str = Field(default="nvidia.com/gpu", max_length=128)
    """Name of the extended resource that a GPU is."""
    gpus_per_node: int | None = Field(default=None, ge=0, le=16)
    """GPUs of a node; null: run.nodes.ranks_per_node. 0 trains on CPU."""
    cpu: Quantity = "8"
    """Requested and granted CPU."""
    memory: Quantity = "64Gi"
    """Requested and granted memory."""
    shared_memory: Quantity = "16Gi"
    """Size of /dev/shm, in which the memory tier of checkpoints lies."""
    host_network: bool = False
    """Use the network of the machine, as InfiniBand without a device plugin for pods needs."""
    rdma: bool = False
    """Grant IPC_LOCK, which RDMA needs to pin memory."""
    extra_resources: dict[str, Quantity] = Field(default={}, max_length=16)
    """More extended resources of a node, such as rdma/hca: "8"."""


class Toleration(Part):
    """A toleration as in a pod."""

    key: str | None = Field(default=None, max_length=316)
    """Key of the taint; null with operator Exists tolerates every one."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """Exists: any value."""
    value: str | None = Field(default=None, max_length=63)
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; null: each."""
    toleration_seconds: int | None = Field(default=None, ge=0)
    """How long a NoExecute taint is borne; null: for ever."""


class PlacementSpec(Part):
    """On which nodes of the cluster the run may be, and what happens to bad ones."""

    node_selector: dict[str, LabelValue] = Field(default={}, max_length=32)
    """Labels that a node must carry."""
    tolerations: tuple[Toleration, ...] = Field(default=(), max_length=32)
    """Taints that are borne, besides those of an unreachable node."""
    unreachable_seconds: int = Field(default=30, ge=0, le=3600)
    """How long the pod of an unreachable or not-ready node is kept (Kubernetes alone: 300)."""
    excluded_nodes: tuple[Name, ...] = Field(default=(), max_length=64)
    """Nodes never to be used, whatever is known of them."""
    max_excluded_nodes: int = Field(default=16, ge=0, le=64)
    """Most nodes that the operator may exclude by itself; one more, and it only tells."""
    cordon: Literal["Never", "Quarantined"] = "Never"
    """Quarantined: cordon the nodes that are excluded, where the operator has the right to."""
    priority_class_name: str = Field(default="", max_length=253)
    """Priority of the head and of the nodes that carry ranks."""
    spare_priority_class_name: str = Field(default="", max_length=253)
    """Priority of the spares; a low one lets others use them until they are needed."""


class SchedulingSpec(Part):
    """Quota and gang scheduling, both done by others."""

    queue_name: str = Field(default="", max_length=63)
    """Queue that admits the run: of batchScheduler where that has queues (Volcano, YuniKorn,
    KaiScheduler), else a LocalQueue of Kueue; empty: none."""
    batch_scheduler: Literal["None", "Volcano", "YuniKorn", "KaiScheduler", "SchedulerPlugins"] = (
        "None"
    )
    """Scheduler that KubeRay was started with (--batch-scheduler)."""
    gang: bool = False
    """Start all pods, spares included, or none of them."""

    @property
    def is_kueue(self) -> bool:
        """Whether Kueue admits the run, and suspends it."""
        return bool(self.queue_name) and self.batch_scheduler in ("None", "SchedulerPlugins")


class StorageSpec(Part):
    """What all pods share: the run folder lies in it, and survives everything else."""

    claim_name: str = Field(default="", max_length=253)
    """PersistentVolumeClaim that may be mounted by many (ReadWriteMany)."""
    mount_path: str = Field(default="/midwatch", max_length=256, pattern=r"^/[-A-Za-z0-9._/]+$")
    """Where it is mounted; the run folder is MOUNT/NAMESPACE/NAME."""
    sub_path: str = Field(default="", max_length=256)
    """Folder of the claim to mount."""
    secret_name: str = Field(default="", max_length=253)
    """Secret whose keys become environment variables of all pods: S3 credentials, webhooks."""


class SecretKey(Part):
    """A key of a Secret in the namespace of the run."""

    name: Name
    """Name of the Secret."""
    key: str = Field(default="password", max_length=253)
    """Key in it."""


class FaultToleranceSpec(Part):
    """Where Ray keeps its own state, so that workers live on while the head is away."""

    mode: Literal["None", "Redis", "RocksDB"] = "None"
    """None: a lost head ends the attempt. RocksDB needs KubeRay 1.7 and its feature gate."""
    redis_address: str = Field(default="", max_length=253)
    """HOST:PORT of the Redis of mode Redis."""
    redis_password_secret: SecretKey | None = None
    """Its password."""
    storage_size: Quantity = "10Gi"
    """Size of the volume of mode RocksDB."""
    storage_class_name: str = Field(default="", max_length=253)
    """Storage class of that volume; empty: the default one."""


class RaySpec(Part):
    """Ray itself."""

    version: str = Field(default="2.60.0", max_length=32)
    """Version in the image, as KubeRay wants to know it."""
    env: dict[str, Annotated[str, Field(max_length=4096)]] = Field(default={}, max_length=64)
    """Environment variables of all pods, such as those of NCCL."""


class DeletionSpec(Part):
    """How a run ends."""

    timeout_seconds: int = Field(default=900, ge=0, le=86_400)
    """How long a deleted run may take to save; then its pods are taken away all the same."""
    ttl_seconds_after_finished: int = Field(default=300, ge=0, le=604_800)
    """How long the pods of a run that has ended are kept."""


class InterventionPolicy(Part):
    """What people may ask of the run, beside what their RBAC and the run's limits allow."""

    allowed: tuple[ActionName, ...] = Field(default=(), max_length=32)
    """Actions that are allowed; empty: all."""
    require_approval: tuple[ActionName, ...] = Field(default=(), max_length=32)
    """Actions that wait for an InterventionApproval by somebody else."""
    max_per_hour: int = Field(default=60, ge=1, le=1000)
    """Most interventions by people within an hour."""
    learning_rate_min: Decimal | None = None
    """Smallest rate that may be set; null: run.limits.lr_min."""
    learning_rate_max: Decimal | None = None
    """Largest rate that may be set; null: run.limits.lr_max."""
    retention_seconds: int = Field(default=2_592_000, ge=3600, le=31_536_000)
    """How long settled Intervention objects are kept; the logbook keeps them for ever."""


class TrainingRunSpec(Part):
    """A training run, its machines, and what may be done to it."""

    run: dict[str, Any]
    """The run spec as in a YAML file, without name and run_dir."""
    image: str = Field(default="", max_length=512)
    """Image of all pods, with Ray, Midwatch and the trainer; not needed with a clusterSelector."""
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    """When the image is pulled."""
    image_pull_secrets: tuple[Name, ...] = Field(default=(), max_length=8)
    """Secrets to pull it with."""
    suspend: bool = False
    """True: save, stop and release the pods; false again: go on from there."""
    cluster_selector: ClusterSelector | None = None
    """Train on this Ray cluster instead of one of the run's own."""
    service_account_name: str = Field(default="", max_length=253)
    """Service account of the pods; its token is never mounted."""
    head: HeadSpec = HeadSpec()
    worker: WorkerSpec = WorkerSpec()
    placement: PlacementSpec = PlacementSpec()
    scheduling: SchedulingSpec = SchedulingSpec()
    storage: StorageSpec = StorageSpec()
    fault_tolerance: FaultToleranceSpec = FaultToleranceSpec()
    ray: RaySpec = RaySpec()
    deletion: DeletionSpec = DeletionSpec()
    intervention_policy: InterventionPolicy = InterventionPolicy()

    @model_validator(mode="after")
    def _has_machines(self) -> TrainingRunSpec:
        if self.cluster_selector is None and not (self.image and self.storage.claim_name):
            raise ValueError("give image and storage.claimName, or a clusterSelector")
        return self

    @property
    def owns_cluster(self) -> bool:
        """Whether the Ray cluster is the run's own."""
        return self.cluster_selector is None


def read_spec(spec: Any, name: str, namespace: str) -> tuple[TrainingRunSpec, RunSpec]:
    """Return what an object's spec says, and the run spec in it as the controller will read it.

    The trainer section is checked where the trainer is: in the run's own image.
    Raises: ConfigError[training-run-invalid], each problem with its path.
    """
    try:
        whole = TrainingRunSpec.model_validate(spec)
    except ValidationError as error:
        raise _as_config_error("spec", error) from error
    taken = sorted({"name", "run_dir"} & whole.run.keys())
    if taken:
        raise ConfigError(
            "training-run-invalid",
            f"spec.run.{taken[0]}: set by the operator.",
            remedy="Leave it out.",
        )
    folder = names.run_dir(whole.storage.mount_path, namespace, name)
    try:
        run = RunSpec.model_validate({**whole.run, "name": name, "run_dir": folder})
    except ValidationError as error:
        raise _as_config_error("spec.run", error) from error
    if whole.owns_cluster and run.nodes.spread == "pack":
        raise ConfigError(
            "training-run-invalid",
            "spec.run.nodes.spread: pack could put ranks on the head, which has room for none.",
            remedy="Leave it out: each pod is a node.",
        )
    return whole, run


def _as_config_error(prefix: str, error: ValidationError) -> ConfigError:
    problems = []
    for detail in error.errors(include_url=False):
        path = ".".join(str(part) for part in (prefix, *detail["loc"]))
        problems.append(f"{path}: {detail['msg'].removeprefix('Value error, ')}")
    return ConfigError(
        "training-run-invalid",
        "; ".join(problems)[:900],
        remedy="Correct the object and apply it again.",
    )
