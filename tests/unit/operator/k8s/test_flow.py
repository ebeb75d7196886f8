"""The whole flow in process: a real kopf on a real API server's protocol, a real run's state."""

from __future__ import annotations

import pytest
import yaml
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.tests.support.kube import Object
from midwatch.tests.support.kube_operator import USER, stage
from midwatch.tests.support.kube_run import RAY_TOKEN, make_intervention, make_run

pytestmark = pytest.mark.asyncio
INTERVENTIONS = "midwatch.dev/v1alpha1/interventions"


async def test_a_run_gets_its_cluster_its_controller_and_a_status() -> None:
    async with stage() as st, st.operator():
        await st.submit(make_run())
        await st.bring_up()
        run, cluster = st.training_run(), st.cluster()
        assert run is not None
        assert cluster is not None
        assert run["metadata"]["finalizers"] == ["midwatch.dev/finalizer"]
        assert cluster["metadata"]["labels"]["midwatch.dev/run-uid"] == run["metadata"]["uid"]
        assert (len(st.pods("worker")), len(st.pods("spare"))) == (2, 1)
        (job,) = st.run.jobs.values()
        spec = yaml.safe_load(job["runtime_env"]["env_vars"]["MIDWATCH_SPEC"])
        assert (spec["name"], spec["run_dir"]) == ("night", "/midwatch/ml/night")
        assert run["status"]["run"]["step"] == 10
        assert run["status"]["cluster"]["headPod"].startswith("night-head-")
        types = [each["type"] for each in run["status"]["conditions"]]
        assert types[:6] == ["Admitted", "Ready", "Progressing", "Degraded", "Stalled", "Succeeded"]
        assert all(each["observedGeneration"] == 1 for each in run["status"]["conditions"])
        await st.until(lambda: "Training" in st.events(), "it is told")


async def test_a_run_that_completes_keeps_its_status_and_gives_its_pods_back() -> None:
    async with stage() as st, st.operator():
        await st.submit(make_run(deletion={"ttlSecondsAfterFinished": 0}))
        await st.bring_up()
        st.run.decide(d.EndRun(stopped=False, step=100))
        await st.until(lambda: st.condition("Succeeded") == ("True", "Completed"))
        await st.until(lambda: st.cluster() is None and not st.pods(), "the pods are gone")
        await st.until(lambda: st.condition("Ready") == ("False", "Completed"))
        run = st.training_run()
        assert run is not None
        assert run["status"]["finishedAt"]
        assert run["status"]["run"]["step"] == 10


async def test_a_deleted_run_saves_and_stops_before_its_pods_go() -> None:
    async with stage() as st, st.operator():
        await st.submit(make_run())
        await st.bring_up()
        run = st.training_run()
        assert run is not None
        uid = run["metadata"]["uid"]
        await st.delete_run()
        asked = await st.until(lambda: [a for a in st.run.asked if a["action"] == "stop"])
        assert asked[0]["id"] == f"k8s-delete-{uid}"
        assert st.cluster() is not None
        st.run.decide(d.EndRun(stopped=True, step=11))
        await st.until(lambda: st.cluster() is None, "the cluster is removed")
        await st.until(lambda: st.training_run() is None, "the object is released")


async def test_a_run_deleted_while_no_operator_was_there_saves_and_stops_all_the_same() -> None:
    async with stage() as st:
        async with st.operator():
            await st.submit(make_run())
            await st.bring_up()
        await st.delete_run()
        async with st.operator():
            await st.until(lambda: [a for a in st.run.asked if a["action"] == "stop"])
            assert st.cluster() is not None
            st.run.decide(d.EndRun(stopped=True, step=11))
            await st.until(lambda: st.training_run() is None, "the object is released")


async def test_a_deleted_run_that_never_stops_is_removed_when_its_time_is_over() -> None:
    async with stage() as st, st.operator():
        await st.submit(make_run(deletion={"timeoutSeconds": 0}))
        await st.bring_up()
        await st.delete_run()
        await st.until(lambda: st.training_run() is None, "the object is released")


