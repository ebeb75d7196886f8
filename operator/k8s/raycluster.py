"""The RayCluster of a run, the Service of its API and its token Secrets: pure builders.

The choices that are not obvious, each for a failure it prevents: no autoscaler (it would delete
idle spares); no upgradeStrategy (a changed template must not restart what trains); one host a
replica; workers that are never restarted in place, since the node may be what is wrong; not-ready
nodes left after seconds instead of five minutes; Ray's health checks tightened, so that a dead node
is known in seconds; the head without CPUs for ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..spec import RunSpec
from . import names
from .model import TrainingRunSpec
from .observed import Object
from .queueing import labels_for

HEALTH_CHECKS = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_initial_delay_ms": "0",
}
_HOSTNAME = "kubernetes.io/hostname"
_NOT_READY = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
_SHARED, _SHM, _TOKENS, _SCRATCH = "midwatch", "shm", "midwatch-api", "scratch"


class Owner:
    """The TrainingRun as the owner of what is made for it."""

    def __init__(self, run: Object) -> None:
        meta = run["metadata"]
        self.name, self.namespace, self.uid = meta["name"], meta["namespace"], meta["uid"]

    def metadata(
        self, name: str, labels: dict[str, str] | None = None, *, is_collected: bool = True
    ) -> Object:
        """Return the metadata of an object. is_collected: it goes by itself when the run goes."""
        found: Object = {
            "name": name,
            "namespace": self.namespace,
            "labels": {**names.labels_of(self.name, self.uid), **(labels or {})},
        }
        if is_collected:
            found["ownerReferences"] = [
                {
                    "apiVersion": names.API_VERSION,
                    "kind": names.TRAINING_RUN,
                    "name": self.name,
                    "uid": self.uid,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ]
        return found


def build_cluster(
    owner: Owner, spec: TrainingRunSpec, run: RunSpec, excluded: Sequence[str]
) -> Object:
    """Return the RayCluster. excluded: nodes on which no new pod of it may be placed."""
    labels = labels_for(spec.scheduling, owner.uid)
    cluster: Object = {
        "rayVersion": spec.ray.version,
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": False,
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"},
            "template": _head_pod(owner, spec, excluded),
        },
        "workerGroupSpecs": [
            _group(owner, spec, run, names.WORKER_GROUP, run.num_nodes, excluded),
            *(
                [_group(owner, spec, run, names.SPARE_GROUP, run.nodes.spares, excluded)]
                if run.nodes.spares
                else []
            ),
        ],
    }
    if spec.fault_tolerance.mode != "None":
        cluster["gcsFaultToleranceOptions"] = _fault_tolerance(spec)
    if not spec.scheduling.is_kueue:
        # Never True: KubeRay would take all pods at once, before the run has saved. Kueue owns the
        # field of a queued cluster: it admits by clearing it.
        cluster["suspend"] = False
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        # Without an owner: a deletion in the foreground, as Argo CD does it, would have the garbage
        # collector take the cluster at once. The finalizer of the run sees to it, after the save.
        "metadata": owner.metadata(owner.name, labels, is_collected=False),
        "spec": cluster,
    }


def build_service(owner: Owner, cluster: str) -> Object:
    """Return the Service at which the run's HTTP API answers: on the pod of the head."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": owner.metadata(names.api_name(owner.name)),
        "spec": {
            "selector": {names.RAY_CLUSTER_LABEL: cluster, names.RAY_NODE_TYPE_LABEL: "head"},
            "ports": [
                {
                    "name": names.API_PORT_NAME,
                    "port": names.API_PORT,
                    "targetPort": names.API_PORT,
                    "protocol": "TCP",
                }
            ],
        },
    }


def build_token_secret(owner: Owner, role: str) -> Object:
    """Return the Secret of a role without its token."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": owner.metadata(names.token_secret_name(owner.name, role)),
        "type": "Opaque",
        "immutable": True,
    }


def _head_pod(owner: Owner, spec: TrainingRunSpec, excluded: Sequence[str]) -> Object:
    head = spec.head
    resources = {"cpu": head.cpu, "memory": head.memory}
    ray: Object = {
        **_container(spec, "ray-head", resources),
        "env": _env({**HEALTH_CHECKS, **spec.ray.env}),
        "ports": [
            {"name": "gcs", "containerPort": 6379},
            {"name": "dashboard", "containerPort": names.DASHBOARD_PORT},
            {"name": "client", "containerPort": 10001},
        ],
    }
    pod = _pod(spec, spec.placement.priority_class_name, excluded, head.node_selector)
    pod["containers"] = [ray, _api_container(owner, spec)]
    pod["volumes"].append({"name": _TOKENS, "projected": {"sources": _token_sources(owner)}})
    return {"metadata": {"labels": names.labels_of(owner.name, owner.uid)}, "spec": pod}


def _api_container(owner: Owner, spec: TrainingRunSpec) -> Object:
    """The run's HTTP API beside the head: it needs the run folder and nothing of Ray."""
    folder = names.run_dir(spec.storage.mount_path, owner.namespace, owner.name)
    serve = f"midwatch serve {folder} --host 0.0.0.0 --port {names.API_PORT}"
    # It holds 60 MB where nobody asks; many readers of a long run at once are what the rest is for.
    container = _container(spec, "midwatch-api", {"cpu": "500m", "memory": "1Gi"})
    container["volumeMounts"].append({"name": _TOKENS, "mountPath": names.TOKEN_DIR})
    return {
        **container,
        # A container that ends waits longer each time, so it waits by itself: until the controller
        # has written down the spec in which these tokens are named.
        "command": ["/bin/sh", "-c"],
        "args": [
            f"until grep -qs {names.TOKEN_DIR}/ {folder}/journal/*; do sleep 1; done; exec {serve}"
        ],
        "env": _env(spec.ray.env),
        "ports": [{"name": names.API_PORT_NAME, "containerPort": names.API_PORT}],
    }


