"""Nothing of a run is taken away on stale or partial word: each look here once led to that."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.state import RunState
from midwatch.operator.k8s import actions as act
from midwatch.operator.k8s.cache import Cache
from midwatch.operator.k8s.observed import JobSight, Object, Reach, time_text
from midwatch.operator.k8s.reconcile import reconcile
from midwatch.tests.support.builders import decided, fold, started
from midwatch.tests.support.kube_sights import (
    NOW_S,
    condition,
    look,
    make_cluster,
    of_kind,
    seen_run,
)

STARTED = {"job": {"id": "midwatch-run-uid-1"}, "run": {"seq": 7}}


def trained() -> RunState:
    return fold([ev.AttemptResumed(1, 0, "", 0.1)], started())


def asked_to_stop(request: str, seconds_ago: float) -> Any:
    """A run that saves, as its API tells it."""
    state = fold([ev.InterventionRequested(request, "stop", "x", "because")], trained())
    known = msgspec.structs.replace(state.interventions[request], requested_s=NOW_S - seconds_ago)
    return seen_run(msgspec.structs.replace(state, interventions={request: known}))


def stopped(by: str) -> RunState:
    state = fold([ev.InterventionRequested(by, "stop", "x", "because")], trained())
    return fold([decided(state, d.EndRun(stopped=True, step=3))], state)


def deleting(seconds_ago: float, **changes: Any) -> Any:
    return look(metadata={"deletionTimestamp": time_text(NOW_S - seconds_ago)}, **changes)


def written(actions: list[act.Action]) -> Object:
    (found,) = of_kind(actions, act.SetRunStatus)
    status: Object = found.status
    return status


def test_a_cluster_is_not_suspended_while_its_run_saves() -> None:
    """KubeRay takes all pods of a suspended cluster at once."""
    actions = reconcile(look(spec={"suspend": True}, sight=seen_run(trained())))
    (cluster,) = [a.body for a in of_kind(actions, act.ApplyObject) if a.body["kind"] != "Service"]
    assert cluster["spec"]["suspend"] is False
    assert [ask.request["action"] for ask in of_kind(actions, act.Ask)] == ["stop"]


def test_a_suspended_run_that_was_not_ready_for_long_gets_its_whole_time() -> None:
    conditions = [
        {
            "type": "Ready",
            "status": "False",
            "reason": "Suspending",
            "message": "",
            "lastTransitionTime": time_text(NOW_S - 5000),
            "observedGeneration": 2,
        }
    ]
    status = {**STARTED, "conditions": conditions, "stoppingSince": time_text(NOW_S - 30)}
    seen = look(spec={"suspend": True}, status=status, reach=Reach(api="no answer"))
    assert not of_kind(reconcile(seen), act.RemoveCluster)
    status["stoppingSince"] = time_text(NOW_S - 901)
    assert of_kind(reconcile(seen), act.RemoveCluster)


def test_a_run_deleted_long_ago_unseen_is_asked_and_gets_its_whole_time() -> None:
    first = reconcile(deleting(50_000, sight=seen_run(trained()), status=STARTED))
    assert [ask.request["action"] for ask in of_kind(first, act.Ask)] == ["stop"]
    assert not of_kind(first, act.RemoveCluster)
    away = reconcile(deleting(50_000, status=STARTED, reach=Reach(api="no answer")))
    assert not of_kind(away, act.RemoveCluster)
    assert written(away)["stoppingSince"] == time_text(NOW_S)


@pytest.mark.parametrize(("asked_ago_s", "goes"), [(899.0, False), (901.0, True)])
def test_the_time_of_a_deleted_run_counts_from_when_it_was_asked(
    asked_ago_s: float, goes: bool
) -> None:
    sight = asked_to_stop("k8s-delete-run-uid", asked_ago_s)
    actions = reconcile(deleting(5000, sight=sight, status=STARTED))
    assert bool(of_kind(actions, act.RemoveCluster)) == goes
    assert written(actions)["stoppingSince"] == time_text(NOW_S - asked_ago_s)


def test_the_time_to_stop_is_forgotten_when_the_run_is_to_go_on() -> None:
    status = {**STARTED, "stoppingSince": time_text(NOW_S - 5000)}
    assert "stoppingSince" not in written(reconcile(look(sight=seen_run(trained()), status=status)))


def test_a_deleted_run_is_not_let_go_while_its_cluster_may_be_there() -> None:
    unseen = deleting(1, cluster=None, status=STARTED, reach=Reach(kuberay="404"))
    assert not of_kind(reconcile(unseen), act.SetFinalizer)
    # However late: nothing but the operator takes the cluster away.
    late = {**STARTED, "stoppingSince": time_text(NOW_S - 50_000)}
    actions = reconcile(deleting(60_000, status=late))
    assert of_kind(actions, act.RemoveCluster) == [act.RemoveCluster("night", "cluster-uid")]
    assert not of_kind(actions, act.SetFinalizer)


def test_a_cluster_of_somebody_else_is_left_alone() -> None:
    for labels in ({}, {"midwatch.dev/run-uid": "of-an-older-run"}):
        other = make_cluster(labels=labels)
        actions = reconcile(look(cluster=other, jobs=()))
        assert [type(action) for action in actions] == [act.SetRunStatus]
        assert condition(actions, "Admitted") == ("False", "NameTaken")
        assert condition(actions, "Stalled") == ("True", "NameTaken")
        assert reconcile(look(cluster=other, spec={"suspend": True}, jobs=())) != []
        assert not of_kind(reconcile(deleting(5000, cluster=other)), act.RemoveCluster)
        assert reconcile(deleting(1, cluster=other)) == [act.SetFinalizer(present=False)]


def test_a_run_that_was_stopped_once_is_not_taken_away_unseen() -> None:
    """Somebody may have set it going over its API while no operator was there."""
    status = {**STARTED, "finishedAt": time_text(NOW_S - 5000)}
    unseen = look(status=status, reach=Reach(api="no answer"))
    assert not of_kind(reconcile(unseen), act.RemoveCluster)
    over = look(status=status, sight=seen_run(stopped("by-ann")))
    assert of_kind(reconcile(over), act.RemoveCluster)
    headless = look(status=status, pods=look().pods[1:], reach=Reach(api="no head"))
    assert of_kind(reconcile(headless), act.RemoveCluster)


@pytest.mark.parametrize("by", ["k8s-suspend-run-uid-1", "by-ann"])
def test_a_controller_that_has_yet_to_set_its_run_going_keeps_its_pods(by: str) -> None:
    state = stopped(by)
    assert state.ended_s is not None
    spec = {"deletion": {"ttlSecondsAfterFinished": 0}}
    for status in ("PENDING", "RUNNING", "SUCCEEDED"):
        job = JobSight("midwatch-run-uid-1", 1, status, begun_s=state.ended_s + 60)
        seen = look(spec=spec, jobs=(job,), sight=seen_run(state), status={"job": {"id": job.id}})
        actions = reconcile(seen)
        assert not of_kind(actions, act.RemoveCluster)
        assert "finishedAt" not in written(actions)


def test_word_of_an_older_object_does_not_make_the_new_one_vanish() -> None:
    def body(uid: str, version: int) -> Object:
        meta = {"namespace": "ml", "name": "night", "uid": uid, "resourceVersion": str(version)}
        return {"metadata": meta}

    cache: Cache[Object] = Cache(lambda found: found)
    cache.see("MODIFIED", body("old", 5))
    cache.see("MODIFIED", body("new", 9))
    cache.see("DELETED", body("old", 7))
    assert cache.get("ml", "night") == body("new", 9)
    cache.see("DELETED", body("new", 11))
    assert cache.get("ml", "night") is None
