"""What one look at the cluster shows of one run: the whole input of reconcile(). Plain values."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

import msgspec

from ...health.nodes.evidence import Sign, SignSource
from ...logbook.decoding import prepared
from . import names

Object = dict[str, Any]
_UNREACHABLE = ("node.kubernetes.io/unreachable", "node.kubernetes.io/out-of-service")


def time_of(text: Any) -> float | None:
    """Return a Kubernetes time in seconds since the epoch, None for what is none."""
    if not isinstance(text, str):
        return None
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def time_text(time_s: float) -> str:
    """Return seconds since the epoch as Kubernetes writes them, whole seconds."""
    moment = datetime.datetime.fromtimestamp(int(time_s), tz=datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


class Pod(msgspec.Struct, frozen=True):
    """A pod of the run's Ray cluster. group "" for the head. Times in seconds since the epoch.

    ready_s: since when it is ready.
    """

    name: str
    uid: str
    ip: str = ""
    node: str = ""
    group: str = ""
    is_head: bool = False
    phase: str = "Pending"
    is_ready: bool = False
    ready_s: float = 0.0
    deleting_s: float | None = None

    @property
    def is_live(self) -> bool:
        return self.deleting_s is None and self.phase in ("Pending", "Running")


class NodeSight(msgspec.Struct, frozen=True):
    """A node of the cluster: what others say of it, and whether we cordoned it ourselves."""

    name: str
    hostname: str = ""
    is_unreachable: bool = False
    is_cordoned: bool = False
    cordoned_by: str = ""
    signs: tuple[Sign, ...] = ()


class JobSight(msgspec.Struct, frozen=True):
    """A Ray job that was to put the controller on the cluster. number: 1, 2, ... of its run.

    spec: digest of the run spec that it brought, "" where that is not known.
    """

    id: str
    number: int
    status: str
    message: str = ""
    begun_s: float = 0.0
    ended_s: float = 0.0
    spec: str = ""

    @property
    def is_over(self) -> bool:
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")


class RayNode(msgspec.Struct, frozen=True):
    """A node as the run's controller knows it; host is the address of its pod."""

    node: str
    host: str = ""
    incarnation: str = ""
    present: bool = True
    quarantined: str = ""


class RunSight(msgspec.Struct, frozen=True):
    """The run as its HTTP API told it. summary, state: as the API answers, decoded to plain data.

    waiting: what was asked for and lies on the run's desk still, by id, as the API tells it.
    interventions: by id, those of the journal and those of the desk.
    """

    doing: str
    seq: int
    summary: Mapping[str, Any]
    state: Mapping[str, Any] = {}
    waiting: Mapping[str, Any] = {}

    @property
    def status(self) -> str:
        return str(self.summary.get("status", ""))

    @property
    def is_over(self) -> bool:
        return self.status in ("completed", "stopped")

    @property
    def interventions(self) -> Mapping[str, Any]:
        return {**self.waiting, **(self.state.get("interventions") or {})}

    @property
    def nodes(self) -> tuple[RayNode, ...]:
        found = self.state.get("nodes") or {}
        return tuple(msgspec.convert(each, prepared(RayNode)) for each in found.values())

    @property
    def placed(self) -> tuple[str, ...]:
        """Names of the nodes that carry ranks now."""
        attempt = self.state.get("attempt") or {}
        placements = (attempt.get("plan") or {}).get("placements") or ()
        return tuple(str(each["node"]) for each in placements)


class Failure(msgspec.Struct, frozen=True):
    """An action that could not be carried out at the last look. times: at how many in a row.

    is_final: the server will never take it as it is.
    """

    what: str
    code: str
    message: str
    is_final: bool = False
    times: int = 1


class Reach(msgspec.Struct, frozen=True):
    """What could not be seen this time, and why; "" where it could."""

    jobs: str = ""
    api: str = ""
    nodes: str = ""
    kuberay: str = ""
    secrets: str = ""


