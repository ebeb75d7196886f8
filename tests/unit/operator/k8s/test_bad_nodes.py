"""Bad nodes: who is out, what others' signs lead to, which pods go, who comes back."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from midwatch.health.nodes.evidence import EvidenceRule, SignSource
from midwatch.health.nodes.verdicts import Action as Verdict
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.errors import ConfigError
from midwatch.logbook.state import RunState
from midwatch.operator.k8s import actions as act
from midwatch.operator.k8s.evidence_file import load_rules
from midwatch.operator.k8s.observed import Observed, Pod, Reach, read_node, time_text
from midwatch.operator.k8s.reconcile import reconcile
from midwatch.tests.support.builders import decided, fold, make_sample, started
from midwatch.tests.support.kube_run import make_intervention, make_node
from midwatch.tests.support.kube_sights import NOW_S, condition, look, make_pods, of_kind, seen_run


def running(*quarantined: str, lost: str = "") -> RunState:
    """n0 and n1 carry ranks, n2 is the spare; each in the pod with its number."""
    hosts = [ev.NodeJoined(f"n{index}", "2", f"10.0.0.{index}", 2) for index in range(3)]
    state = fold([*hosts], started())
    attempt = state.attempt or started().attempt
    assert attempt is not None
    plan = msgspec.structs.replace(attempt.plan, attempt=2)
    state = fold([decided(state, d.StartAttempt(plan))], state)
    state = fold([ev.AttemptResumed(2, 0, "", 0.1), ev.StepDone(2, make_sample(5))], state)
    if lost:
        state = fold([ev.NodeLost(lost, "2", "silent")], state)
    for node in quarantined:
        state = fold([decided(state, d.QuarantineNode(node))], state)
    return state


def seen(state: RunState, **changes: Any) -> Observed:
    nodes = changes.pop("nodes", {f"k-{index}": make_node(f"k-{index}") for index in range(10)})
    sights = {name: read_node(node) for name, node in nodes.items()}
    return look(sight=seen_run(state), nodes=sights, **changes)


def excluded(actions: list[act.Action]) -> list[str]:
    (written,) = of_kind(actions, act.SetRunStatus)
    return [row["node"] for row in written.status["excludedNodes"]]


def barred(actions: list[act.Action]) -> list[list[str]]:
    """The hostnames that each group of the cluster is kept off."""
    (cluster,) = [
        a.body for a in of_kind(actions, act.ApplyObject) if a.body["kind"] == "RayCluster"
    ]
    found = []
    for group in cluster["spec"]["workerGroupSpecs"]:
        affinity = group["template"]["spec"].get("affinity") or {}
        required = affinity.get("nodeAffinity", {}).get(
            "requiredDuringSchedulingIgnoredDuringExecution", {"nodeSelectorTerms": []}
        )
        terms = [e for t in required["nodeSelectorTerms"] for e in t["matchExpressions"]]
        found.append([host for term in terms for host in term["values"]])
    return found


def sick(name: str, *conditions: tuple[str, str], cordoned: bool = False) -> dict[str, Any]:
    nodes = {f"k-{index}": make_node(f"k-{index}") for index in range(10)}
    told = [{"type": kind, "status": "True", "message": text} for kind, text in conditions]
    spec = {"unschedulable": True} if cordoned else {}
    nodes[name] = make_node(name, conditions=told, spec=spec)
    return nodes


def test_a_quarantined_node_is_kept_off_by_its_hostname_and_a_spare_one_loses_its_pod() -> None:
    actions = reconcile(seen(running("n2")))
    assert excluded(actions) == ["k-2"]
    assert barred(actions) == [["host-k-2"], ["host-k-2"]]
    assert of_kind(actions, act.RemovePod) == [act.RemovePod("worker-2", "uid-2")]


def test_a_quarantined_node_keeps_its_pod_while_it_carries_ranks() -> None:
    actions = reconcile(seen(running("n1")))
    assert excluded(actions) == ["k-1"]
    assert not of_kind(actions, act.RemovePod)


def test_what_stands_on_the_cluster_is_known_before_the_status_says_it() -> None:
    first = reconcile(seen(running("n2")))
    (cluster,) = [a.body for a in of_kind(first, act.ApplyObject) if a.body["kind"] == "RayCluster"]
    cluster["metadata"]["uid"] = "cluster-uid"
    # The pod is gone and the status not written yet.
    pods = make_pods()[:3]
    again = reconcile(seen(running("n2", lost="n2"), cluster=cluster, pods=pods))
    assert barred(again) == [["host-k-2"], ["host-k-2"]]
    assert excluded(again) == ["k-2"]


def test_what_is_excluded_stays_so_until_a_person_releases_it() -> None:
    row = {"node": "k-7", "reason": "sick", "since": time_text(NOW_S - 99)}
    status = {"excludedNodes": [row]}
    assert excluded(reconcile(seen(running(), status=status))) == ["k-7"]
    release = make_intervention("back", "ReleaseNode", params={"target": "k-7"})
    release["metadata"]["uid"] = "u"
    first = reconcile(seen(running(), status=status, interventions=(release,)))
    assert excluded(first) == []
    after = reconcile(seen(running(), interventions=(release,)))
    (written,) = of_kind(after, act.SetInterventionStatus)
    assert written.status["stage"] == "applied"


def test_a_node_of_the_cluster_may_be_named_where_a_node_of_the_run_is_meant() -> None:
    wanted = make_intervention("out", "QuarantineNode", params={"target": "k-1"})
    wanted["metadata"]["uid"] = "u"
    (ask,) = of_kind(reconcile(seen(running(), interventions=(wanted,))), act.Ask)
    assert (ask.request["action"], ask.request["target"]) == ("quarantine", "n1")


def test_no_more_nodes_are_excluded_than_may_be() -> None:
    spec = {"placement": {"maxExcludedNodes": 1}}
    actions = reconcile(seen(running("n1", "n2"), spec=spec))
    assert excluded(actions) == ["k-1"]
    assert condition(actions, "Degraded") == ("True", "TooManyExcluded")


def test_a_node_that_is_sick_is_quarantined_at_once_and_left_once_it_is() -> None:
    nodes = sick("k-1", ("GpuMemWatch", "ECC"))
    (ask,) = of_kind(reconcile(seen(running(), nodes=nodes)), act.Ask)
    assert (ask.request["action"], ask.request["target"]) == ("quarantine", "n1")
    assert ask.request["id"] == "k8s-sign-uid-1-ecc"
    assert "NVSentinel" in ask.request["reason"]
    left = reconcile(seen(running("n1"), nodes=nodes))
    assert act.RemovePod("worker-1", "uid-1") in left
    assert condition(left, "Degraded")[0] == "True"


def test_a_sick_node_that_may_not_be_excluded_keeps_its_pod() -> None:
    spec = {"placement": {"maxExcludedNodes": 0}}
    nodes = sick("k-1", ("GpuMemWatch", "ECC"))
    actions = reconcile(seen(running("n1"), nodes=nodes, spec=spec))
    assert excluded(actions) == []
    # It would come back to the very node.
    assert not of_kind(actions, act.RemovePod)
    nodes = sick("k-1", ("GpuMemWatch", "ECC"), cordoned=True)
    actions = reconcile(seen(running("n1"), nodes=nodes, spec=spec))
    assert of_kind(actions, act.RemovePod) == [act.RemovePod("worker-1", "uid-1")]


def test_a_cordoned_node_is_left_after_a_save_or_after_it_was_waited_for_long_enough() -> None:
    nodes = sick("k-1", cordoned=True)
    (save,) = of_kind(reconcile(seen(running(), nodes=nodes)), act.Ask)
    assert save.request["action"] == "checkpoint"
    name = save.request["id"]
    request = ev.InterventionRequested(name, "checkpoint", "x", "y")
    state = running()
    for age_s, expected in ((10.0, []), (300.0, ["quarantine"])):
        before = msgspec.structs.replace(state, time_s=NOW_S - age_s - 1)
        asked = fold([request], before)
        actions = reconcile(seen(asked, nodes=nodes))
        assert [a.request["action"] for a in of_kind(actions, act.Ask)] == expected


def test_a_sick_node_that_is_cordoned_as_well_is_not_waited_for() -> None:
    nodes = sick("k-1", ("GpuMemWatch", "ECC"), cordoned=True)
    (ask,) = of_kind(reconcile(seen(running(), nodes=nodes)), act.Ask)
    assert ask.request["action"] == "quarantine"


def test_our_own_cordon_is_no_sign_and_is_taken_back_with_the_exclusion() -> None:
    nodes = sick("k-1", cordoned=True)
    nodes["k-1"]["metadata"]["annotations"] = {"midwatch.dev/cordoned-by": "ml/night"}
    actions = reconcile(seen(running(), nodes=nodes))
    assert not of_kind(actions, act.Ask)
    assert of_kind(actions, act.Cordon) == [act.Cordon("k-1", "ml/night", is_on=False)]


def test_a_node_is_cordoned_only_where_that_is_wanted() -> None:
    assert not of_kind(reconcile(seen(running("n2"))), act.Cordon)
    spec = {"placement": {"cordon": "Quarantined"}}
    actions = reconcile(seen(running("n2"), spec=spec))
    assert of_kind(actions, act.Cordon) == [act.Cordon("k-2", "ml/night")]


def test_what_is_only_watched_is_told_and_nothing_done() -> None:
    nodes = sick("k-1", ("MemoryPressure", "low"))
    actions = reconcile(seen(running(), nodes=nodes))
    assert not of_kind(actions, act.Ask)
    assert condition(actions, "Degraded") == ("True", "NodeSigns")


@pytest.mark.parametrize(
    ("node_ready", "lost", "ago_s", "forced"),
    [("Unknown", "n1", 5, True), ("True", "n1", 5, False), ("Unknown", "", 5, False),
     ("Unknown", "n1", -5, False)],
)  # fmt: skip
def test_a_pod_that_nobody_will_end_is_removed_by_force(
    node_ready: str, lost: str, ago_s: float, forced: bool
) -> None:
    nodes = {f"k-{index}": make_node(f"k-{index}") for index in range(10)}
    nodes["k-1"]["status"]["conditions"] = [{"type": "Ready", "status": node_ready}]
    pods = list(make_pods())
    pods[2] = msgspec.structs.replace(pods[2], deleting_s=NOW_S - ago_s)
    actions = reconcile(seen(running(lost=lost), nodes=nodes, pods=tuple(pods)))
    wanted = [act.RemovePod("worker-1", "uid-1", is_forced=True)] if forced else []
    assert of_kind(actions, act.RemovePod) == wanted


def test_where_nodes_are_not_read_a_pod_is_given_longer() -> None:
    pods = list(make_pods())
    for ago_s, forced in ((60.0, False), (400.0, True)):
        pods[2] = msgspec.structs.replace(pods[2], deleting_s=NOW_S - ago_s)
        blind = seen(running(lost="n1"), nodes={}, pods=tuple(pods), reach=Reach(nodes="not read"))
        assert bool(of_kind(reconcile(blind), act.RemovePod)) == forced


def test_a_head_on_a_dead_node_is_removed_although_the_run_is_away() -> None:
    nodes = {f"k-{index}": make_node(f"k-{index}") for index in range(9)}
    pods = list(make_pods())
    pods[0] = msgspec.structs.replace(pods[0], deleting_s=NOW_S - 5, is_ready=False)
    sights = {name: read_node(node) for name, node in nodes.items()}
    actions = reconcile(look(sight=None, nodes=sights, pods=tuple(pods)))
    assert of_kind(actions, act.RemovePod) == [act.RemovePod("head-0", "uid-head", is_forced=True)]


def test_a_place_is_released_once_another_pod_has_taken_it() -> None:
    state = running("n1", lost="n1")
    moved = [*make_pods(1), *make_pods()[3:]]
    assert not of_kind(reconcile(seen(state, pods=tuple(moved))), act.Ask)
    fresh = Pod("worker-8", "uid-8", "10.0.0.8", "k-8", "worker", False, "Running", True)
    (ask,) = of_kind(reconcile(seen(state, pods=(*moved, fresh))), act.Ask)
    assert (ask.request["action"], ask.request["target"]) == ("release", "n1")


def test_a_place_is_released_although_a_spare_is_missing_for_good() -> None:
    state = running("n1", lost="n1")
    fresh = Pod("worker-8", "uid-8", "10.0.0.8", "k-8", "worker", False, "Running", True)
    # The head and n0 are there, and a new pod; neither the old one of n1 nor the spare.
    alone = make_pods(1)
    (ask,) = of_kind(reconcile(seen(state, pods=(*alone, fresh))), act.Ask)
    assert (ask.request["action"], ask.request["target"]) == ("release", "n1")
    # A pod that is about to go from a bad node takes nobody's place.
    out = {"excludedNodes": [{"node": "k-8", "reason": "x", "since": time_text(NOW_S)}]}
    assert not of_kind(reconcile(seen(state, pods=(*alone, fresh), status=out)), act.Ask)


def test_the_table_of_signs_can_be_replaced(tmp_path: Any) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(
        "- {source: condition, key: FanStopped, value: 'True', kind: thermal, action: evict,"
        " told_by: ours}\n"
    )
    rules = load_rules(path)
    assert rules == (
        EvidenceRule(SignSource.CONDITION, "FanStopped", "True", "thermal", Verdict.EVICT, "ours"),
    )
    nodes = sick("k-1", ("FanStopped", "still"))
    assert not of_kind(reconcile(seen(running(), nodes=nodes)), act.Ask)
    assert of_kind(reconcile(seen(running(), nodes=nodes), rules), act.Ask)
    path.write_text("- {source: rumour}\n")
    with pytest.raises(ConfigError) as raised:
        load_rules(path)
    assert raised.value.code == "evidence-file-invalid"


def test_the_address_of_a_node_that_has_left_is_its_successors() -> None:
    state = running("n2", lost="n2")
    moved = msgspec.structs.replace(state.nodes["n1"], host="10.0.0.2")
    state = msgspec.structs.replace(state, nodes={**state.nodes, "n1": moved})
    actions = reconcile(seen(state))
    # The pod at that address is on k-2, and carries the ranks of n1.
    assert excluded(actions) == []
    known = {"excludedNodes": [{"node": "k-2", "reason": "x", "since": time_text(NOW_S)}]}
    assert not of_kind(reconcile(seen(state, status=known)), act.RemovePod)
