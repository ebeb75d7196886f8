"""One look at a run: the caches, and what its own API and Ray's job server say just now."""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Callable
from typing import Any

import httpx
import msgspec

from ...logbook.errors import Fatal, MidwatchError
from . import names
from .client import JOBS, SECRETS, SERVICES, Kube
from .observed import JobSight, Object, Observed, Reach, RunSight
from .run_api import TIMEOUT_S, Refused, Remote, see_jobs, see_run
from .world import World

TOKEN_AGE_S = 300.0


class Places(msgspec.Struct, frozen=True):
    """Where the servers of a run are; both take (namespace, name of Service)."""

    api: Callable[[str, str], str] = lambda ns, service: (
        f"http://{service}.{ns}.svc:{names.API_PORT}"
    )
    dashboard: Callable[[str, str], str] = lambda ns, service: (
        f"http://{service}.{ns}.svc:{names.DASHBOARD_PORT}"
    )


PLACES = Places()


class Lookout:
    """Makes Observed of a run. Tokens are remembered for a while, and anew after a refusal.

    By the uid of whom they belong to: another run may have the name of one that is gone.
    """

    def __init__(self, kube: Kube, world: World, places: Places = PLACES, user: str = "") -> None:
        self._kube, self._world, self._places, self._user = kube, world, places, user
        self._http = httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False)
        self._tokens: dict[tuple[str, str, str], tuple[str, float]] = {}

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    def forget(self, uid: str) -> None:
        """Forget a run that is gone."""
        self._tokens = {key: known for key, known in self._tokens.items() if key[0] != uid}

    async def look(self, run: Object) -> Observed:
        """Return what is to be seen of a TrainingRun now; what cannot be seen is said to be so."""
        meta = run["metadata"]
        namespace, name = meta["namespace"], meta["name"]
        cluster = await self._cluster(run)
        head = cluster["metadata"]["name"] if cluster is not None else name
        pods = self._world.pods_of(namespace, head)
        sight: RunSight | None = None
        jobs: tuple[JobSight, ...] = ()
        api_trouble = jobs_trouble = "its Ray cluster has no head"
        if cluster is not None and any(pod.is_head and pod.is_ready for pod in pods):
            (sight, api_trouble), (jobs, jobs_trouble) = await asyncio.gather(
                self._see(run), self._jobs(namespace, cluster, meta["uid"])
            )
        secrets, secrets_trouble = await self._secrets(run)
        trouble = self._world.missing
        reach = Reach(
            jobs=jobs_trouble,
            api=api_trouble,
            nodes="" if self._world.scope.has_nodes else "nodes are not read",
            kuberay=trouble.get("rayclusters", ""),
            secrets=secrets_trouble,
        )
        return Observed(
            now_s=time.time(),
            run=run,
            cluster=cluster,
            pods=pods,
            nodes={node.name: node for node in self._world.nodes},
            jobs=jobs,
            sight=sight,
            interventions=self._world.interventions_of(namespace, name),
            approvals=self._world.approvals_in(namespace),
            secrets=secrets,
            has_service=await self._has_service(run),
            reach=reach,
            user=self._user,
        )

    async def run_remote(self, run: Object) -> Remote:
        """Return the run's API, with the right to ask for changes."""
        place = self._places.api(run["metadata"]["namespace"], _api_name(run))
        return Remote(self._http, place, await self._run_token(run, names.OPERATOR))

    async def jobs_remote(self, namespace: str, cluster: Object) -> Remote:
        """Return the job server of a Ray cluster."""
        name = cluster["metadata"]["name"]
        head = ((cluster.get("status") or {}).get("head") or {}).get("serviceName")
        options = (cluster.get("spec") or {}).get("authOptions") or {}
        secret = options.get("secretName") or name
        needs_token = options.get("mode") == "token"
        owner = str(cluster["metadata"].get("uid", ""))
        place = namespace, secret, names.RAY_TOKEN_KEY
        token = await self._token(owner, place) if needs_token else ""
        service = head or names.head_service_name(name)
        return Remote(self._http, self._places.dashboard(namespace, service), token)

    async def api_tokens(self, run: Object) -> dict[str, str]:
        """Return the environment in which a job that serves the API finds its tokens."""
        return {
            names.token_variable(role): await self._run_token(run, role)
            for role in (names.VIEWER, names.OPERATOR)
        }

    async def _cluster(self, run: Object) -> Object | None:
        meta = run["metadata"]
        selector = (run.get("spec") or {}).get("clusterSelector")
        if not selector:
            return self._world.clusters.get(meta["namespace"], meta["name"])
        name = selector["name"]
        if selector.get("kind") == "RayJob":
            job = await self._kube.get(JOBS, meta["namespace"], name)
            name = ((job or {}).get("status") or {}).get("rayClusterName", "")
        return self._world.clusters.get(meta["namespace"], name)

    async def _see(self, run: Object) -> tuple[RunSight | None, str]:
        try:
            return await see_run(await self.run_remote(run)), ""
        except MidwatchError as error:
            self._doubt_tokens(error)
            return None, error.message

    async def _jobs(
        self, namespace: str, cluster: Object, uid: str
    ) -> tuple[tuple[JobSight, ...], str]:
        try:
            remote = await self.jobs_remote(namespace, cluster)
            return await see_jobs(remote, names.job_prefix(uid)), ""
        except MidwatchError as error:
            self._doubt_tokens(error)
            return (), error.message

    async def _has_service(self, run: Object) -> bool:
        """Whether the Service of the run's API is there, and no older one that is about to go."""
        meta = run["metadata"]
        try:
            found = await self._kube.get(SERVICES, meta["namespace"], _api_name(run))
        except MidwatchError:
            return True
        return found is not None and not _is_of_another(found, meta["uid"])

    async def _secrets(self, run: Object) -> tuple[frozenset[str], str]:
        """Return the token Secrets that are there, and why that cannot be seen."""
        found: set[str] = set()
        for role in (names.VIEWER, names.OPERATOR):
            try:
                await self._run_token(run, role)
            except Fatal as error:
                if error.code == "kube-forbidden":
                    return frozenset(found), error.message
                if error.code != "token-missing":
                    raise
            else:
                found.add(names.token_secret_name(run["metadata"]["name"], role))
        return frozenset(found), ""

    async def _run_token(self, run: Object, role: str) -> str:
        meta = run["metadata"]
        secret = names.token_secret_name(meta["name"], role)
        return await self._token(meta["uid"], (meta["namespace"], secret, names.TOKEN_KEY))

    async def _token(self, owner: str, place: tuple[str, str, str]) -> str:
        """Return the token at (namespace, Secret, key). owner: uid of whom it is for."""
        namespace, secret, key = place
        known = self._tokens.get((owner, secret, key))
        if known is not None and time.monotonic() < known[1] + TOKEN_AGE_S:
            return known[0]
        body = await self._kube.get(SECRETS, namespace, secret) or {}
        if body and _is_of_another(body, owner):
            raise Fatal(
                "token-missing",
                f"Secret {namespace}/{secret} is of an older run of this name: it goes with that.",
            )
        token = _decoded(body.get("data") or {}, key)
        if not token:
            raise Fatal("token-missing", f"Secret {namespace}/{secret} holds no {key}.")
        self._tokens[(owner, secret, key)] = token, time.monotonic()
        return token

    def _doubt_tokens(self, error: MidwatchError) -> None:
        if isinstance(error, Refused) and error.status in (401, 403):
            self._tokens.clear()


def _api_name(run: Object) -> str:
    return names.api_name(run["metadata"]["name"])


def _is_of_another(body: Object, run_uid: str) -> bool:
    """Whether an object was made for another TrainingRun than this."""
    labels = body["metadata"].get("labels") or {}
    return bool(labels.get(names.RUN_UID_LABEL, run_uid) != run_uid)


def _decoded(data: dict[str, Any], key: str) -> str:
    try:
        return base64.b64decode(str(data.get(key, "")), validate=True).decode("ascii").strip()
    except (binascii.Error, UnicodeDecodeError):
        return ""
