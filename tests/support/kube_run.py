"""The rest of a cluster for tests of the operator: KubeRay, Ray's job server, a run's HTTP API.

All are real HTTP on the loopback. What the run tells is a real RunState, folded from real events.
"""

from __future__ import annotations

import base64
import time
import traceback
from typing import Any

import aiohttp.web
import msgspec
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.fold import evolve
from midwatch.logbook.live_view import doing_text
from midwatch.logbook.plan import AttemptPlan, Placement
from midwatch.logbook.record import to_json
from midwatch.logbook.state import Intervention, RunState
from midwatch.logbook.summary import summarize
from midwatch.logbook.wire import Command, Hyper, Mesh

from .builders import make_sample
from .kube import ApiServer, Object

RAY_TOKEN = "ray-token"


def make_run(name: str = "night", **spec: Any) -> Object:
    """A TrainingRun of two nodes and a spare."""
    whole = {
        "run": {
            "mesh": {"dp_shard": 2, "tp": 2},
            "nodes": {"ranks_per_node": 2, "spares": 1},
            "trainer": {"preset": "tiny", "steps": 100},
        },
        "image": "registry.example/midwatch:1",
        "storage": {"claimName": "runs"},
    }
    return {
        "apiVersion": "midwatch.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": name, "namespace": "ml"},
        "spec": {**whole, **spec},
    }


def make_intervention(name: str, action: str, run: str = "night", **spec: Any) -> Object:
    """An Intervention by ann."""
    return {
        "apiVersion": "midwatch.dev/v1alpha1",
        "kind": "Intervention",
        "metadata": {"name": name, "namespace": "ml"},
        "spec": {
            "runRef": {"name": run},
            "action": action,
            "reason": "because",
            "requestedBy": "ann",
            **spec,
        },
    }