def _token_sources(owner: Owner) -> list[Object]:
    return [
        {
            "secret": {
                "name": names.token_secret_name(owner.name, role),
                "items": [{"key": names.TOKEN_KEY, "path": role}],
            }
        }
        for role in (names.VIEWER, names.OPERATOR)
    ]


def _group(
    owner: Owner,
    spec: TrainingRunSpec,
    run: RunSpec,
    group: str,
    replicas: int,
    excluded: Sequence[str],
) -> Object:
    worker = spec.worker
    gpus = run.nodes.ranks_per_node if worker.gpus_per_node is None else worker.gpus_per_node
    resources = {"cpu": worker.cpu, "memory": worker.memory, **worker.extra_resources}
    if gpus:
        resources[worker.gpu_resource] = str(gpus)
    container: Object = {
        **_container(spec, "ray-worker", resources),
        "env": _env(spec.ray.env),
    }
    if worker.rdma:
        container["securityContext"] = {"capabilities": {"add": ["IPC_LOCK"]}}
    priority = spec.placement.priority_class_name
    if group == names.SPARE_GROUP:
        priority = spec.placement.spare_priority_class_name or priority
    pod = _pod(spec, priority, excluded)
    pod["containers"] = [container]
    pod["restartPolicy"] = "Never"
    if worker.host_network:
        pod["hostNetwork"] = True
        pod["dnsPolicy"] = "ClusterFirstWithHostNet"
    return {
        "groupName": group,
        "replicas": replicas,
        "minReplicas": replicas,
        "maxReplicas": replicas,
        "numOfHosts": 1,
        "rayStartParams": {"num-gpus": str(gpus)},
        "template": {"metadata": {"labels": names.labels_of(owner.name, owner.uid)}, "spec": pod},
    }


def _pod(
    spec: TrainingRunSpec,
    priority: str,
    excluded: Sequence[str],
    node_selector: dict[str, str] | None = None,
) -> Object:
    placement, storage = spec.placement, spec.storage
    selector = placement.node_selector if node_selector is None else node_selector
    shm = {"medium": "Memory", "sizeLimit": spec.worker.shared_memory}
    pod: Object = {
        "automountServiceAccountToken": False,
        "tolerations": [_toleration(key, placement.unreachable_seconds) for key in _NOT_READY]
        + [each.model_dump(by_alias=True, exclude_none=True) for each in placement.tolerations],
        "volumes": [
            {"name": _SHARED, "persistentVolumeClaim": {"claimName": storage.claim_name}},
            {"name": _SHM, "emptyDir": shm},
            {"name": _SCRATCH, "emptyDir": {}},
        ],
    }
    optional = {
        "serviceAccountName": spec.service_account_name,
        "priorityClassName": priority,
        "nodeSelector": dict(selector),
        "affinity": _affinity(sorted({*excluded, *placement.excluded_nodes})),
        "imagePullSecrets": [{"name": name} for name in spec.image_pull_secrets],
    }
    return {**pod, **{key: value for key, value in optional.items() if value}}


def _container(spec: TrainingRunSpec, name: str, resources: dict[str, str]) -> Object:
    storage = spec.storage
    shared = {"name": _SHARED, "mountPath": storage.mount_path}
    if storage.sub_path:
        shared["subPath"] = storage.sub_path
    container: Object = {
        "name": name,
        "image": spec.image,
        "imagePullPolicy": spec.image_pull_policy,
        "resources": {"requests": dict(resources), "limits": dict(resources)},
        "volumeMounts": [
            shared,
            {"name": _SHM, "mountPath": "/dev/shm"},
            {"name": _SCRATCH, "mountPath": "/tmp"},
        ],
    }
    if storage.secret_name:
        container["envFrom"] = [{"secretRef": {"name": storage.secret_name}}]
    return container


def _toleration(key: str, seconds: int) -> Object:
    return {
        "key": key,
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": seconds,
    }


def _affinity(excluded: Sequence[str]) -> Object:
    if not excluded:
        return {}
    term = {"matchExpressions": [{"key": _HOSTNAME, "operator": "NotIn", "values": list(excluded)}]}
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    return {"nodeAffinity": {required: {"nodeSelectorTerms": [term]}}}


def _env(values: dict[str, str]) -> list[Any]:
    return [{"name": name, "value": value} for name, value in sorted(values.items())]


def _fault_tolerance(spec: TrainingRunSpec) -> Object:
    chosen = spec.fault_tolerance
    if chosen.mode == "Redis":
        found: Object = {"redisAddress": chosen.redis_address}
        secret = chosen.redis_password_secret
        if secret is not None:
            reference = {"name": secret.name, "key": secret.key}
            found["redisPassword"] = {"valueFrom": {"secretKeyRef": reference}}
        return found
    storage: Object = {"size": chosen.storage_size}
    if chosen.storage_class_name:
        storage["storageClassName"] = chosen.storage_class_name
    return {"backend": "rocksdb", "storage": storage}
