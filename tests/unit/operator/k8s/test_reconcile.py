"""reconcile() is pure: what it decides for each look, and that it decides it again."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import yaml
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.state import RunState
from midwatch.operator.k8s import actions as act
from midwatch.operator.k8s.observed import JobSight, Observed, Pod, Reach, time_text
from midwatch.operator.k8s.reconcile import reconcile
from midwatch.operator.spec_file import parse_spec
from midwatch.tests.support.builders import decided, fold, started
from midwatch.tests.support.kube_run import make_intervention
from midwatch.tests.support.kube_sights import (
    NOW_S,
    condition,
    look,
    make_cluster,
    of_kind,
    seen_run,
)


def trained() -> RunState:
    state = started()
    return fold([ev.AttemptResumed(1, 0, "", 0.1)], state)


def stopped_by(request: str) -> RunState:
    asked = ev.InterventionRequested(request, "stop", "x", "because")
    state = fold([asked], trained())
    return fold([decided(state, d.EndRun(stopped=True, step=3))], state)


def test_the_same_look_leads_to_the_same_actions() -> None:
    seen = look(sight=seen_run(trained()))
    assert reconcile(seen) == reconcile(seen)


def test_before_anything_else_the_finalizer_is_set() -> None:
    seen = look(metadata={"finalizers": []}, cluster=None, pods=(), jobs=())
    first, status = reconcile(seen)
    assert first == act.SetFinalizer(present=True)
    assert isinstance(status, act.SetRunStatus)
    assert {c["status"] for c in status.status["conditions"]} == {"Unknown"}
    assert status.tells == ()


def test_a_new_run_gets_tokens_and_then_a_cluster_but_no_controller_yet() -> None:
    seen = look(cluster=None, pods=(), jobs=(), secrets=frozenset())
    first = reconcile(seen)
    assert len(of_kind(first, act.MakeToken)) == 2
    assert [a.body["kind"] for a in of_kind(first, act.ApplyObject)] == ["Service"]
    actions = reconcile(look(cluster=None, pods=(), jobs=()))
    kinds = [a.body["kind"] for a in of_kind(actions, act.ApplyObject)]
    assert kinds == ["Service", "RayCluster"]
    assert not of_kind(actions, act.StartController)
    assert condition(actions, "Ready") == ("False", "ClusterStarting")


def pods_ready_for(seconds: float, num_missing: int) -> tuple[Pod, ...]:
    """The head, two nodes and a spare, but for the last few, the newest ready for so long."""
    pods = look().pods
    aged = [msgspec.structs.replace(pod, ready_s=NOW_S - seconds) for pod in pods]
    return tuple(aged[: len(aged) - num_missing])


@pytest.mark.parametrize(
    ("seconds", "num_missing", "starts"),
    [(0.0, 0, True), (110.0, 1, False), (121.0, 1, True), (5000.0, 2, False)],
)
def test_missing_spares_are_waited_for_but_not_for_ever(
    seconds: float, num_missing: int, starts: bool
) -> None:
    actions = reconcile(look(jobs=(), pods=pods_ready_for(seconds, num_missing)))
    assert bool(of_kind(actions, act.StartController)) == starts
    if not starts:
        assert condition(actions, "Ready") == ("False", "PodsNotReady")


def test_a_run_whose_head_was_lost_goes_on_although_a_spare_is_missing() -> None:
    status = {"run": {"status": "training", "seq": 9}, "job": {"id": "midwatch-run-uid-1"}}
    pods = pods_ready_for(130.0, 1)
    assert of_kind(reconcile(look(jobs=(), pods=pods, status=status)), act.StartController)
    training = reconcile(look(pods=pods, sight=seen_run(trained())))
    assert condition(training, "Degraded") == ("True", "SparesMissing")
    whole = reconcile(look(sight=seen_run(trained())))
    assert condition(whole, "Degraded")[0] == "False"


def test_the_controller_is_started_once_every_pod_is_there_spares_included() -> None:
    (start,) = of_kind(reconcile(look(jobs=())), act.StartController)
    assert start.id == "midwatch-run-uid-1"
    assert "--detach" in start.entrypoint


def test_the_spec_that_the_controller_gets_is_a_run_spec() -> None:
    (start,) = of_kind(reconcile(look(jobs=())), act.StartController)
    data = yaml.safe_load(start.env["MIDWATCH_SPEC"])
    tokens = data.pop("api")["tokens"]
    assert tokens["viewer"] == {"file": "/etc/midwatch-api/viewer"}
    spec = parse_spec(yaml.safe_dump(data), "spec.yaml")
    assert (spec.name, spec.world_size, spec.run_dir) == ("night", 4, "/midwatch/ml/night")


def test_no_rank_is_ever_placed_on_the_head() -> None:
    actions = reconcile(look(jobs=()))
    (start,) = of_kind(actions, act.StartController)
    # A bundle with a CPU for each node, and a head that has none to give.
    assert yaml.safe_load(start.env["MIDWATCH_SPEC"])["nodes"]["spread"] == "strict"
    (cluster,) = [a.body for a in of_kind(actions, act.ApplyObject) if a.body["kind"] != "Service"]
    assert cluster["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    run = look().run["spec"]["run"]
    packed = {"run": {**run, "nodes": {**run["nodes"], "spread": "pack"}}}
    assert condition(reconcile(look(spec=packed)), "Admitted") == ("False", "InvalidSpec")


@pytest.mark.parametrize(
    ("job", "starts"),
    [
        (JobSight("midwatch-run-uid-1", 1, "PENDING"), None),
        (JobSight("midwatch-run-uid-1", 1, "SUCCEEDED"), None),
        (JobSight("midwatch-run-uid-1", 1, "FAILED", ended_s=NOW_S - 5), None),
        (JobSight("midwatch-run-uid-1", 1, "FAILED", ended_s=NOW_S - 20), "midwatch-run-uid-2"),
        (JobSight("midwatch-run-uid-4", 4, "STOPPED", ended_s=NOW_S - 130), "midwatch-run-uid-5"),
        (JobSight("midwatch-run-uid-10", 10, "FAILED", ended_s=0.0), None),
    ],
)
def test_a_start_that_failed_is_tried_again_later_each_time_and_not_for_ever(
    job: JobSight, starts: str | None
) -> None:
    found = of_kind(reconcile(look(jobs=(job,))), act.StartController)
    assert [start.id for start in found] == ([starts] if starts else [])


def test_a_budget_of_starts_that_is_spent_stalls_the_run() -> None:
    spent = (JobSight("midwatch-run-uid-10", 10, "FAILED", "no nodes", ended_s=0.0),)
    actions = reconcile(look(jobs=spent))
    assert condition(actions, "Stalled") == ("True", "ControllerNotStarted")


def test_nothing_is_started_where_ray_cannot_be_asked() -> None:
    seen = look(jobs=(), reach=Reach(jobs="no answer"))
    assert not of_kind(reconcile(seen), act.StartController)


def test_a_paused_run_whose_controller_is_gone_waits_for_a_person() -> None:
    state = trained()
    paused = fold([decided(state, d.PauseRun("restart-budget"))], state)
    seen = look(jobs=(), sight=seen_run(paused))
    assert not of_kind(reconcile(seen), act.StartController)
    assert condition(reconcile(seen), "Stalled") == ("True", "Paused")
    unseen = look(jobs=(), status={"run": {"status": "paused", "seq": 9}})
    assert not of_kind(reconcile(unseen), act.StartController)
    resume = make_intervention("go", "Resume")
    resume["metadata"]["uid"] = "u"
    (accepted,) = of_kind(
        reconcile(msgspec.structs.replace(seen, interventions=(resume,))),
        act.SetInterventionStatus,
    )
    resume["status"] = accepted.status
    after = reconcile(msgspec.structs.replace(seen, interventions=(resume,)))
    assert of_kind(after, act.StartController)


def test_a_run_that_a_person_stopped_ends_and_one_that_the_operator_stopped_goes_on() -> None:
    status = {"job": {"id": "midwatch-run-uid-1"}}
    by_person = reconcile(look(sight=seen_run(stopped_by("abc")), status=status))
    assert condition(by_person, "Succeeded") == ("False", "Stopped")
    assert not of_kind(by_person, act.RemoveCluster)
    by_us = look(sight=seen_run(stopped_by("k8s-suspend-run-uid-1")), status=status)
    # Its controller has seen it end: the pods come anew, and with them another one.
    assert of_kind(reconcile(by_us), act.RemoveCluster)
    fresh = msgspec.structs.replace(by_us, jobs=())
    assert of_kind(reconcile(fresh), act.StartController)


def test_a_stop_that_came_too_late_has_not_ended_the_run() -> None:
    status = {"job": {"id": "midwatch-run-uid-1"}}
    late = ev.InterventionRequested("late", "stop", "ann", "the night is over")
    asked = fold([late], stopped_by("k8s-suspend-run-uid-1"))
    rejected = fold([decided(asked, d.RejectIntervention("late"))], asked)
    for state in (asked, rejected):
        actions = reconcile(look(sight=seen_run(state), status=status))
        assert of_kind(actions, act.RemoveCluster)
        assert condition(actions, "Succeeded")[1] != "Stopped"


def test_a_run_stopped_before_this_object_was_made_goes_on() -> None:
    actions = reconcile(look(jobs=(), sight=seen_run(stopped_by("abc"))))
    assert of_kind(actions, act.StartController)


def test_the_pods_of_a_finished_run_go_after_their_time() -> None:
    state = fold([decided(trained(), d.EndRun(stopped=False, step=3))], trained())
    for ended_ago_s, goes in ((10.0, False), (400.0, True)):
        status = {"finishedAt": time_text(NOW_S - ended_ago_s)}
        actions = reconcile(look(sight=seen_run(state), status=status))
        assert bool(of_kind(actions, act.RemoveCluster)) == goes
        assert condition(actions, "Succeeded") == ("True", "Completed")
    gone = look(cluster=None, pods=(), jobs=(), status=status | {"run": {"seq": 4}})
    actions = reconcile(gone)
    assert not of_kind(actions, act.ApplyObject)
    (written,) = of_kind(actions, act.SetRunStatus)
    assert written.status["finishedAt"] == status["finishedAt"]


def test_a_stopped_run_gets_its_pods_back_when_a_person_resumes_it() -> None:
    status = {"finishedAt": time_text(NOW_S - 5000), "job": {"id": "midwatch-run-uid-1"}}
    resume = make_intervention("go", "Resume")
    resume["metadata"]["uid"] = "u"
    seen = look(cluster=None, pods=(), jobs=(), status=status, interventions=(resume,))
    (accepted,) = of_kind(reconcile(seen), act.SetInterventionStatus)
    assert accepted.status["conditions"][0]["reason"] == "BringingBack"
    resume["status"] = accepted.status
    again = reconcile(seen)
    assert [a.body["kind"] for a in of_kind(again, act.ApplyObject)] == ["Service", "RayCluster"]
    living = look(sight=seen_run(trained()), status=status, interventions=(resume,))
    (settled,) = of_kind(reconcile(living), act.SetInterventionStatus)
    assert settled.status["stage"] == "applied"
    assert settled.status["settledAt"]


def deleting(seconds_ago: float, **changes: Any) -> Any:
    return look(metadata={"deletionTimestamp": time_text(NOW_S - seconds_ago)}, **changes)


def test_a_deleted_run_is_asked_to_stop_waited_for_and_then_removed() -> None:
    (ask, _) = reconcile(deleting(1, sight=seen_run(trained())))
    assert isinstance(ask, act.Ask)
    assert (ask.request["id"], ask.request["action"]) == ("k8s-delete-run-uid", "stop")
    asked = fold([ev.InterventionRequested("k8s-delete-run-uid", "stop", "x", "y")], trained())
    assert not of_kind(reconcile(deleting(1, sight=seen_run(asked))), act.Ask)
    over = reconcile(deleting(1, sight=seen_run(stopped_by("k8s-delete-run-uid"))))
    assert of_kind(over, act.RemoveCluster) == [act.RemoveCluster("night", "cluster-uid")]
    late = reconcile(deleting(901, sight=seen_run(asked)))
    assert of_kind(late, act.RemoveCluster)
    assert reconcile(deleting(901, cluster=None)) == [act.SetFinalizer(present=False)]
    going = make_cluster(deletionTimestamp=time_text(NOW_S - 10))
    assert not of_kind(reconcile(deleting(2000, cluster=going)), act.SetFinalizer)
    stuck = make_cluster(deletionTimestamp=time_text(NOW_S - 181))
    assert reconcile(deleting(2000, cluster=stuck)) == [act.SetFinalizer(present=False)]


def test_a_deleted_run_whose_api_is_away_is_waited_for_if_it_ever_ran() -> None:
    ran = reconcile(deleting(1, status={"run": {"seq": 7}}))
    assert not of_kind(ran, act.RemoveCluster)
    never = reconcile(deleting(1, jobs=()))
    assert of_kind(never, act.RemoveCluster)
    untold = reconcile(deleting(1, jobs=(), reach=Reach(jobs="no answer")))
    assert not of_kind(untold, act.RemoveCluster)


def test_a_deleted_run_with_a_spec_that_cannot_work_goes_all_the_same() -> None:
    broken = {"run": {}, "image": ""}
    seen = deleting(1, spec=broken, cluster=None, jobs=())
    assert reconcile(seen) == [act.SetFinalizer(present=False)]


def test_an_attached_cluster_is_never_made_changed_or_removed() -> None:
    spec = {"clusterSelector": {"kind": "RayCluster", "name": "shared"}, "image": ""}
    cluster = {"metadata": {"name": "shared", "uid": "s"}}
    actions = reconcile(look(spec=spec, cluster=cluster, jobs=(), pods=()))
    assert [a.body["kind"] for a in of_kind(actions, act.ApplyObject)] == ["Service"]
    (start,) = of_kind(actions, act.StartController)
    assert start.brings_tokens
    assert "midwatch serve /midwatch/ml/night" in start.entrypoint
    asked = {"stoppingSince": time_text(NOW_S - 901)}
    stop = deleting(901, spec=spec, cluster=cluster, sight=seen_run(trained()), status=asked)
    assert not of_kind(reconcile(stop), act.RemoveCluster)
    assert act.SetFinalizer(present=False) in reconcile(stop)


def attached(**changes: Any) -> Observed:
    spec = {"clusterSelector": {"kind": "RayCluster", "name": "shared"}, "image": ""}
    status = {"job": {"id": "midwatch-run-uid-1", "status": "RUNNING"}}
    cluster = {"metadata": {"name": "shared", "uid": "s"}}
    return look(spec=spec, cluster=cluster, pods=(), status=status, **changes)


def test_on_an_attached_cluster_the_job_of_a_stopped_run_makes_way_for_the_next() -> None:
    stopped = stopped_by("k8s-suspend-run-uid-1")
    assert stopped.ended_s is not None
    serving = JobSight("midwatch-run-uid-1", 1, "RUNNING", begun_s=stopped.ended_s - 100)

    def planned(state: RunState, *jobs: JobSight) -> list[act.Action]:
        actions = reconcile(attached(sight=seen_run(state), jobs=jobs))
        return [a for a in actions if isinstance(a, act.StopController | act.StartController)]

    assert planned(stopped, serving) == [act.StopController(serving.id)]
    assert planned(trained(), serving) == []
    assert planned(stopped_by("by-ann"), serving) == []
    begun = JobSight("midwatch-run-uid-1", 1, "RUNNING", begun_s=stopped.ended_s + 1)
    assert planned(stopped, begun) == []
    # However often it was suspended: to end a job is no failure to start one.
    ended = [
        JobSight(f"midwatch-run-uid-{n}", n, "STOPPED", ended_s=NOW_S - 20) for n in range(1, 31)
    ]
    (start,) = of_kind(reconcile(attached(jobs=tuple(ended))), act.StartController)
    assert start.id == "midwatch-run-uid-31"


def test_what_is_told_is_told_only_when_it_changes() -> None:
    seen = look(sight=seen_run(trained()))
    (first,) = of_kind(reconcile(seen), act.SetRunStatus)
    assert {tell.reason for tell in first.tells} == {"Starting"}
    again = look(sight=seen_run(trained()), status=first.status)
    (second,) = of_kind(reconcile(again), act.SetRunStatus)
    assert second.tells == ()
    times = {c["lastTransitionTime"] for c in second.status["conditions"]}
    assert times == {c["lastTransitionTime"] for c in first.status["conditions"]}


def test_a_run_that_its_queue_has_not_admitted_says_so() -> None:
    waiting = {
        **make_cluster(),
        "status": {"conditions": [{"type": "RayClusterSuspended", "status": "True"}]},
    }
    spec = {"scheduling": {"queueName": "team"}}
    actions = reconcile(look(spec=spec, cluster=waiting, pods=(), jobs=()))
    assert condition(actions, "Admitted") == ("False", "Queued")
    assert not of_kind(actions, act.StartController)


def test_without_kuberay_nothing_of_it_is_made() -> None:
    seen = look(cluster=None, pods=(), jobs=(), reach=Reach(kuberay="404"))
    actions = reconcile(seen)
    assert not of_kind(actions, act.ApplyObject)
    assert condition(actions, "Admitted") == ("False", "KubeRayMissing")


def test_checkpoints_are_fresh_again_once_one_is_committed_after_saves_that_failed() -> None:
    def failed(step: int) -> ev.CheckpointFailed:
        return ev.CheckpointFailed(1, f"step-{step}", step, "disk-full")

    def fresh(state: RunState) -> tuple[str, str]:
        return condition(reconcile(look(sight=seen_run(state))), "CheckpointFresh")

    state = fold([failed(10), failed(20)], trained())
    assert fresh(state) == ("False", "SavesFail")
    (written,) = of_kind(reconcile(look(sight=seen_run(state))), act.SetRunStatus)
    messages = [c["message"] for c in written.status["conditions"]]
    assert "saves fail, 2 in a row, the last of step 20: disk-full" in messages
    state = fold([ev.CheckpointCommitted(1, "step-30", 30, 1, 0.1, 0.5)], state)
    assert fresh(state) == ("True", "Saved")
