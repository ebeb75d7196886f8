"""Carrying actions out: what came of each look is that look's alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import kmock
import msgspec
import pytest
from midwatch.operator.k8s import actions as act
from midwatch.operator.k8s.access import Access
from midwatch.operator.k8s.apply import Applier
from midwatch.operator.k8s.client import Kube
from midwatch.operator.k8s.look import Lookout
from midwatch.operator.k8s.observed import Observed
from midwatch.operator.k8s.tell import Teller
from midwatch.operator.k8s.world import Scope, World
from midwatch.tests.support.kube import ApiServer, Object
from midwatch.tests.support.kube_run import make_run
from midwatch.tests.support.kube_sights import look

pytestmark = pytest.mark.asyncio


@contextlib.asynccontextmanager
async def applier() -> AsyncIterator[tuple[ApiServer, Applier]]:
    """An applier on an API server of its own."""
    server = ApiServer()
    server.serve()
    async with server, kmock.Server(server):
        kube = Kube(Access(str(server.url).rstrip("/")))
        lookout = Lookout(kube, World(Scope(), lambda _: None))
        try:
            yield server, Applier(kube, lookout, Teller(kube, "pod-0"))
        finally:
            await lookout.close()
            await kube.close()


async def a_look_at(server: ApiServer, name: str) -> Observed:
    made = await server.put("midwatch.dev/v1alpha1/trainingruns", make_run(name))
    return msgspec.structs.replace(look(), run=made)


def cluster_of(name: str) -> Object:
    meta = {"name": name, "namespace": "ml"}
    return {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": meta, "spec": {}}


async def test_runs_whose_turns_overlap_never_get_each_others_outcome() -> None:
    async with applier() as (server, one):
        looks = {name: await a_look_at(server, name) for name in ("day", "night")}
        server.delay_s = 0.02
        outcomes = await asyncio.gather(
            *(
                one.carry_out(
                    [act.SetFinalizer(present=True), act.ApplyObject(cluster_of(name))], seen
                )
                for name, seen in looks.items()
            )
        )
        for name, outcome in zip(looks, outcomes, strict=True):
            assert outcome.run is not None
            assert outcome.cluster is not None
            assert outcome.run["metadata"]["name"] == name
            assert outcome.cluster["metadata"]["name"] == name
            assert (outcome.again_s, outcome.failed) == (0.0, ())
