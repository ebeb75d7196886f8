"""The manifests on a real API server: schemas, defaults, CEL rules, admission, roles, columns."""

from __future__ import annotations

import copy
import json
import time
import uuid

import pytest

from tests.support.control_plane import Object, Plane, Refused

from .conftest import rendered

ACCOUNT = "system:serviceaccount:midwatch-system:midwatch-operator"
VERSION = "midwatch.dev/v1alpha1"
ON_CALL, VIEWER, APPROVER = "opt-on-call", "opt-viewers", "opt-approvers"
SETTLE_S = 60.0


def _run(**changes: object) -> Object:
    (run,) = (o for o in rendered("overlays/dev") if o["kind"] == "TrainingRun")
    run = copy.deepcopy(run)
    run["metadata"]["name"] = f"e2e-{uuid.uuid4().hex[:8]}"
    run["spec"] |= changes
    return run


def _intervention(by: str, action: str = "Pause", **fields: object) -> Object:
    spec = {"runRef": {"name": "opt-175b"}, "action": action, "reason": "e2e", "requestedBy": by}
    meta = {"generateName": "e2e-", "namespace": "training"}
    body = {"apiVersion": VERSION, "kind": "Intervention", "metadata": meta}
    return {**body, "spec": spec | fields}


@pytest.fixture(scope="module")
def admission(installed: Plane) -> Plane:
    """A policy takes a moment until every API server holds to it: wait until it has."""
    deadline_s = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline_s:
        try:
            installed.create(_intervention("nobody"))
        except Refused:
            return installed
        time.sleep(0.2)
    raise AssertionError(f"the admission policies did not take hold in {SETTLE_S:.0f} s")


@pytest.mark.parametrize("folder", ["overlays/dev", "overlays/opt-175b", "overlays/volcano"])
def test_the_server_takes_every_object(installed: Plane, folder: str) -> None:
    installed.apply(rendered(folder), "--dry-run=server", "--validate=strict")


def test_defaults_are_filled_in(installed: Plane) -> None:
    made = installed.create(_run())
    assert made["spec"]["interventionPolicy"]["maxPerHour"] == 60
    assert made["spec"]["placement"]["cordon"] == "Never"


@pytest.mark.parametrize(
    "broken",
    [
        {"image": ""},
        {"unknownField": 1},
        {"worker": {"cpu": "many"}},
        {"scheduling": {"batchScheduler": "Volcanoe"}},
        {"interventionPolicy": {"allowed": ["Dance"]}},
    ],
)
def test_a_run_that_cannot_work_is_refused(installed: Plane, broken: Object) -> None:
    with pytest.raises(Refused):
        installed.create(_run(**broken))


def test_parallelism_is_never_changed(installed: Plane) -> None:
    made = installed.create(_run())
    name = made["metadata"]["name"]
    words = ("patch", "trun", name, "-n", "training", "--type=merge", "-p")
    with pytest.raises(Refused, match=r"immutable|changed|mesh"):
        installed.kubectl(*words, '{"spec": {"run": {"mesh": {"tp": 1}}}}')
    with pytest.raises(Refused, match=r"spares is immutable"):
        installed.kubectl(*words, '{"spec": {"run": {"nodes": {"spares": 7}}}}')
    installed.kubectl(*words, '{"spec": {"suspend": true}}')


def test_columns_describe_and_wait(installed: Plane) -> None:
    name = installed.create(_run())["metadata"]["name"]
    conditions = [
        {
            "type": kind,
            "status": "True",
            "reason": reason,
            "message": "said by a test",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
            "observedGeneration": 1,
        }
        for kind, reason in (("Ready", "Training"), ("Succeeded", "Completed"))
    ]
    status = {"conditions": conditions, "run": {"step": 300, "goodput": "93.1%"}}
    words = ("patch", "trun", name, "-n", "training", "--subresource=status", "--type=merge")
    installed.kubectl(*words, "-p", json.dumps({"status": status}))
    table = installed.kubectl("get", "trun", name, "-n", "training")
    header, row = table.splitlines()
    assert header.split() == ["NAME", "READY", "STEP", "LOSS", "LR", "GOODPUT", "RESTARTS", "AGE"]
    assert row.split()[:3] == [name, "True", "300"]
    assert "93.1%" in row
    wait = ("wait", "--for=condition=Succeeded", "--timeout=30s", "-n", "training")
    assert "condition met" in installed.kubectl(*wait, f"trun/{name}")
    assert "said by a test" in installed.kubectl("describe", "trun", name, "-n", "training")


# --- who may ask for what -------------------------------------------------------------------------


def test_one_asks_in_ones_own_name(admission: Plane) -> None:
    made = admission.create(_intervention("alice"), "alice", ON_CALL)
    assert made["spec"]["requestedBy"] == "alice"
    with pytest.raises(Refused, match=r"requestedBy is bob, but you are alice"):
        admission.create(_intervention("bob"), "alice", ON_CALL)