async def test_a_suspended_run_stops_releases_its_pods_and_goes_on_later() -> None:
    async with stage() as st, st.operator():
        await st.submit(make_run())
        await st.bring_up()
        await st.change_spec(suspend=True)
        await st.until(lambda: any(a["action"] == "stop" for a in st.run.asked))
        await st.until(lambda: st.condition("Ready") == ("False", "Suspending"))
        assert len(st.pods("worker")) == 2
        st.run.decide(d.EndRun(stopped=True, step=11))
        await st.until(lambda: st.cluster() is None, "the pods are released")
        await st.until(lambda: st.condition("Ready") == ("False", "Suspended"))
        st.run.jobs.clear()
        await st.change_spec(suspend=False)
        await st.until(lambda: st.run.jobs, "a controller is put there again")
        st.run.tell(ev.InterventionRequested("resume-2", "resume", "root", "submitted again"))
        st.run.decide(d.ResumeRun())
        st.run.start_attempt("n0", "n1")
        await st.until(lambda: st.condition("Ready")[0] == "True")


async def test_a_run_applied_under_the_name_of_one_just_deleted_gets_tokens_of_its_own() -> None:
    async with stage() as st, st.operator():
        await st.submit(make_run())
        await st.bring_up()
        stale = {s["metadata"]["name"]: s for s in st.server.all("v1/secrets")}
        await st.delete_run()
        await st.until(lambda: any(a["action"] == "stop" for a in st.run.asked))
        st.run.decide(d.EndRun(stopped=True, step=11))
        await st.until(lambda: st.training_run() is None, "the object is released")
        await st.clear_away()
        # One Secret of the old run is still to be collected.
        await st.server.put("v1/secrets", _orphan(stale["night-midwatch-viewer"]))
        run = await st.submit(make_run())

        def uid_of(plural: str, name: str) -> str:
            found = st.server.find(plural, "ml", name)
            return found["metadata"]["labels"]["midwatch.dev/run-uid"] if found else ""

        await st.until(lambda: uid_of("v1/secrets", "night-midwatch-operator") == run)
        await st.until(lambda: uid_of("v1/services", "night-midwatch") == run)
        assert st.cluster() is None
        await st.server.drop("v1/secrets", "ml", "night-midwatch-viewer")
        await st.until(lambda: uid_of("v1/secrets", "night-midwatch-viewer") == run)
        await st.until(lambda: st.cluster() is not None)
        # What is taken away behind the operator's back is made again at once.
        await st.server.drop("v1/services", "ml", "night-midwatch")
        await st.until(lambda: uid_of("v1/services", "night-midwatch") == run)


def _orphan(body: Object) -> Object:
    meta = {k: v for k, v in body["metadata"].items() if k in ("name", "namespace", "labels")}
    return {**body, "metadata": meta}


async def test_a_changed_run_spec_is_said_not_to_be_in_force_until_the_run_is_resumed() -> None:
    async with stage() as st, st.operator():
        await st.submit(make_run())
        await st.bring_up()
        await st.until(lambda: st.condition("SpecApplied") == ("True", "InForce"))
        run = make_run()["spec"]["run"]
        longer = {**run, "trainer": {**run["trainer"], "steps": 200}}
        await st.change_spec(run=longer)
        await st.until(lambda: st.condition("SpecApplied") == ("False", "SpecNotApplied"))
        await st.until(lambda: "SpecNotApplied" in st.events())
        # What is written out as it would be anyhow is no change.
        await st.change_spec(run={**run, "nodes": {**run["nodes"], "when_short": "wait"}})
        await st.until(lambda: st.condition("SpecApplied") == ("True", "InForce"))


