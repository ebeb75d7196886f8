"""Commands that leave an Intervention or an approval in the cluster."""

from __future__ import annotations

import json
import threading

import pytest
from midwatch.operator.kubectl import objects

from tests.support.kube_server import KubeServer, Object
from tests.support.live_run import wait_until

from .conftest import Cli


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "POLL_S", 0.02)


def _made(cluster: KubeServer, resource: str) -> list[Object]:
    return [known for (kind, _, _), known in cluster.objects.items() if kind == resource]


def _settle(cluster: KubeServer, status: Object) -> threading.Thread:
    """Give the next Intervention a status, as the operator does."""

    def run() -> None:
        wait_until(lambda: bool(_made(cluster, "interventions")), "none was ever created")
        _made(cluster, "interventions")[0]["status"] = status

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_an_intervention_says_who_what_and_why(cli: Cli, cluster: KubeServer) -> None:
    status = {
        "conditions": [{"type": kind, "status": "True"} for kind in ("Accepted", "Applied")],
        "stage": "applied",
        "appliedAtStep": 4100,
        "previous": "1.2e-4",
        "current": "6e-5",
    }
    operator = _settle(cluster, status)
    words = ("--multiplier", "0.5", "--reason", "grad norm creeps", "--expect-attempt", "3")
    words += ("--expect-lr", "1.2e-4", "--expect-seq", "812")
    code, out, err = cli("intervene", "opt", "SetLearningRate", *words, "--for-steps", "200")
    operator.join()
    assert (code, err) == (0, "")
    made = _made(cluster, "interventions")[0]
    assert made["spec"] == {
        "runRef": {
            "name": "opt",
            "uid": cluster.objects["trainingruns", "training", "opt"]["metadata"]["uid"],
        },
        "action": "SetLearningRate",
        "params": {"multiplier": "0.5"},
        "reason": "grad norm creeps",
        "requestedBy": "alice@example.com",
        "expect": {"attempt": 3, "learningRate": "1.2e-4", "seq": 812},
        "forSteps": 200,
    }
    assert made["metadata"]["name"].startswith("opt-setlearningrate-")
    assert "applied at step 4100 (1.2e-4 -> 6e-5)" in out


def test_a_refused_intervention_is_a_conflict(cli: Cli, cluster: KubeServer) -> None:
    refusal = {"type": "Accepted", "status": "False", "reason": "OutOfBounds"}
    message = "9 is above limits.lr_max = 1"
    operator = _settle(cluster, {"conditions": [refusal], "stage": "rejected", "message": message})
    code, out, _ = cli("intervene", "opt", "SetLearningRate", "--value", "9", "--reason", "try")
    operator.join()
    assert (code, f"rejected: {message}" in out) == (4, True), out


def test_a_dry_run_ends_with_what_would_be_decided(cli: Cli, cluster: KubeServer) -> None:
    conditions = [
        {"type": "Accepted", "status": "True", "reason": "DryRun"},
        {"type": "Applied", "status": "False", "reason": "DryRun"},
    ]
    told = {
        "stage": "previewed",
        "message": "end-run: asked to",
        "settledAt": "2026-01-01T00:00:00Z",
    }
    operator = _settle(cluster, {"conditions": conditions, **told})
    code, out, err = cli("intervene", "opt", "Stop", "--reason", "try", "--dry-run")
    operator.join()
    assert (code, err) == (0, "")
    assert "previewed: end-run: asked to" in out
    assert _made(cluster, "interventions")[0]["spec"]["dryRun"] is True


def test_an_intervention_that_nobody_looks_at(cli: Cli, cluster: KubeServer) -> None:
    code, _, err = cli("intervene", "opt", "Pause", "--reason", "x", "--timeout-s", "0.01")
    assert (code, "[timed-out]" in err) == (5, True), err
    code, out, _ = cli(
        *("intervene", "opt", "Pause", "--reason", "x", "--timeout-s", "0", "-o", "json")
    )
    assert (code, json.loads(out)["spec"]["action"]) == (0, "Pause")


@pytest.mark.parametrize(("command", "decision"), [("approve", "Approve"), ("reject", "Reject")])
def test_a_second_person_decides(
    cli: Cli, cluster: KubeServer, command: str, decision: str
) -> None:
    asked = cluster.put("interventions", "training", "opt-stop-1", spec={})
    code, out, err = cli(command, "opt-stop-1", "--reason", "looked at it")
    assert (code, err) == (0, "")
    spec = _made(cluster, "interventionapprovals")[0]["spec"]
    assert spec == {
        "interventionRef": {"name": "opt-stop-1", "uid": asked["metadata"]["uid"]},
        "decision": decision,
        "reason": "looked at it",
        "approvedBy": "alice@example.com",
    }
    assert "created" in out


def test_what_the_kind_does_not_know(cli: Cli, cluster: KubeServer) -> None:
    code, _, err = cli("intervene", "opt", "Dance", "--reason", "x")
    assert (code, "[object-invalid]" in err) == (2, True), err


def test_several_values_at_once(cli: Cli, cluster: KubeServer) -> None:
    ask = ("intervene", "opt", "SetOptimizer", "--reason", "x", "--timeout-s", "0")
    assert cli(*ask, "--set", "beta2=0.95", "--set", "weight-decay=0.1")[0] == 0
    params = _made(cluster, "interventions")[0]["spec"]["params"]
    assert params == {"values": {"beta2": "0.95", "weight-decay": "0.1"}}
    assert cli(*ask, "--set", "beta2")[0] == 2


def test_nothing_is_asked_without_a_reason(cli: Cli, cluster: KubeServer) -> None:
    for words in (("intervene", "opt", "Pause"), ("approve", "opt-stop-1")):
        code, _, err = cli(*words)
        assert (code, "--reason" in err) == (2, True), err
    assert not _made(cluster, "interventions")
