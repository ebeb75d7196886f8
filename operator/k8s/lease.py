"""Leadership by a Lease: one operator acts, and one that cannot renew in time ends at once.

Time is measured by this process alone, from when a holder's record was last seen to change, since
clocks of machines differ. The holder stops acting RENEW_S before others may take over.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
from collections.abc import Callable

import msgspec

from ...logbook.errors import Fatal, MidwatchError
from .client import LEASES, Kube
from .observed import Object

_log = logging.getLogger(__name__)


class LeaseTimes(msgspec.Struct, frozen=True):
    """duration_s: after it, unrenewed, others take over. renew_s: the holder gives up before."""

    duration_s: float = 15.0
    renew_s: float = 10.0
    retry_s: float = 2.0


LEASE_TIMES = LeaseTimes()


class LeaseHeld:
    """The Lease of one operator. is_held tells without asking anybody.

    leader: who was last seen to hold it, "" for nobody else. trouble: why it can be neither read
    nor taken, "" where that is known.
    """

    def __init__(
        self,
        kube: Kube,
        place: tuple[str, str],
        holder: str,
        times: LeaseTimes = LEASE_TIMES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kube, self._holder, self._times, self._clock = kube, holder, times, clock
        self._namespace, self._name = place
        self._held_until_s = -1.0
        self._seen: tuple[str, float] | None = None
        self.transitions = 0
        self.leader = ""
        self.trouble = "the Lease has not been read yet"

    @property
    def is_held(self) -> bool:
        return self._clock() < self._held_until_s

    def guard(self) -> None:
        """Raise Fatal[lease-lost] unless the Lease is held for sure."""
        if not self.is_held:
            raise Fatal("lease-lost", f"{self._holder} does not hold {self._name} any more.")

    async def acquire(self) -> None:
        """Return once the Lease is held."""
        while not await self._try():
            await asyncio.sleep(self._times.retry_s)
        _log.info("%s leads (transition %d)", self._holder, self.transitions)

    async def keep(self) -> None:
        """Renew the Lease for as long as that works; return when it is lost."""
        while self.is_held:
            await asyncio.sleep(self._times.retry_s)
            await self._try()
        _log.error("%s has lost the Lease %s", self._holder, self._name)

    async def release(self) -> None:
        """Leave the Lease to the next one at once, where it is still ours."""
        if not self.is_held:
            return
        self._held_until_s = -1.0
        try:
            lease = await self._kube.get(LEASES, self._namespace, self._name)
            if (
                lease is not None
                and (lease.get("spec") or {}).get("holderIdentity") == self._holder
            ):
                lease["spec"] = {**lease["spec"], "holderIdentity": ""}
                await self._kube.replace(LEASES, lease)
        except MidwatchError as error:
            _log.warning("the Lease could not be given back: %s", error)

    async def _try(self) -> bool:
        asked_s = self._clock()
        try:
            lease = await self._kube.get(LEASES, self._namespace, self._name)
            if lease is None:
                await self._kube.create(LEASES, self._fresh())
                self.transitions = 0
            elif self._is_free(lease):
                await self._kube.replace(LEASES, self._taken(lease))
            else:
                self.leader, self.trouble = str(lease["spec"]["holderIdentity"]), ""
                return False
        except MidwatchError as error:
            # After a conflict another one was quicker: who, is seen at the next reading.
            if error.code != "kube-conflict":
                self.leader, self.trouble = "", f"the Lease {self._name}: {error.message}"
            _log.warning("the Lease could not be renewed: %s", error)
            return False
        self.leader, self.trouble = "", ""
        # From when it was asked: the server may have written it any time since.
        self._held_until_s = asked_s + self._times.renew_s
        return True

    def _is_free(self, lease: Object) -> bool:
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        if holder in ("", self._holder):
            return True
        record = f"{holder} {spec.get('renewTime')} {spec.get('leaseTransitions')}"
        now_s = self._clock()
        if self._seen is None or self._seen[0] != record:
            self._seen = (record, now_s)
        duration_s = float(spec.get("leaseDurationSeconds") or self._times.duration_s)
        return now_s > self._seen[1] + duration_s

    def _fresh(self) -> Object:
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": {**self._held(), "leaseTransitions": 0},
        }

    def _taken(self, lease: Object) -> Object:
        spec = lease.get("spec") or {}
        transitions = int(spec.get("leaseTransitions") or 0)
        if spec.get("holderIdentity") != self._holder:
            transitions += 1
        self.transitions = transitions
        return {**lease, "spec": {**spec, **self._held(), "leaseTransitions": transitions}}

    def _held(self) -> Object:
        now = datetime.datetime.now(tz=datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            "holderIdentity": self._holder,
            "leaseDurationSeconds": max(1, round(self._times.duration_s)),
            "renewTime": now,
            "acquireTime": now,
        }
