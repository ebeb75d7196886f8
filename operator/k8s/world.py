"""All that the operator keeps of the cluster: caches, whom a change concerns, what can be seen."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

import msgspec

from ...logbook.errors import MidwatchError
from . import names
from .cache import Cache, Key
from .client import APPROVALS, CLUSTERS, INTERVENTIONS, NODES, PODS, RUNS, Kind, Kube
from .observed import NodeSight, Object, Pod, read_node, read_pod

_log = logging.getLogger(__name__)


class PodSeen(msgspec.Struct, frozen=True):
    """A pod, and of which Ray cluster it is."""

    pod: Pod
    namespace: str
    cluster: str


class Scope(msgspec.Struct, frozen=True):
    """Where the operator looks. namespaces: () for all. has_nodes: Node objects may be read."""

    namespaces: tuple[str, ...] = ()
    has_nodes: bool = True

    @property
    def places(self) -> tuple[str | None, ...]:
        return self.namespaces or (None,)


class World:
    """The caches. wake(key) is called with a TrainingRun's key when something of it changed."""

    def __init__(self, scope: Scope, wake: Callable[[Key], None]) -> None:
        self.scope, self._wake = scope, wake
        self.missing: dict[str, str] = {}
        self.runs: Cache[Object] = Cache(_as_is, lambda key, _: wake(key))
        self.clusters: Cache[Object] = Cache(_as_is, self._cluster_changed)
        self.pods: Cache[PodSeen] = Cache(_read_pod, self._pod_changed)
        self.nodes: Cache[NodeSight] = Cache(read_node, self._node_changed)
        self.interventions: Cache[Object] = Cache(_as_is, self._intervention_changed)
        self.approvals: Cache[Object] = Cache(_as_is, lambda key, _: self._wake_place(key[0]))

    @property
    def caches(self) -> Mapping[Kind, Cache[Object] | Cache[PodSeen] | Cache[NodeSight]]:
        """Return the cache of every resource that is watched."""
        found: dict[Kind, Cache[Object] | Cache[PodSeen] | Cache[NodeSight]] = {
            RUNS: self.runs,
            INTERVENTIONS: self.interventions,
            APPROVALS: self.approvals,
            CLUSTERS: self.clusters,
            PODS: self.pods,
        }
        if self.scope.has_nodes:
            found[NODES] = self.nodes
        return found

    @property
    def is_known(self) -> bool:
        """Whether everything was listed once: before, nothing may be taken for absent."""
        return all(c.is_listed or k.plural in self.missing for k, c in self.caches.items())

    async def relist(self, kube: Kube) -> None:
        """List every resource anew. Raises: what was answered, once all are asked."""
        trouble: MidwatchError | None = None
        for kind, cache in self.caches.items():
            try:
                await self._relist(kube, kind, cache)
                self.missing.pop(kind.plural, None)
            except MidwatchError as error:
                if error.code == "kube-missing":
                    self.missing[kind.plural] = error.message
                trouble = error
        if trouble is not None:
            raise trouble

    async def _relist(
        self, kube: Kube, kind: Kind, cache: Cache[Object] | Cache[PodSeen] | Cache[NodeSight]
    ) -> None:
        labels = names.RAY_CLUSTER_LABEL if kind is PODS else ""
        places = self.scope.places if kind.is_namespaced else (None,)
        cache.begin_listing()
        listed = await asyncio.gather(*(kube.list(kind, place, labels) for place in places))
        cache.end_listing(body for each in listed for body in each)

    def pods_of(self, namespace: str, cluster: str) -> tuple[Pod, ...]:
        """Return the pods of a Ray cluster, by name."""
        found = [s.pod for s in self.pods if (s.namespace, s.cluster) == (namespace, cluster)]
        return tuple(sorted(found, key=lambda pod: pod.name))

    def interventions_of(self, namespace: str, run: str) -> tuple[Object, ...]:
        """Return the Interventions for runs of this name."""
        return tuple(
            body
            for (place, _), body in self.interventions.items()
            if place == namespace and body["spec"]["runRef"]["name"] == run
        )

    def approvals_in(self, namespace: str) -> tuple[Object, ...]:
        """Return the approvals in a namespace."""
        return tuple(body for (place, _), body in self.approvals.items() if place == namespace)

    def _cluster_changed(self, key: Key, _: Object) -> None:
        self._wake_cluster(*key)

    def _pod_changed(self, key: Key, seen: PodSeen) -> None:
        self._wake_cluster(key[0], seen.cluster)

    def _intervention_changed(self, key: Key, body: Object) -> None:
        self._wake((key[0], str(body["spec"]["runRef"]["name"])))

    def _node_changed(self, key: Key, _: NodeSight) -> None:
        concerned = {(s.namespace, s.cluster) for s in self.pods if s.pod.node == key[1]}
        for namespace, cluster in sorted(concerned):
            self._wake_cluster(namespace, cluster)

    def _wake_cluster(self, namespace: str, cluster: str) -> None:
        if self.runs.get(namespace, cluster) is not None:
            self._wake((namespace, cluster))
            return
        # A cluster that is not a run's own may be anybody's.
        self._wake_place(namespace)

    def _wake_place(self, namespace: str) -> None:
        for key, _ in self.runs.items():
            if key[0] == namespace:
                self._wake(key)


def _as_is(body: Object) -> Object:
    return body


def _read_pod(body: Object) -> PodSeen:
    meta = body["metadata"]
    cluster = (meta.get("labels") or {}).get(names.RAY_CLUSTER_LABEL, "")
    return PodSeen(read_pod(body), meta.get("namespace", ""), cluster)
