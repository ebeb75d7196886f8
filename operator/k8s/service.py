"""The operator as a process: it waits for its turn and its definitions, then watches and acts.

It keeps nothing that it could not lose. So what it cannot mend from within, such as a Lease that is
gone or a kind that appears or vanishes, ends it, and the kubelet starts it anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator

import msgspec

from ...health.nodes.evidence import DEFAULT_RULES, EvidenceRule
from ...logbook.errors import Fatal, MidwatchError
from . import names
from .access import Access
from .apply import STATUS_EVERY_S, Applier
from .client import APPROVALS, CLUSTERS, INTERVENTIONS, RUNS, Kind, Kube
from .interventions import plan_orphans
from .lease import LeaseHeld, LeaseTimes
from .look import Lookout, Places
from .loop import LoopTimes, Runs
from .observed import Object, Observed
from .probes import Health, serve_probes
from .tell import Teller
from .watch import watch
from .world import Scope, World

_log = logging.getLogger(__name__)
OWN_KINDS = (RUNS, INTERVENTIONS, APPROVALS)
STUCK_S = 120.0
"""Loops that have not turned for so long are stuck."""


class Setting(msgspec.Struct, frozen=True):
    """How an operator is set up. identity: (namespace, pod name) of its own."""

    identity: tuple[str, str]
    user: str = ""
    scope: Scope = Scope()
    lease: tuple[str, str] = ("default", names.LEASE)
    probe_port: int = 8081
    rules: tuple[EvidenceRule, ...] = DEFAULT_RULES
    places: Places = Places()
    loop_times: LoopTimes = LoopTimes()
    lease_times: LeaseTimes = LeaseTimes()
    status_every_s: float = STATUS_EVERY_S
    missing_s: float = 30.0
    """How long between two alarms about a kind that the cluster does not serve."""


class Operator:
    """One operator process."""

    def __init__(self, access: Access, setting: Setting, holder: str) -> None:
        self._access, self._setting = access, setting
        self._plain = Kube(access)
        self._lease = LeaseHeld(self._plain, setting.lease, holder, setting.lease_times)
        self._kube = Kube(access, self._lease.guard)
        self._teller = Teller(self._kube, setting.identity[1])
        self._runs: Runs | None = None
        self._world: World | None = None
        self._trouble = "starting"
        self._is_standby = False
        self._beat_s = time.monotonic()
        self.probe_port = 0

    async def run(self) -> None:
        """Work until there is a reason to end. Raises: that reason."""
        server = await serve_probes(self._setting.probe_port, self.health)
        # Any free port is another one for each family of addresses.
        found = sorted(server.sockets, key=lambda each: each.family != socket.AF_INET)
        self.probe_port = found[0].getsockname()[1]
        heart = asyncio.create_task(self._beat())
        try:
            self._is_standby = True
            await self._lease.acquire()
            self._is_standby = False
            await self._lead()
        finally:
            heart.cancel()
            server.close()
            await self._lease.release()
            await self._kube.close()
            await self._plain.close()

    def health(self) -> Health:
        """Return how the operator is, for the probes."""
        now_s = time.monotonic()
        runs, world = self._runs, self._world
        turned_s = max(self._beat_s, runs.turned_s if runs is not None else 0.0)
        trouble = self._lease.trouble if self._is_standby else self._trouble
        rows: list[tuple[str, str, float]] = [
            ("midwatch_operator_is_leader", "gauge", float(self._lease.is_held)),
            ("midwatch_operator_lease_transitions", "gauge", float(self._lease.transitions)),
            ("midwatch_operator_is_ready", "gauge", float(not trouble)),
        ]
        if runs is not None and world is not None:
            rows += [
                ("midwatch_operator_looks_total", "counter", float(runs.num_looks)),
                ("midwatch_operator_failures_total", "counter", float(runs.num_failures)),
                ("midwatch_operator_training_runs", "gauge", float(len(world.runs.items()))),
            ]
        note = f"standby: {self._lease.leader} leads" if self._is_standby else "ok"
        return Health(now_s < turned_s + STUCK_S, trouble, note, tuple(rows))

    async def _beat(self) -> None:
        # Waiting for the Lease or for definitions is life, too.
        while True:
            if self._runs is None:
                self._beat_s = time.monotonic()
            await asyncio.sleep(1.0)

    async def _lead(self) -> None:
        keeping = asyncio.create_task(self._lease.keep(), name="lease")
        working = asyncio.create_task(self._work(), name="work")
        try:
            await asyncio.wait({keeping, working}, return_when=asyncio.FIRST_COMPLETED)
            is_lost = keeping.done() and not working.done()
        finally:
            keeping.cancel()
            working.cancel()
            await asyncio.gather(keeping, working, return_exceptions=True)
        if is_lost:
            raise Fatal("lease-lost", f"the Lease {self._setting.lease[1]} is lost.")
        working.result()

    async def _work(self) -> None:
        await self._await_definitions()
        served = await self._served()
        async with self._machinery() as (world, runs, applier):
            tasks = [
                asyncio.create_task(watch(world, self._access), name="watch"),
                asyncio.create_task(self._relist(world, served, applier), name="relist"),
                asyncio.create_task(runs.until_fatal(), name="runs"),
            ]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                raise Fatal("watch-ended", "the watch over the cluster has ended by itself.")
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _machinery(self) -> AsyncIterator[tuple[World, Runs, Applier]]:
        setting = self._setting
        world = World(setting.scope, lambda key: runs.wake(key))
        lookout = Lookout(self._kube, world, setting.places, setting.user)
        applier = Applier(self._kube, lookout, self._teller, setting.status_every_s)
        runs = Runs(world, lookout, applier, setting.rules, setting.loop_times)
        self._world, self._runs = world, runs
        try:
            yield world, runs, applier
        finally:
            await runs.close()
            await lookout.close()

    async def _await_definitions(self) -> None:
        """Wait until the cluster serves our kinds; say loudly and again that it does not."""
        while True:
            try:
                missing = [k.plural for k in OWN_KINDS if not await self._kube.serves(k)]
            except MidwatchError as error:
                self._trouble = error.message
                _log.warning("what the cluster serves is not known: %s", error)
                await asyncio.sleep(min(self._setting.missing_s, 5.0))
                continue
            if not missing:
                return
            self._trouble = (
                f"[crd-missing] the cluster does not serve {', '.join(missing)} of "
                f"{names.API_VERSION}: nothing is watched. Apply manifests/crds."
            )
            _log.error(self._trouble)
            await asyncio.sleep(self._setting.missing_s)

    async def _served(self) -> frozenset[Kind]:
        return frozenset([k for k in (*OWN_KINDS, CLUSTERS) if await self._kube.serves(k)])

    async def _relist(self, world: World, served: frozenset[Kind], applier: Applier) -> None:
        """List everything anew from time to time, and end when what is served has changed.

        kopf watches what was served when it began.
        """
        while True:
            try:
                now_served = await self._served()
                if now_served != served:
                    changed = sorted(k.plural for k in now_served ^ served)
                    raise Fatal(
                        "served-kinds-changed",
                        f"{', '.join(changed)} appeared or vanished: to be watched anew.",
                    )
                await world.relist(self._kube)
                self._trouble = ""
                await self._tend_orphans(world, applier)
            except MidwatchError as error:
                if error.code in ("served-kinds-changed", "lease-lost"):
                    raise
                only_kuberay = set(world.missing) <= {CLUSTERS.plural}
                self._trouble = "" if only_kuberay and world.runs.is_listed else error.message
                _log.warning("not everything can be seen: %s", error)
            for key, _ in world.runs.items():
                self._wake(key)
            delay_s = self._setting.loop_times.relist_s
            await asyncio.sleep(delay_s if not self._trouble else min(delay_s, 5.0))

    async def _tend_orphans(self, world: World, applier: Applier) -> None:
        """See to Interventions that no run's loop looks after."""
        now_s = time.time()
        runs = {key for key, _ in world.runs.items()}
        for place in sorted({key[0] for key, _ in world.interventions.items()}):
            bodies = [body for key, body in world.interventions.items() if key[0] == place]
            there = {name for namespace, name in runs if namespace == place}
            actions = plan_orphans(bodies, there, now_s)
            nobody: Object = {"metadata": {"name": "", "namespace": place, "uid": ""}}
            await applier.carry_out(actions, Observed(now_s=now_s, run=nobody))

    def _wake(self, key: tuple[str, str]) -> None:
        if self._runs is not None:
            self._runs.wake(key)