async def test_a_folder_with_a_run_completed_before_is_not_this_runs_success() -> None:
    async with stage() as st, st.operator():
        await st.submit(make_run())
        await st.bring_up()
        st.run.decide(d.EndRun(stopped=False, step=100))
        await st.until(lambda: st.condition("Succeeded")[0] == "True")
        await st.delete_run()
        await st.until(lambda: st.training_run() is None)
        await st.clear_away()
        await st.submit(make_run(deletion={"ttlSecondsAfterFinished": 0}))
        older = "FolderHoldsCompletedRun"
        await st.until(lambda: st.condition("Stalled") == ("True", older))
        await st.until(lambda: st.condition("Succeeded") == ("False", older))
        assert not st.run.jobs
        await st.until(lambda: st.cluster() is None, "its pods are given back")
        await st.until(lambda: st.condition("Ready") == ("False", older))
        assert st.condition("Stalled") == ("True", older)


async def test_a_spec_that_cannot_work_is_told_and_nothing_is_made() -> None:
    async with stage() as st, st.operator():
        run = make_run()
        run["spec"]["run"]["mesh"] = {"dp_shard": 3, "tp": 1}
        await st.submit(run)
        await st.until(lambda: st.condition("Admitted") == ("False", "InvalidSpec"))
        told = st.training_run()
        assert told is not None
        assert "ranks_per_node" in told["status"]["conditions"][0]["message"]
        assert st.cluster() is None


async def test_a_learning_rate_reaches_the_run_once_and_its_outcome_comes_back() -> None:
    async with stage() as st, st.operator():
        await st.submit(make_run())
        await st.bring_up()
        wanted = make_intervention("slower", "SetLearningRate", params={"multiplier": "0.5"})
        made = await st.server.put(INTERVENTIONS, wanted)
        await st.until(lambda: any(a["action"] == "lr-factor" for a in st.run.asked))
        uid = made["metadata"]["uid"]
        assert [a["by"] for a in st.run.asked if a["id"] == uid] == ["ann"]
        st.run.apply_command(uid, at_step=12, previous=1e-3, current=5e-4)
        await st.until(lambda: st.intervention("slower", "Applied")[0] == "True")
        found = st.server.find(INTERVENTIONS, "ml", "slower")
        assert found is not None
        status = found["status"]
        assert (status["appliedAtStep"], status["acks"]) == (12, "4/4")
        assert (status["previous"], status["current"]) == ({"lr": "0.001"}, {"lr": "0.0005"})
        assert found["metadata"]["labels"]["midwatch.dev/origin"] == "person"
        assert sum(a["id"] == uid for a in st.run.asked) == 1


async def test_what_lies_on_the_desk_is_not_judged_again_and_shows_its_outcome() -> None:
    async with stage() as st, st.operator() as operator:
        await st.submit(make_run())
        await st.bring_up()
        st.run.is_controller_away = True
        wanted = make_intervention("slower", "SetLearningRate", params={"multiplier": "0.5"})
        made = await st.server.put(INTERVENTIONS, wanted)
        await st.until(lambda: st.intervention("slower", "Accepted") == ("Unknown", "Requested"))
        await st.change_spec(interventionPolicy={"allowed": ["Stop"]})
        await st.until(lambda: st.run.desk)
        runs = operator._runs
        assert runs is not None
        looks = runs.num_looks
        await st.until(lambda: runs.num_looks > looks + 2)
        st.run.take_desk()
        st.run.apply_command(made["metadata"]["uid"], at_step=12, previous=1e-3, current=5e-4)
        await st.until(lambda: st.intervention("slower", "Applied")[0] == "True")
        assert len(st.run.asked) == 1


