"""The objects made for a run: every field is one that Kubernetes and KubeRay have."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from kubernetes import client
from midwatch.operator.k8s.actions import Action, ApplyObject
from midwatch.operator.k8s.model import read_spec
from midwatch.operator.k8s.raycluster import (
    Owner,
    build_cluster,
    build_service,
    build_token_secret,
)
from midwatch.operator.k8s.reconcile import reconcile
from midwatch.tests.support.kube import Object
from midwatch.tests.support.kube_run import make_run
from midwatch.tests.support.kube_sights import look, make_cluster, of_kind

# ray.io/v1 of KubeRay 1.7, as far as 1.5.1 has it too, but for what fault tolerance needs.
CLUSTER_FIELDS = {
    "authOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec",
    "rayVersion", "suspend", "workerGroupSpecs",
}  # fmt: skip
GROUP_FIELDS = {
    "groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "rayStartParams",
    "template",
}  # fmt: skip
FULL: dict[str, Any] = {
    "imagePullSecrets": ["pull"],
    "serviceAccountName": "trainer",
    "worker": {
        "hostNetwork": True,
        "rdma": True,
        "extraResources": {"rdma/hca": "8"},
        "gpusPerNode": 8,
    },
    "placement": {
        "nodeSelector": {"gpu": "a100"},
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "excludedNodes": ["host-x"],
        "priorityClassName": "high",
        "sparePriorityClassName": "low",
    },
    "scheduling": {"queueName": "team", "gang": True, "batchScheduler": "Volcano"},
    "storage": {"claimName": "runs", "subPath": "a", "secretName": "s3"},
    "faultTolerance": {
        "mode": "Redis",
        "redisAddress": "redis:6379",
        "redisPasswordSecret": {"name": "redis", "key": "password"},
    },
    "ray": {"env": {"NCCL_DEBUG": "WARN"}},
}


def test_the_head_keeps_off_excluded_nodes_and_may_have_nodes_of_its_own() -> None:
    def pods(**spec: Any) -> list[Object]:
        cluster = build(("host-bad",), placement={"nodeSelector": {"gpu": "a100"}}, **spec)["spec"]
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        return [group["template"]["spec"] for group in groups]

    for pod in pods():
        (term,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
            "nodeSelectorTerms"
        ]
        assert term["matchExpressions"][0]["values"] == ["host-bad"]
    assert [pod["nodeSelector"] for pod in pods()] == [{"gpu": "a100"}] * 3
    head, *workers = pods(head={"nodeSelector": {"pool": "cpu"}})
    assert head["nodeSelector"] == {"pool": "cpu"}
    assert [pod["nodeSelector"] for pod in workers] == [{"gpu": "a100"}] * 2
    assert "nodeSelector" not in pods(head={"nodeSelector": {}})[0]


def build(excluded: tuple[str, ...] = (), **spec: Any) -> Object:
    run = make_run(**spec)
    run["metadata"]["uid"] = "run-uid"
    whole, inner = read_spec(run["spec"], "night", "ml")
    return build_cluster(Owner(run), whole, inner, excluded)


def templates(cluster: Object) -> list[Object]:
    spec = cluster["spec"]
    groups = spec["workerGroupSpecs"]
    return [spec["headGroupSpec"]["template"], *(group["template"] for group in groups)]


@pytest.mark.parametrize("spec", [{}, FULL])
def test_every_field_is_known(spec: dict[str, Any]) -> None:
    cluster = build(("host-k",), **spec)
    assert set(cluster["spec"]) <= CLUSTER_FIELDS
    assert all(set(group) == GROUP_FIELDS for group in cluster["spec"]["workerGroupSpecs"])
    for template in templates(cluster):
        read = client.V1PodTemplateSpec.from_dict(template)
        assert read is not None
        # What the model does not know would be missing on the way back.
        assert read.model_dump(by_alias=True, exclude_none=True) == template
    run = make_run()
    run["metadata"]["uid"] = "run-uid"
    for model, body in (
        (client.V1Service, build_service(Owner(run), "night")),
        (client.V1Secret, build_token_secret(Owner(run), "viewer")),
    ):
        assert model.from_dict(body).model_dump(by_alias=True, exclude_none=True) == body


def test_what_must_not_be_there_is_not() -> None:
    spec = build()["spec"]
    # Each of these would delete or restart what trains.
    assert spec["enableInTreeAutoscaling"] is False
    assert "upgradeStrategy" not in spec
    assert all(group["numOfHosts"] == 1 for group in spec["workerGroupSpecs"])
    for group in spec["workerGroupSpecs"]:
        assert group["template"]["spec"]["restartPolicy"] == "Never"
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]
    assert all(t["spec"]["automountServiceAccountToken"] is False for t in templates(build()))


def test_ray_asks_for_a_token_carries_no_rank_on_its_head_and_looks_often() -> None:
    cluster = build()
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    head = cluster["spec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    env = {e["name"]: e["value"] for e in head["template"]["spec"]["containers"][0]["env"]}
    assert env["RAY_health_check_period_ms"] == "1000"


def test_the_head_serves_the_api_with_the_tokens_and_the_run_folder() -> None:
    head = build()["spec"]["headGroupSpec"]["template"]["spec"]
    api = head["containers"][1]
    assert "midwatch serve /midwatch/ml/night --host 0.0.0.0 --port 8470" in api["args"][0]
    mounted = {mount["mountPath"] for mount in api["volumeMounts"]}
    assert {"/midwatch", "/etc/midwatch-api"} <= mounted
    workers = build()["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert "/etc/midwatch-api" not in {mount["mountPath"] for mount in workers["volumeMounts"]}


def test_pods_leave_a_node_that_is_away_after_seconds_and_keep_off_excluded_ones() -> None:
    pod = build(("host-k",), **FULL)["spec"]["workerGroupSpecs"][0]["template"]["spec"]
    seconds = {t["key"]: t.get("tolerationSeconds") for t in pod["tolerations"]}
    assert seconds["node.kubernetes.io/unreachable"] == 30
    assert seconds["node.kubernetes.io/not-ready"] == 30
    affinity = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (term,) = affinity["nodeSelectorTerms"]
    assert term["matchExpressions"] == [
        {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["host-k", "host-x"]}
    ]


def test_gpus_priorities_queue_and_gang_are_passed_on() -> None:
    cluster = build(**FULL)
    labels = cluster["metadata"]["labels"]
    assert labels["volcano.sh/queue-name"] == "team"
    assert labels["ray.io/gang-scheduling-enabled"] == "true"
    worker, spare = cluster["spec"]["workerGroupSpecs"]
    limits = worker["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert (limits["nvidia.com/gpu"], limits["rdma/hca"]) == ("8", "8")
    assert worker["template"]["spec"]["priorityClassName"] == "high"
    assert spare["template"]["spec"]["priorityClassName"] == "low"
    cpu = build(worker={"gpusPerNode": 0})["spec"]["workerGroupSpecs"][0]
    assert "nvidia.com/gpu" not in cpu["template"]["spec"]["containers"][0]["resources"]["limits"]


@pytest.mark.parametrize(
    ("scheduler", "label"),
    [
        ("None", "kueue.x-k8s.io/queue-name"),
        ("SchedulerPlugins", "kueue.x-k8s.io/queue-name"),
        ("Volcano", "volcano.sh/queue-name"),
        ("YuniKorn", "yunikorn.apache.org/queue"),
        ("KaiScheduler", "kai.scheduler/queue"),
    ],
)
def test_a_queue_is_named_as_its_scheduler_reads_it(scheduler: str, label: str) -> None:
    cluster = build(scheduling={"queueName": "team", "batchScheduler": scheduler})
    labels = cluster["metadata"]["labels"]
    assert {name for name, value in labels.items() if value == "team"} == {label}
    assert labels.get("yunikorn.apache.org/app-id") == (
        "run-uid" if scheduler == "YuniKorn" else None
    )
    # Kueue admits by clearing it: nobody else may hold the field. Of all others it is ours.
    assert ("suspend" in cluster["spec"]) == (label != "kueue.x-k8s.io/queue-name")


def test_what_kueue_has_put_into_the_pods_stays_until_it_suspends_them() -> None:
    spec = {"scheduling": {"queueName": "team"}}
    wanted = build(**spec)
    admitted = copy.deepcopy(wanted)
    flavour = {"key": "flavour", "operator": "Exists", "effect": "NoSchedule"}
    for template in templates(admitted):
        template["metadata"]["labels"]["kueue.x-k8s.io/podset"] = "worker"
        template["metadata"]["annotations"] = {"kueue.x-k8s.io/workload": "w"}
        template["spec"]["nodeSelector"] = {"pool": "a100"}
        template["spec"]["tolerations"].append(flavour)
        template["spec"]["schedulingGates"] = [{"name": "kueue.x-k8s.io/topology"}]
    seen = look(spec=spec, cluster={**make_cluster(), "spec": admitted["spec"]})
    applied = cluster_of(reconcile(seen))
    assert templates(applied) == templates(admitted)
    # What is changed of ours is still changed, and nothing is there twice.
    slower = {**spec, "placement": {"unreachableSeconds": 60}}
    seen = look(spec=slower, cluster={**make_cluster(), "spec": admitted["spec"]})
    for template in templates(cluster_of(reconcile(seen))):
        seconds = [t.get("tolerationSeconds") for t in template["spec"]["tolerations"]]
        assert seconds == [60, 60, None]
    # Suspended, it is given back as it was made; without a queue nothing is kept of others.
    admitted["spec"]["suspend"] = True
    seen = look(spec=spec, cluster={**make_cluster(), "spec": admitted["spec"]})
    assert templates(cluster_of(reconcile(seen))) == templates(wanted)
    del admitted["spec"]["suspend"]
    seen = look(cluster={**make_cluster(), "spec": admitted["spec"]})
    assert templates(cluster_of(reconcile(seen))) == templates(build())


def cluster_of(actions: list[Action]) -> Object:
    bodies = [each.body for each in of_kind(actions, ApplyObject)]
    (found,) = (body for body in bodies if body["kind"] == "RayCluster")
    return dict(found)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, None),
        (
            FULL["faultTolerance"],
            {
                "redisAddress": "redis:6379",
                "redisPassword": {
                    "valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}
                },
            },
        ),
        (
            {"mode": "RocksDB", "storageSize": "1Gi"},
            {"backend": "rocksdb", "storage": {"size": "1Gi"}},
        ),
    ],
)
def test_rays_own_state_is_kept_as_asked(chosen: Object, expected: Object | None) -> None:
    spec = build(faultTolerance=chosen)["spec"]
    assert spec.get("gcsFaultToleranceOptions") == expected