def test_each_action_takes_its_permission(admission: Plane) -> None:
    only_lr = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "e2e-only-lr", "namespace": "training"},
        "rules": [
            {"apiGroups": ["midwatch.dev"], "resources": ["interventions"], "verbs": ["create"]},
            {
                "apiGroups": ["midwatch.dev"],
                "resources": ["trainingruns/setlearningrate"],
                "resourceNames": ["opt-175b"],
                "verbs": ["intervene"],
            },
        ],
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "e2e-only-lr", "namespace": "training"},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "Role",
            "name": "e2e-only-lr",
        },
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "dan"}],
    }
    admission.apply([only_lr, binding])
    halve = _intervention("dan", "SetLearningRate", params={"multiplier": "0.5"})
    assert admission.create(halve, "dan")["metadata"]["name"]
    with pytest.raises(Refused, match="intervene on trainingruns/stop"):
        admission.create(_intervention("dan", "Stop"), "dan")
    halve["spec"]["runRef"]["name"] = "another-run"
    with pytest.raises(Refused, match="for another-run"):
        admission.create(halve, "dan")


@pytest.mark.parametrize(("user", "group"), [("carol", VIEWER), ("bob", APPROVER)])
def test_viewers_and_approvers_ask_for_nothing(admission: Plane, user: str, group: str) -> None:
    with pytest.raises(Refused, match="cannot create"):
        admission.create(_intervention(user), user, group)


def test_only_the_operator_acts_by_itself(admission: Plane) -> None:
    automatic = _intervention(ACCOUNT, "Restart")
    automatic["metadata"]["labels"] = {"midwatch.dev/origin": "automatic"}
    assert admission.create(automatic, ACCOUNT)["metadata"]["labels"]
    automatic["spec"]["requestedBy"] = "alice"
    with pytest.raises(Refused, match="intervene on trainingruns/restart"):
        admission.create(automatic, "alice", ON_CALL)
    automatic["spec"]["action"] = "Pause"
    with pytest.raises(Refused, match=r"labels of midwatch\.dev are the operator's"):
        admission.create(automatic, "alice", ON_CALL)


def test_what_was_asked_is_never_changed_nor_lost(admission: Plane) -> None:
    name = admission.create(_intervention("alice"), "alice", ON_CALL)["metadata"]["name"]
    words = ("patch", "intv", name, "-n", "training", "--type=merge", "-p")
    with pytest.raises(Refused):
        admission.kubectl(*words, '{"spec": {"reason": "another"}}')
    with pytest.raises(Refused, match="cannot delete"):
        admission.kubectl("delete", "intv", name, "-n", "training", user="alice", group=ON_CALL)
    label = ("label", "intv", name, "-n", "training", "midwatch.dev/origin=person")
    admission.kubectl(*label, user=ACCOUNT)
    admission.kubectl("delete", "intv", name, "-n", "training", user=ACCOUNT)


def test_a_second_person_approves_in_his_own_name(admission: Plane) -> None:
    asked = admission.create(_intervention("alice", "Stop"), "alice", ON_CALL)["metadata"]
    spec = {
        "interventionRef": {"name": asked["name"], "uid": asked["uid"]},
        "decision": "Approve",
        "reason": "e2e",
        "approvedBy": "bob",
    }
    meta = {"generateName": "e2e-", "namespace": "training"}
    body = {"apiVersion": VERSION, "kind": "InterventionApproval", "metadata": meta, "spec": spec}
    admission.create(body, "bob", APPROVER)
    with pytest.raises(Refused, match="cannot create"):
        admission.create({**body, "spec": spec | {"approvedBy": "alice"}}, "alice", ON_CALL)
    with pytest.raises(Refused, match=r"approvedBy is alice, but you are bob"):
        admission.create({**body, "spec": spec | {"approvedBy": "alice"}}, "bob", APPROVER)


@pytest.mark.parametrize(
    ("verb", "group", "resource", "wanted"),
    [
        ("create", "ray.io", "rayclusters", True),
        ("intervene", "midwatch.dev", "trainingruns/automatic", True),
        ("patch", "midwatch.dev", "trainingruns/status", True),
        ("list", "", "secrets", False),
        ("create", "", "pods", False),
        ("update", "rbac.authorization.k8s.io", "roles", False),
    ],
)
def test_the_operators_rights_are_those_that_it_needs(
    installed: Plane, verb: str, group: str, resource: str, wanted: bool
) -> None:
    name, _, sub = resource.partition("/")
    asked = {"namespace": "training", "verb": verb, "group": group, "resource": name}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {**asked, "subresource": sub}},
    }
    assert installed.create(review, ACCOUNT)["status"]["allowed"] is wanted