async def test_a_dry_run_says_what_would_be_decided_and_asks_for_nothing() -> None:
    async with stage() as st, st.operator():
        await st.submit(make_run())
        await st.bring_up()
        wanted = make_intervention("try", "SetLearningRate", params={"value": "1e-4"}, dryRun=True)
        await st.server.put(INTERVENTIONS, wanted)
        await st.until(lambda: st.intervention("try", "Applied") == ("False", "DryRun"))
        found = st.server.find(INTERVENTIONS, "ml", "try")
        assert found is not None
        assert "it would be done" in found["status"]["message"]
        assert st.run.state is not None
        assert not st.run.state.interventions


async def test_what_the_api_refuses_is_shown_with_its_code() -> None:
    async with stage() as st, st.operator():
        await st.submit(make_run())
        await st.bring_up()
        st.run.refuses["stop"] = 409, {"code": "run-over", "message": "nobody acts on it"}
        await st.server.put(INTERVENTIONS, make_intervention("end", "Stop"))
        await st.until(lambda: st.intervention("end", "Accepted") == ("False", "RunOver"))


async def test_what_the_controller_does_by_itself_appears_beside_it() -> None:
    async with stage() as st, st.operator():
        await st.submit(make_run())
        await st.bring_up()
        draft = d.IncidentDraft("inc-0001", "node-lost", "n1 is gone", 10, 1.0, 10)
        st.run.decide(d.QuarantineNode("n2"), opens=draft, incident="inc-0001")
        made = await st.until(lambda: st.server.all(INTERVENTIONS))
        assert made[0]["spec"]["action"] == "QuarantineNode"
        assert made[0]["spec"]["requestedBy"] == USER
        assert made[0]["metadata"]["labels"]["midwatch.dev/origin"] == "automatic"
        name = made[0]["metadata"]["name"]
        await st.until(lambda: st.intervention(name, "Applied")[0] == "True")


async def test_a_quarantined_node_is_excluded_and_its_place_taken_by_another() -> None:
    async with stage() as st, st.operator():
        await st.submit(make_run())
        await st.bring_up()
        before = {p["metadata"]["name"]: p["spec"]["nodeName"] for p in st.pods("worker")}
        victim = sorted(before)[0]
        host = next(p for p in st.pods() if p["metadata"]["name"] == victim)["status"]["podIP"]
        node = st.run.node_at(host)
        st.run.tell(ev.NodeLost(node, f"agent-at-{host}", "its agent died"))
        st.run.decide(d.QuarantineNode(node))
        await st.until(lambda: victim not in {p["metadata"]["name"] for p in st.pods()})
        await st.until(lambda: len(st.pods("worker")) == 2, "another pod takes its place")
        nodes = {p["spec"]["nodeName"] for p in st.pods("worker")}
        assert before[victim] not in nodes
        await st.until(lambda: st.excluded() == [before[victim]], "the status says so")
        asked = await st.until(lambda: [a for a in st.run.asked if a["action"] == "release"])
        assert (asked[0]["target"], asked[0]["id"]) == (node, f"k8s-release-{node}-agent-at-{host}")


async def test_the_pod_of_a_dead_node_does_not_block_its_replacement() -> None:
    async with stage() as st, st.operator():
        await st.submit(make_run())
        await st.bring_up()
        victim = st.pods("worker")[0]
        node, host = victim["spec"]["nodeName"], victim["status"]["podIP"]
        st.server.lost_nodes.add(node)
        await st.lose_node(node)
        st.run.tell(ev.NodeLost(st.run.node_at(host), f"agent-at-{host}", "silent"))
        await st.evict(victim["metadata"]["name"])
        await st.until(
            lambda: victim["metadata"]["name"] not in {p["metadata"]["name"] for p in st.pods()}
        )
        await st.until(lambda: len(st.pods("worker")) == 2, "another pod takes its place")