class Observed(msgspec.Struct, frozen=True):
    """One look. now_s: when. cluster: the RayCluster, None when there is none.

    secrets: names of the token Secrets that exist. failures: of the actions of the look before.
    user: the operator as the API server knows it.
    """

    now_s: float
    run: Object
    cluster: Object | None = None
    pods: tuple[Pod, ...] = ()
    nodes: Mapping[str, NodeSight] = {}
    jobs: tuple[JobSight, ...] = ()
    sight: RunSight | None = None
    interventions: tuple[Object, ...] = ()
    approvals: tuple[Object, ...] = ()
    secrets: frozenset[str] = frozenset()
    has_service: bool = True
    reach: Reach = Reach()
    failures: tuple[Failure, ...] = ()
    user: str = ""

    @property
    def name(self) -> str:
        return str(self.run["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.run["metadata"]["namespace"])

    @property
    def uid(self) -> str:
        return str(self.run["metadata"]["uid"])

    @property
    def generation(self) -> int:
        return int(self.run["metadata"].get("generation", 0))

    @property
    def deleting_s(self) -> float | None:
        return time_of(self.run["metadata"].get("deletionTimestamp"))

    @property
    def has_finalizer(self) -> bool:
        return names.FINALIZER in (self.run["metadata"].get("finalizers") or ())

    @property
    def is_own_cluster(self) -> bool:
        """Whether the RayCluster was made for this very TrainingRun."""
        labels = (self.cluster or {}).get("metadata", {}).get("labels") or {}
        return bool(labels.get(names.RUN_UID_LABEL) == self.uid)

    @property
    def status(self) -> Object:
        found: Object = self.run.get("status") or {}
        return found

    @property
    def cordoner(self) -> str:
        """How a cordon in the name of the run is signed."""
        return f"{self.namespace}/{self.name}"


def read_pod(pod: Object) -> Pod:
    """Return what of a pod matters."""
    meta, status = pod["metadata"], pod.get("status") or {}
    labels = meta.get("labels") or {}
    conditions = status.get("conditions") or ()
    is_head = labels.get(names.RAY_NODE_TYPE_LABEL) == "head"
    ready = [c for c in conditions if c["type"] == "Ready" and c["status"] == "True"]
    return Pod(
        name=meta["name"],
        uid=meta.get("uid", ""),
        ip=status.get("podIP", ""),
        node=(pod.get("spec") or {}).get("nodeName", ""),
        group="" if is_head else labels.get(names.RAY_GROUP_LABEL, ""),
        is_head=is_head,
        phase=status.get("phase", "Pending"),
        is_ready=bool(ready),
        ready_s=time_of(ready[0].get("lastTransitionTime")) or 0.0 if ready else 0.0,
        deleting_s=time_of(meta.get("deletionTimestamp")),
    )


def read_node(node: Object) -> NodeSight:
    """Return what a Node object says about the node: conditions, taints, cordon."""
    meta, spec, status = node["metadata"], node.get("spec") or {}, node.get("status") or {}
    signs = [
        Sign(
            SignSource.CONDITION,
            each["type"],
            each["status"],
            " ".join(filter(None, (each.get("reason"), each.get("message"))))[:512],
        )
        for each in status.get("conditions") or ()
    ]
    taints = spec.get("taints") or ()
    for taint in taints:
        value = f"{taint.get('value', '')}:{taint.get('effect', '')}"
        signs.append(Sign(SignSource.TAINT, taint["key"], value))
    cordoned_by = (meta.get("annotations") or {}).get(names.CORDONED_BY, "")
    is_cordoned = bool(spec.get("unschedulable"))
    if is_cordoned:
        signs.append(Sign(SignSource.CORDON, "unschedulable", "True"))
    is_ready = {each["type"]: each["status"] for each in status.get("conditions") or ()}
    return NodeSight(
        name=meta["name"],
        hostname=(meta.get("labels") or {}).get("kubernetes.io/hostname", ""),
        is_unreachable=is_ready.get("Ready") == "Unknown"
        or any(taint["key"] in _UNREACHABLE for taint in taints),
        is_cordoned=is_cordoned,
        cordoned_by=cordoned_by,
        signs=tuple(signs),
    )