def make_node(name: str, **more: Any) -> Object:
    """A node that is ready."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": f"host-{name}"}},
        "spec": more.get("spec", {}),
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}, *more.get("conditions", [])]
        },
    }


def refusal_of(job: str) -> str:
    """Return what Ray answers to a job whose id was used: a traceback in another."""
    try:
        try:
            raise ValueError(
                f"Job with submission_id {job} already exists. "
                "Please use a different submission_id."
            )
        except ValueError:
            told = f"Request failed with status code 400: {traceback.format_exc()}."
            raise RuntimeError(told) from None
    except RuntimeError:
        return traceback.format_exc()


class KubeRay:
    """Makes pods for RayClusters, a step at a time, on nodes that their affinity allows."""

    def __init__(self, server: ApiServer, nodes: int = 5) -> None:
        self._server = server
        self._nodes = [f"node-{index}" for index in range(nodes)]
        self._num_pods = 0

    async def begin(self) -> None:
        """Put the nodes there."""
        for name in self._nodes:
            await self._server.put("v1/nodes", make_node(name))

    async def turn(self) -> None:
        """Bring the pods of every cluster to what its spec says."""
        for cluster in self._server.all("ray.io/v1/rayclusters"):
            if cluster["spec"].get("suspend"):
                for pod in self._server.all("v1/pods"):
                    meta = pod["metadata"]
                    await self._server.drop("v1/pods", meta["namespace"], meta["name"])
                continue
            await self._secret(cluster)
            await self._group(cluster, "", 1, cluster["spec"]["headGroupSpec"]["template"])
            for group in cluster["spec"]["workerGroupSpecs"]:
                await self._group(cluster, group["groupName"], group["replicas"], group["template"])

    async def _secret(self, cluster: Object) -> None:
        meta = cluster["metadata"]
        if self._server.find("v1/secrets", meta["namespace"], meta["name"]) is None:
            token = base64.b64encode(RAY_TOKEN.encode()).decode()
            await self._server.put(
                "v1/secrets", {**_owned(cluster, meta["name"]), "data": {"auth_token": token}}
            )

    async def _group(self, cluster: Object, group: str, wanted: int, template: Object) -> None:
        meta = cluster["metadata"]
        pods = [
            pod
            for pod in self._server.all("v1/pods")
            if pod["metadata"]["labels"].get("ray.io/cluster") == meta["name"]
            and pod["metadata"]["labels"].get("ray.io/group", "") == group
        ]
        # A pod that is ending still counts, as it does for KubeRay.
        for _ in range(wanted - len(pods)):
            await self._make(cluster, group, template)

    async def _make(self, cluster: Object, group: str, template: Object) -> None:
        self._num_pods += 1
        meta = cluster["metadata"]
        taken = {
            pod["spec"]["nodeName"]
            for pod in self._server.all("v1/pods")
            if pod["metadata"]["labels"].get("ray.io/node-type") == "worker"
        }
        barred = _barred(template)
        free = [n for n in self._nodes if n not in taken and f"host-{n}" not in barred]
        free = [n for n in free if n not in self._server.lost_nodes]
        if not free:
            return
        kind = "worker" if group else "head"
        labels = {"ray.io/cluster": meta["name"], "ray.io/node-type": kind}
        if group:
            labels["ray.io/group"] = group
        body = _owned(cluster, f"{meta['name']}-{group or 'head'}-{self._num_pods}")
        body["metadata"]["labels"] = {**template["metadata"]["labels"], **labels}
        body["spec"] = {**template["spec"], "nodeName": free[0]}
        body["status"] = {
            "phase": "Running",
            "podIP": f"10.0.0.{self._num_pods}",
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        await self._server.put("v1/pods", body)


def _owned(owner: Object, name: str) -> Object:
    meta = owner["metadata"]
    reference = {"kind": "RayCluster", "name": meta["name"], "uid": meta["uid"]}
    return {
        "metadata": {
            "name": name,
            "namespace": meta["namespace"],
            "ownerReferences": [reference],
        }
    }


def _barred(template: Object) -> set[str]:
    affinity = (template["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    return {
        value
        for term in required.get("nodeSelectorTerms") or ()
        for each in term["matchExpressions"]
        for value in each["values"]
    }


class RunServer:
    """Serves both the run's API and Ray's jobs. state None: there is no run folder yet.

    desk: requests that the run's controller, being away, has not taken yet.
    """

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self.state: RunState | None = None
        self.jobs: dict[str, Object] = {}
        self.asked: list[Object] = []
        self.refuses: dict[str, tuple[int, Object]] = {}
        self.is_away = False
        self.is_controller_away = False
        self.desk: list[ev.InterventionRequested] = []
        self.ray_token = RAY_TOKEN
        self.num_requests = 0
        self.url = ""
        self._runner: aiohttp.web.AppRunner | None = None

    async def begin(self) -> None:
        """Listen."""
        app = aiohttp.web.Application()
        app.router.add_get("/v1/status", self._status)
        app.router.add_get("/v1/state", self._state)
        app.router.add_get("/v1/interventions", self._interventions)
        app.router.add_post("/v1/interventions", self._intervene)
        app.router.add_get("/api/jobs/", self._list_jobs)
        app.router.add_post("/api/jobs/", self._submit)
        app.router.add_post("/api/jobs/{name}/stop", self._stop_job)
        self._runner = aiohttp.web.AppRunner(app)
        await self._runner.setup()
        site = aiohttp.web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = str(site.name)

    async def end(self) -> None:
        """Close everything."""
        assert self._runner is not None
        await self._runner.cleanup()

    def tell(self, *events: ev.Event) -> None:
        """Let things happen in the run."""
        for event in events:
            state = self.state or RunState()
            self.state = evolve(state, event, seq=state.seq + 1, time_s=time.time())

    def take_desk(self) -> None:
        """Journal what lies on the desk, as the run's controller does."""
        self.tell(*self.desk)
        self.desk.clear()

    def train(self, step: int = 10) -> None:
        """Have the run train on the pods that are there: n0 and n1 carry ranks, n2 is the spare."""
        if self.state is None:
            self.tell(ev.RunSubmitted("night", {}, "", 1, "", "ann"))
        pods = [p for p in self._server.all("v1/pods") if "ray.io/group" in p["metadata"]["labels"]]
        for index, pod in enumerate(pods[:3]):
            self.join(f"n{index}", pod["status"]["podIP"])
        self.start_attempt("n0", "n1", step=step)

    def join(self, node: str, host: str) -> None:
        """Have a node of the run join from a pod with this address."""
        self.tell(ev.NodeJoined(node, f"agent-at-{host}", host, 2))

    def start_attempt(self, *nodes: str, step: int = 10) -> None:
        """Have a new attempt train on these nodes."""
        assert self.state is not None
        attempt = self.state.num_attempts + 1
        places = tuple(Placement(node, 2 * index, 2) for index, node in enumerate(nodes))
        plan = AttemptPlan(attempt, Mesh(len(nodes), 2), places, (), 0, Hyper())
        self.decide(d.StartAttempt(plan))
        self.tell(ev.AttemptResumed(attempt, 0, "", 0.1), ev.StepDone(attempt, make_sample(step)))

    def node_at(self, host: str) -> str:
        """Return the node of the run whose pod has this address."""
        assert self.state is not None
        return next(node.node for node in self.state.nodes.values() if node.host == host)

    def apply_command(self, request: str, *, at_step: int, previous: float, current: float) -> None:
        """Have every rank take a request on, and read its value back."""
        assert self.state is not None
        asked = self.state.interventions[request].request
        command = Command(self.state.next_command, asked.action, asked.value, request)
        self.decide(d.SendCommand(command, request))
        attempt = self.state.num_attempts
        for node, ranks in (("n0", (0, 1)), ("n1", (2, 3))):
            self.tell(
                ev.CommandApplied(
                    attempt,
                    command.seq,
                    node,
                    ranks,
                    at_step,
                    {"lr": current},
                    {"lr": previous},
                )
            )

    def decide(self, action: d.Action, **more: Any) -> None:
        """Have the run's controller decide and do something."""
        assert self.state is not None
        name = f"{self.state.num_attempts}/{self.state.num_decisions + 1}"
        self.tell(ev.DecisionMade(d.Decision(name, action, "because", **more)), ev.ActionDone(name))

    def _allow(self, request: aiohttp.web.Request, token: str) -> None:
        if self.is_away:
            raise aiohttp.web.HTTPServiceUnavailable
        self.num_requests += 1
        wanted = f"Bearer {token}" if token else None
        if request.headers.get("Authorization") != wanted:
            raise aiohttp.web.HTTPUnauthorized

    def _allow_run(self, request: aiohttp.web.Request) -> RunState:
        secret = self._server.find("v1/secrets", "ml", "night-midwatch-operator") or {}
        self._allow(request, _token(secret))
        if self.state is None:
            raise aiohttp.web.HTTPServiceUnavailable
        return self.state

    async def _status(self, request: aiohttp.web.Request) -> aiohttp.web.Response:
        state = self._allow_run(request)
        told = {
            "doing": doing_text(state),
            "seq": state.seq,
            "summary": summarize(state, time.time()),
        }
        return _json(to_json(told))

    async def _state(self, request: aiohttp.web.Request) -> aiohttp.web.Response:
        return _json(to_json(self._allow_run(request)))

    async def _interventions(self, request: aiohttp.web.Request) -> aiohttp.web.Response:
        known = self._allow_run(request).interventions
        waiting = [Intervention(asked, time.time()) for asked in self.desk]
        return _json(to_json([*known.values(), *(w for w in waiting if w.request.id not in known)]))

    async def _intervene(self, request: aiohttp.web.Request) -> aiohttp.web.Response:
        state = self._allow_run(request)
        body = await request.json()
        self.asked.append({**body, "dry_run": request.query.get("dry_run") == "true"})
        refused = self.refuses.get(body["action"])
        if refused is not None:
            return _json(msgspec.json.encode(refused[1]), refused[0])
        if request.query.get("dry_run") == "true":
            return _json(b'[{"reason": "it would be done"}]')
        if body["id"] not in state.interventions:
            asked = msgspec.convert(body, ev.InterventionRequested)
            self.desk += [] if asked in self.desk else [asked]
            if not self.is_controller_away:
                self.take_desk()
        return _json(msgspec.json.encode({"id": body["id"], "stage": "requested"}), 202)

    async def _list_jobs(self, request: aiohttp.web.Request) -> aiohttp.web.Response:
        self._allow(request, self.ray_token)
        return _json(msgspec.json.encode(list(self.jobs.values())))

    async def _submit(self, request: aiohttp.web.Request) -> aiohttp.web.Response:
        self._allow(request, self.ray_token)
        body = await request.json()
        name = body["submission_id"]
        if name in self.jobs:
            return aiohttp.web.Response(text=refusal_of(name), status=500)
        begun = {"status": "PENDING", "type": "SUBMISSION", "start_time": int(time.time() * 1e3)}
        self.jobs[name] = {**body, **begun}
        return _json(msgspec.json.encode({"submission_id": name}))

    async def _stop_job(self, request: aiohttp.web.Request) -> aiohttp.web.Response:
        self._allow(request, self.ray_token)
        self.jobs[request.match_info["name"]]["status"] = "STOPPED"
        return _json(b'{"stopped": true}')


def _json(blob: bytes, status: int = 200) -> aiohttp.web.Response:
    return aiohttp.web.Response(body=blob, status=status, content_type="application/json")


def _token(secret: Object) -> str:
    return base64.b64decode((secret.get("data") or {}).get("token", "")).decode()