async def test_a_cordoned_node_is_left_after_a_checkpoint() -> None:
    async with stage() as st, st.operator():
        await st.submit(make_run())
        await st.bring_up()
        victim = st.pods("worker")[0]
        await st.cordon(victim["spec"]["nodeName"])
        saved = await st.until(lambda: [a for a in st.run.asked if a["action"] == "checkpoint"])
        assert not [a for a in st.run.asked if a["action"] == "quarantine"]
        st.run.apply_command(saved[0]["id"], at_step=13, previous=0.0, current=0.0)
        left = await st.until(lambda: [a for a in st.run.asked if a["action"] == "quarantine"])
        assert left[0]["target"] == st.run.node_at(victim["status"]["podIP"])
        st.run.decide(d.QuarantineNode(left[0]["target"]))
        await st.until(
            lambda: victim["metadata"]["name"] not in {p["metadata"]["name"] for p in st.pods()}
        )


# KubeRay's default is a cluster without a token.
@pytest.mark.parametrize("auth", [{"authOptions": {"mode": "token"}}, {}], ids=["token", "open"])
@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
async def test_a_run_is_put_on_a_cluster_that_is_there_and_leaves_it_as_it_is(
    kind: str, auth: Object
) -> None:
    async with stage() as st, st.operator():
        st.run.ray_token = RAY_TOKEN if auth else ""
        await st.server.put("ray.io/v1/rayclusters", shared_cluster(auth))
        job = {"metadata": {"name": "batch", "namespace": "ml"}}
        await st.server.put("ray.io/v1/rayjobs", {**job, "status": {"rayClusterName": "shared"}})
        name = "shared" if kind == "RayCluster" else "batch"
        await st.submit(make_run(clusterSelector={"kind": kind, "name": name}))
        await st.until(lambda: st.run.jobs, "the controller is started")
        (started,) = st.run.jobs.values()
        assert "midwatch serve" in started["entrypoint"]
        tokens = started["runtime_env"]["env_vars"]
        assert tokens["MIDWATCH_OPERATOR_TOKEN"] != tokens["MIDWATCH_VIEWER_TOKEN"]
        started["status"] = "RUNNING"
        st.run.train()
        st.run.join("n0", "10.9.9.9")
        await st.until(lambda: st.condition("Ready")[0] == "True")
        service = st.server.find("v1/services", "ml", "night-midwatch")
        assert service is not None
        assert service["spec"]["selector"]["ray.io/cluster"] == "shared"
        await st.delete_run()
        await st.until(lambda: any(a["action"] == "stop" for a in st.run.asked))
        st.run.decide(d.EndRun(stopped=True, step=11))
        await st.until(lambda: st.training_run() is None, "the object is released")
        assert started["status"] == "STOPPED"
        assert st.cluster("shared") is not None
        assert st.cluster() is None


async def test_a_run_on_an_attached_cluster_goes_on_after_it_was_suspended() -> None:
    async with stage() as st, st.operator():
        st.run.ray_token = ""
        await st.server.put("ray.io/v1/rayclusters", shared_cluster({}))
        await st.submit(make_run(clusterSelector={"kind": "RayCluster", "name": "shared"}))
        (first,) = await st.until(lambda: list(st.run.jobs.values()))
        first["status"] = "RUNNING"
        st.run.train()
        await st.until(lambda: st.condition("Ready")[0] == "True")
        await st.change_spec(suspend=True)
        await st.until(lambda: any(a["action"] == "stop" for a in st.run.asked))
        st.run.decide(d.EndRun(stopped=True, step=11))
        await st.until(lambda: st.condition("Ready") == ("False", "Suspending"))
        assert first["status"] == "RUNNING"
        await st.change_spec(suspend=False)
        await st.until(lambda: len(st.run.jobs) == 2, "another controller is started")
        assert first["status"] == "STOPPED"


def shared_cluster(auth: Object) -> Object:
    """A RayCluster that is there already. auth: what its spec says of tokens."""
    return {
        "metadata": {"name": "shared", "namespace": "ml"},
        "spec": {
            **auth,
            "headGroupSpec": {"template": {"metadata": {"labels": {}}, "spec": {}}},
            "workerGroupSpecs": [],
        },
    }
