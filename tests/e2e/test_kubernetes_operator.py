"""The operator on a real API server, with the rights of its service account and no others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.control_plane import Object, Plane, Refused
from tests.support.live_run import wait_until

from .conftest import rendered

MIDWATCH = Path(sys.executable).with_name("midwatch")
ACCOUNT = ("midwatch-system", "midwatch-operator")


@pytest.fixture
def kubeconfig(installed: Plane, tmp_path: Path) -> Path:
    return installed.as_account(*ACCOUNT, tmp_path / "operator.kubeconfig")


@contextmanager
def _operator(kubeconfig: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    env = {
        **os.environ,
        "KUBECONFIG": str(kubeconfig),
        "POD_NAME": f"e2e-{uuid.uuid4().hex[:6]}",
        "POD_NAMESPACE": ACCOUNT[0],
        "POD_SERVICE_ACCOUNT": ACCOUNT[1],
    }
    words = [MIDWATCH, "operator", "--namespace", "training", "--probe-port", "0"]
    with log.open("ab") as out:
        process = subprocess.Popen(words, env=env, stdout=out, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(30.0)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _submit(plane: Plane, **changes: object) -> str:
    (run,) = (o for o in rendered("overlays/dev") if o["kind"] == "TrainingRun")
    run["metadata"]["name"] = f"e2e-{uuid.uuid4().hex[:8]}"
    run["spec"] |= changes
    return str(plane.create(run)["metadata"]["name"])


def _find(plane: Plane, kind: str, name: str) -> Object | None:
    try:
        return plane.get(kind, name, "training")
    except Refused:
        return None


def _await_object(plane: Plane, kind: str, name: str, log: Path) -> Object:
    found: list[Object | None] = [None]

    def is_there() -> bool:
        found[0] = _find(plane, kind, name)
        return found[0] is not None

    try:
        wait_until(is_there, f"{kind} {name} never came", deadline_s=60.0)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{log.read_text()[-3000:]}") from error
    assert found[0] is not None
    return found[0]


def _conditions(plane: Plane, run: str) -> dict[str, str]:
    found = _find(plane, "trun", run) or {}
    listed = found.get("status", {}).get("conditions", [])
    return {c["type"]: c["status"] for c in listed}


def test_a_run_gets_its_cluster_and_keeps_it_over_the_operators_death(
    installed: Plane, kubeconfig: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    run = _submit(installed, deletion={"timeoutSeconds": 0})
    with _operator(kubeconfig, log) as operator:
        cluster = _await_object(installed, "rayclusters.ray.io", run, log)
        wait_until(lambda: "Ready" in _conditions(installed, run), "no condition was ever set")
        # A deletion in the foreground must not take it before the run has saved.
        assert "ownerReferences" not in cluster["metadata"]
        assert cluster["metadata"]["labels"]["midwatch.dev/run"] == run
        groups = {g["groupName"]: g["replicas"] for g in cluster["spec"]["workerGroupSpecs"]}
        assert groups == {"worker": 2, "spare": 1}
        operator.kill()
        operator.wait()
    with _operator(kubeconfig, log):
        # The Lease of the dead one runs out first; a second run shows that the new one works.
        second = _submit(installed, deletion={"timeoutSeconds": 0})
        _await_object(installed, "rayclusters.ray.io", second, log)
        after = installed.get("rayclusters.ray.io", run, "training")
        assert after["metadata"]["uid"] == cluster["metadata"]["uid"]
        assert after["metadata"]["generation"] == cluster["metadata"]["generation"]
        installed.kubectl("delete", "trun", run, second, "-n", "training", "--wait=false")
        for name in (run, second):
            wait_until(
                lambda name=name: _find(installed, "trun", name) is None,
                f"{name} was never let go",
                deadline_s=60.0,
            )
    assert "forbidden" not in log.read_text().lower()


def _pretended_nodes(count: int) -> list[Object]:
    """Nodes of 8 A100 each as KWOK plays them: pods on them are running and ready at once."""
    room = {"cpu": "96", "memory": "2000Gi", "pods": "110", "nvidia.com/gpu": "8"}
    room["rdma/hca_shared_devices_a"] = "1"
    labels = {"type": "kwok", "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}
    return [
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": f"a100-{number:03}",
                "labels": {**labels, "kubernetes.io/hostname": f"a100-{number:03}"},
                "annotations": {"kwok.x-k8s.io/node": "fake"},
            },
            "status": {"allocatable": room, "capacity": room},
        }
        for number in range(count)
    ]


def _pretended_storage() -> list[Object]:
    room = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    volume = {"capacity": {"storage": "1Gi"}, "hostPath": {"path": "/tmp"}, **room}
    claim = {"resources": {"requests": {"storage": "1Gi"}}, "volumeName": "e2e", **room}
    meta = {"name": "midwatch", "namespace": "training"}
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": "e2e"},
            "spec": volume,
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": meta,
            "spec": claim,
        },
    ]


@pytest.mark.timeout(900)
def test_132_pretended_nodes_are_filled(installed: Plane, kubeconfig: Path, tmp_path: Path) -> None:
    """With KWOK for the nodes and the real KubeRay between: all pods come up, each on a node."""
    if not (installed.has("stages.kwok.x-k8s.io") and installed.has("rayservices.ray.io")):
        pytest.skip("this control plane has not both KWOK (with its Stage kind) and KubeRay")
    log = tmp_path / "log"
    installed.apply([*_pretended_nodes(133), *_pretended_storage()])
    (run,) = (o for o in rendered("overlays/opt-175b") if o["kind"] == "TrainingRun")
    run["spec"] |= {"deletion": {"timeoutSeconds": 0}, "faultTolerance": {"mode": "None"}}
    installed.apply([run])
    with _operator(kubeconfig, log):
        _await_object(installed, "rayclusters.ray.io", "opt-175b", log)

        def all_ready() -> bool:
            found = installed.get("rayclusters.ray.io", "opt-175b", "training")
            return int(found.get("status", {}).get("readyWorkerReplicas", 0)) == 132

        wait_until(all_ready, "not all of 132 pods came up", deadline_s=600.0)
        pods = json.loads(
            installed.kubectl(
                *("get", "pods", "-n", "training", "-o", "json"),
                *("-l", "ray.io/cluster=opt-175b,ray.io/node-type=worker"),
            )
        )["items"]
        assert len({pod["spec"]["nodeName"] for pod in pods}) == 132
        installed.kubectl("delete", "trun", "opt-175b", "-n", "training", "--wait=false")
        wait_until(
            lambda: _find(installed, "trun", "opt-175b") is None, "never let go", deadline_s=60.0
        )


def test_a_cluster_of_124_nodes(installed: Plane, kubeconfig: Path, tmp_path: Path) -> None:
    """OPT-175B's TrainingRun: KubeRay is asked for 124 nodes of 8 GPUs each, and 8 spares."""
    log = tmp_path / "log"
    (run,) = (o for o in rendered("overlays/opt-175b") if o["kind"] == "TrainingRun")
    run["spec"]["deletion"] = {"timeoutSeconds": 0}
    installed.apply([run])
    with _operator(kubeconfig, log):
        cluster = _await_object(installed, "rayclusters.ray.io", "opt-175b", log)
        groups = {g["groupName"]: g for g in cluster["spec"]["workerGroupSpecs"]}
        assert (groups["worker"]["replicas"], groups["spare"]["replicas"]) == (124, 8)
        for group in groups.values():
            (container,) = group["template"]["spec"]["containers"]
            assert int(container["resources"]["limits"]["nvidia.com/gpu"]) == 8
            assert group["template"]["spec"]["restartPolicy"] == "Never"
        installed.kubectl("delete", "trun", "opt-175b", "-n", "training", "--wait=false")
        wait_until(
            lambda: _find(installed, "trun", "opt-175b") is None, "never let go", deadline_s=60.0
        )
