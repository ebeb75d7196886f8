"""A whole operator against a whole pretended cluster, in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import kmock
import msgspec
from midwatch.operator.k8s.access import Access
from midwatch.operator.k8s.lease import LeaseTimes
from midwatch.operator.k8s.look import Places
from midwatch.operator.k8s.loop import LoopTimes
from midwatch.operator.k8s.service import Operator, Setting
from midwatch.operator.k8s.world import Scope

from .kube import ApiServer, Object
from .kube_run import KubeRay, RunServer

DEADLINE_S = 30.0
QUICK = LoopTimes(resync_s=0.2, calm_s=0.01, back_off_max_s=0.2, relist_s=0.5)
USER = "system:serviceaccount:midwatch-system:midwatch-operator"


class Stage:
    """The pretended cluster, and as many operators on it as a test starts."""

    def __init__(self, server: ApiServer, kuberay: KubeRay, run: RunServer) -> None:
        self.server, self.kuberay, self.run = server, kuberay, run
        self.setting = Setting(
            identity=("midwatch-system", "pod-0"),
            user=USER,
            scope=Scope(),
            lease=("midwatch-system", "midwatch-operator"),
            probe_port=0,
            places=Places(lambda *_: run.url, lambda *_: run.url),
            loop_times=QUICK,
            lease_times=LeaseTimes(duration_s=60.0, renew_s=50.0, retry_s=0.1),
            missing_s=0.1,
            status_every_s=0.0,
        )
        self._num_operators = 0

    def access(self) -> Access:
        """Return how the API server is reached."""
        return Access(str(self.server.url).rstrip("/"))

    @contextlib.asynccontextmanager
    async def operator(self, **changes: Any) -> AsyncIterator[Operator]:
        """An operator at work until the block ends; it is killed there, not asked to end."""
        self._num_operators += 1
        setting = msgspec.structs.replace(self.setting, **changes)
        operator = Operator(self.access(), setting, f"operator-{self._num_operators}")
        task = asyncio.create_task(operator.run())
        try:
            yield operator
        finally:
            if not task.done():
                task.cancel()
            # One that ended by itself is a failure of the test, whatever else failed.
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def until(self, holds: Callable[[], Any], what: str = "") -> Any:
        """Let the cluster go on until something holds; return what it was."""
        deadline_s = time.monotonic() + DEADLINE_S
        while not (found := holds()):
            assert time.monotonic() < deadline_s, f"never: {what or holds}"
            await self.kuberay.turn()
            await asyncio.sleep(0.01)
        return found

    def training_run(self, name: str = "night") -> Object | None:
        """The TrainingRun as it is now."""
        return self.server.find("midwatch.dev/v1alpha1/trainingruns", "ml", name)

    def cluster(self, name: str = "night") -> Object | None:
        """Its RayCluster."""
        return self.server.find("ray.io/v1/rayclusters", "ml", name)

    def condition(self, kind: str, name: str = "night") -> tuple[str, str]:
        """Status and reason of a condition of the TrainingRun."""
        run = self.training_run(name) or {}
        return _condition(run, kind)

    def intervention(self, name: str, kind: str) -> tuple[str, str]:
        """Status and reason of a condition of an Intervention."""
        found = self.server.find("midwatch.dev/v1alpha1/interventions", "ml", name)
        return _condition(found or {}, kind)

    def events(self) -> list[str]:
        """The reasons of all Events."""
        return [each["reason"] for each in self.server.all("events.k8s.io/v1/events")]

    def excluded(self) -> list[str]:
        """The nodes that the status of the TrainingRun says are excluded."""
        run = self.training_run() or {}
        return [row["node"] for row in (run.get("status") or {}).get("excludedNodes") or ()]

    def pods(self, group: str = "") -> list[Object]:
        """The pods of a group, "" for all."""
        return [
            pod
            for pod in self.server.all("v1/pods")
            if group in ("", pod["metadata"]["labels"].get("ray.io/group"))
        ]

    async def submit(self, run: Object) -> str:
        """Apply a TrainingRun as a person does, the schema's defaults filled in; return its uid."""
        made = await self.server.put("midwatch.dev/v1alpha1/trainingruns", run)
        return str(made["metadata"]["uid"])

    async def clear_away(self) -> None:
        """Take away what KubeRay has made, and the jobs with it."""
        self.run.jobs.clear()
        for plural in ("ray.io/v1/rayclusters", "v1/pods"):
            for each in self.server.all(plural):
                await self.server.drop(plural, "ml", each["metadata"]["name"])

    async def change_spec(self, **changes: Any) -> None:
        """Change the spec of the TrainingRun as a person does."""
        run = self.training_run()
        assert run is not None
        run["spec"] |= changes
        await self.server.put("midwatch.dev/v1alpha1/trainingruns", run)

    async def delete_run(self) -> None:
        """Delete the TrainingRun as a person does: its finalizer holds it."""
        async with aiohttp.ClientSession() as session:
            path = "apis/midwatch.dev/v1alpha1/namespaces/ml/trainingruns/night"
            (await session.delete(self.server.url / path, json={})).raise_for_status()

    async def evict(self, pod: str) -> None:
        """Delete a pod as the node controller does: it ends when its kubelet says so."""
        found = self.server.find("v1/pods", "ml", pod)
        assert found is not None
        found["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        await self.server.put("v1/pods", found)

    async def lose_node(self, name: str) -> None:
        """Have a node stop answering."""
        node = self.server.find("v1/nodes", None, name)
        assert node is not None
        node["status"]["conditions"] = [{"type": "Ready", "status": "Unknown"}]
        await self.server.put("v1/nodes", node)

    async def cordon(self, name: str) -> None:
        """Cordon a node as an administrator does."""
        node = self.server.find("v1/nodes", None, name)
        assert node is not None
        node["spec"]["unschedulable"] = True
        await self.server.put("v1/nodes", node)

    async def bring_up(self) -> None:
        """Follow the run until its controller is there, and have it train."""
        await self.until(lambda: self.run.jobs, "the controller is started")
        for job in self.run.jobs.values():
            job["status"] = "SUCCEEDED"
        self.run.train()
        await self.until(lambda: self.condition("Ready")[0] == "True", "ready")


@contextlib.asynccontextmanager
async def stage(nodes: int = 5) -> AsyncIterator[Stage]:
    """A cluster that serves everything, without an operator yet."""
    server = ApiServer()
    server.serve()
    run = RunServer(server)
    async with server, kmock.Server(server):
        kuberay = KubeRay(server, nodes)
        await kuberay.begin()
        await run.begin()
        try:
            yield Stage(server, kuberay, run)
        finally:
            await run.end()


def _condition(body: Object, kind: str) -> tuple[str, str]:
    for each in (body.get("status") or {}).get("conditions") or ():
        if each["type"] == kind:
            return each["status"], each["reason"]
    return "", ""
