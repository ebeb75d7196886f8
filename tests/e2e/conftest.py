"""What the tests on a real control plane share: Midwatch installed on it, once."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.control_plane import KUBECTL, Object, Plane, control_plane, why_none
from tests.support.kube_yaml import load_all

MANIFESTS = Path(__file__).parents[2] / "manifests"
# Kinds that others bring along; each is applied where it is known.
FOREIGN = ("monitoring.coreos.com", "kueue.x-k8s.io")
RAY_CLUSTERS = "rayclusters.ray.io"


def rendered(folder: str) -> list[Object]:
    """Return the objects of one kustomization, those of others' kinds left out."""
    text = subprocess.run(
        [KUBECTL, "kustomize", MANIFESTS / folder], capture_output=True, text=True, check=True
    ).stdout
    return [o for o in load_all(text) if o["apiVersion"].partition("/")[0] not in FOREIGN]


def ray_cluster_crd() -> Object:
    """The kind RayCluster as far as its name goes, for a control plane without KubeRay."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}},
    }
    names = {"plural": "rayclusters", "singular": "raycluster", "kind": "RayCluster"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": RAY_CLUSTERS},
        "spec": {
            "group": "ray.io",
            "scope": "Namespaced",
            "names": {**names, "listKind": "RayClusterList"},
            "versions": [version],
        },
    }


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    reason = why_none()
    if reason:
        pytest.skip(reason)
    with control_plane(tmp_path_factory.mktemp("plane")) as found:
        yield found


@pytest.fixture(scope="session")
def installed(plane: Plane) -> Plane:
    """Midwatch as the overlay of OPT-175B installs it, its run left out."""
    if not plane.has(RAY_CLUSTERS):
        plane.apply([ray_cluster_crd()])
    objects = [o for o in rendered("overlays/opt-175b") if o["kind"] != "TrainingRun"]
    first = ("CustomResourceDefinition", "Namespace")
    plane.apply([o for o in objects if o["kind"] in first])
    crds = [
        f"crd/{o['metadata']['name']}" for o in objects if o["kind"] == "CustomResourceDefinition"
    ]
    plane.kubectl("wait", "--for=condition=Established", "--timeout=60s", *crds)
    plane.apply([o for o in objects if o["kind"] not in first])
    return plane
