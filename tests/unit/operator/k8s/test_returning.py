"""Exclusions end with what they were for, and a cordon is ours only as long as they last."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.operator.k8s import actions as act
from midwatch.operator.k8s.observed import Object, Reach, time_text
from midwatch.operator.k8s.reconcile import reconcile
from midwatch.tests.support.builders import decided, fold
from midwatch.tests.support.kube_run import make_node
from midwatch.tests.support.kube_sights import NOW_S, make_cluster, of_kind

from .test_bad_nodes import barred, excluded, running, seen

OURS = {"midwatch.dev/cordoned-by": "ml/night"}
CORDONING = {"placement": {"cordon": "Quarantined"}}


def nodes(**changed: Object) -> dict[str, Object]:
    """Ten sound nodes, but for those given."""
    found = {f"k-{index}": make_node(f"k-{index}") for index in range(10)}
    return found | {name.replace("_", "-"): node for name, node in changed.items()}


def cordoned(name: str, annotations: dict[str, str] | None = None) -> Object:
    node = make_node(name, spec={"unschedulable": True})
    node["metadata"]["annotations"] = annotations or {}
    return node


def uncordoned(name: str) -> Object:
    node = make_node(name)
    node["metadata"]["annotations"] = OURS
    return node


def with_row(node: str, **more: str) -> Object:
    row = {"node": node, "reason": "x", "since": time_text(NOW_S - 99), **more}
    noted = msgspec.json.encode([row]).decode()
    return make_cluster(annotations={"midwatch.dev/excluded-nodes": noted})


@pytest.mark.parametrize("sign", ["cordon", "preemption"])
def test_an_exclusion_for_a_sign_ends_with_the_sign(sign: str) -> None:
    told = cordoned("k-7")
    if sign == "preemption":
        told["spec"] = {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "value": "1"}]}
    cluster = with_row("k-7", sign=sign)
    there = reconcile(seen(running(), cluster=cluster, nodes=nodes(k_7=told)))
    assert excluded(there) == ["k-7"]
    over = reconcile(seen(running(), cluster=cluster, nodes=nodes()))
    assert (excluded(over), barred(over)) == ([], [[], []])


def test_an_exclusion_by_the_runs_own_judgement_outlives_every_sign() -> None:
    actions = reconcile(seen(running(), cluster=with_row("k-7"), nodes=nodes()))
    assert excluded(actions) == ["k-7"]


def test_a_node_left_for_its_cordon_is_known_to_be_out_for_that() -> None:
    asked = ev.InterventionRequested("k8s-sign-uid-2-cordon", "quarantine", "x", "y", target="n2")
    state = fold([asked], running())
    state = fold([decided(state, d.QuarantineNode("n2"))], state)
    actions = reconcile(seen(state, nodes=nodes(k_2=cordoned("k-2"))))
    (written,) = of_kind(actions, act.SetRunStatus)
    (row,) = written.status["excludedNodes"]
    assert (row["node"], row["sign"]) == ("k-2", "cordon")


def test_an_exclusion_ends_with_its_node() -> None:
    there = nodes()
    del there["k-7"]
    cluster = with_row("k-7")
    actions = reconcile(seen(running(), cluster=cluster, nodes=there))
    assert (excluded(actions), barred(actions)) == ([], [[], []])
    blind = reconcile(seen(running(), cluster=cluster, nodes={}, reach=Reach(nodes="not read")))
    assert excluded(blind) == ["k-7"]


def test_whoever_uncordons_a_node_gets_it_back_and_no_cordon_in_return() -> None:
    seen_so = seen(
        running(), cluster=with_row("k-7"), nodes=nodes(k_7=uncordoned("k-7")), spec=CORDONING
    )
    actions = reconcile(seen_so)
    assert excluded(actions) == []
    # Our name is taken off the node, so that a later cordon by people is theirs.
    assert of_kind(actions, act.Cordon) == [act.Cordon("k-7", "ml/night", is_on=False)]


def test_a_node_that_is_wanted_back_before_it_was_left_is_let_go_by_the_run_first() -> None:
    changes: dict[str, Any] = {"nodes": nodes(k_1=uncordoned("k-1")), "spec": CORDONING}
    actions = reconcile(seen(running("n1"), cluster=with_row("k-1"), **changes))
    (ask,) = of_kind(actions, act.Ask)
    assert (ask.request["action"], ask.request["target"]) == ("release", "n1")
    assert ask.request["id"] == "k8s-return-uid-1-1"
    # Until then it stays as it is: neither cordoned again nor forgotten.
    assert excluded(actions) == ["k-1"]
    assert not of_kind(actions, act.Cordon)
    after = reconcile(seen(running(), cluster=with_row("k-1"), **changes))
    assert excluded(after) == []


def test_a_node_that_came_back_can_be_left_for_a_cordon_again() -> None:
    asked = ev.InterventionRequested("k8s-return-uid-1-1", "release", "x", "y", target="n1")
    state = fold([asked], running("n1"))
    known = msgspec.structs.replace(state.interventions[asked.id], stage="applied")
    state = fold([decided(state, d.ReleaseNode("n1"))], state)
    state = msgspec.structs.replace(state, interventions={asked.id: known})
    (save,) = of_kind(reconcile(seen(state, nodes=nodes(k_1=cordoned("k-1")))), act.Ask)
    assert save.request["id"] == "k8s-save-uid-1-cordon-1"


def test_a_cordon_in_anothers_name_is_a_cordon() -> None:
    theirs = cordoned("k-1", {"midwatch.dev/cordoned-by": "ml/long-gone"})
    (ask,) = of_kind(reconcile(seen(running(), nodes=nodes(k_1=theirs))), act.Ask)
    assert ask.request["action"] == "checkpoint"


def test_a_run_that_ends_takes_its_cordons_back() -> None:
    changes: dict[str, Any] = {
        "cluster": with_row("k-7"),
        "nodes": nodes(k_7=cordoned("k-7", OURS)),
        "spec": CORDONING,
    }
    back = [act.Cordon("k-7", "ml/night", is_on=False)]
    assert not of_kind(reconcile(seen(running(), **changes)), act.Cordon)
    state = running()
    over = fold([decided(state, d.EndRun(stopped=False, step=5))], state)
    assert of_kind(reconcile(seen(over, **changes)), act.Cordon) == back
    deleted = {"metadata": {"deletionTimestamp": time_text(NOW_S - 10)}}
    assert of_kind(reconcile(seen(running(), **changes, **deleted)), act.Cordon) == back
    unwanted = {**changes, "spec": {}}
    assert of_kind(reconcile(seen(running(), **unwanted)), act.Cordon) == back
