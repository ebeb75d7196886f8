"""What queues and gang schedulers want to find on a RayCluster, and what Kueue puts there."""

from __future__ import annotations

from typing import Any

from .model import SchedulingSpec
from .observed import Object

_GANG_LABEL = "ray.io/gang-scheduling-enabled"
_KUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_APPLICATION_LABEL = "yunikorn.apache.org/app-id"
_QUEUE_LABELS = {
    "Volcano": "volcano.sh/queue-name",
    "YuniKorn": "yunikorn.apache.org/queue",
    "KaiScheduler": "kai.scheduler/queue",
}


def labels_for(scheduling: SchedulingSpec, run_uid: str) -> dict[str, str]:
    """Return the labels by which the RayCluster of a run is queued and started whole."""
    labels: dict[str, str] = {}
    if scheduling.gang:
        labels[_GANG_LABEL] = "true"
    if scheduling.batch_scheduler == "YuniKorn":
        labels[_APPLICATION_LABEL] = run_uid
    if scheduling.queue_name:
        label = _QUEUE_LABELS.get(scheduling.batch_scheduler, _KUEUE_LABEL)
        labels[label] = scheduling.queue_name
    return labels


def keep_injected(desired: Object, cluster: Object | None) -> Object:
    """Return a RayCluster with what Kueue has put into the pods of the one that it admitted.

    Groups are applied as a whole: without it their pods would lose the nodes of their flavour, and
    Kueue would take the cluster for another than it admitted. A suspended one is given back as it
    was made.
    """
    known = (cluster or {}).get("spec") or {}
    if not known or known.get("suspend"):
        return desired
    found = {each.get("groupName"): each for each in known.get("workerGroupSpecs") or ()}
    spec = desired["spec"]
    head = _merged(spec["headGroupSpec"], known.get("headGroupSpec") or {})
    groups = [_merged(each, found.get(each["groupName"], {})) for each in spec["workerGroupSpecs"]]
    return {**desired, "spec": {**spec, "headGroupSpec": head, "workerGroupSpecs": groups}}


def _merged(group: Object, known: Object) -> Object:
    template, injected = group["template"], known.get("template") or {}
    meta, pod = injected.get("metadata") or {}, injected.get("spec") or {}
    merged = {
        "metadata": {
            **template["metadata"],
            **_both(template["metadata"], meta, "labels"),
            **_both(template["metadata"], meta, "annotations"),
        },
        "spec": {
            **template["spec"],
            **_both(template["spec"], pod, "nodeSelector"),
            "tolerations": _tolerations(template["spec"]["tolerations"], pod),
        },
    }
    if pod.get("schedulingGates"):
        merged["spec"]["schedulingGates"] = pod["schedulingGates"]
    return {**group, "template": merged}


def _both(ours: Object, theirs: Object, field: str) -> Object:
    both = {**(theirs.get(field) or {}), **(ours.get(field) or {})}
    return {field: both} if both else {}


def _tolerations(ours: list[Object], pod: Object) -> list[Object]:
    known = [_about(each) for each in ours]
    return [*ours, *(t for t in pod.get("tolerations") or () if _about(t) not in known)]


def _about(toleration: Object) -> dict[str, Any]:
    return {key: value for key, value in toleration.items() if key != "tolerationSeconds"}
