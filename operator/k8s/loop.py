"""One loop a run: woken by changes and by time, it looks, decides, acts. Nothing else acts.

A run whose server is slow holds up no other; a run that fails is looked at again, later each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence

import msgspec

from ...health.nodes.evidence import DEFAULT_RULES, EvidenceRule
from ...logbook.errors import MidwatchError
from .apply import Applier
from .cache import Key
from .look import Lookout
from .observed import Failure
from .reconcile import reconcile
from .world import World

_log = logging.getLogger(__name__)


class LoopTimes(msgspec.Struct, frozen=True):
    """resync_s: longest wait between two looks. calm_s: shortest. back_off_max_s: after failures.

    relist_s: how often everything is listed anew.
    """

    resync_s: float = 10.0
    calm_s: float = 0.5
    back_off_max_s: float = 60.0
    relist_s: float = 60.0


LOOP_TIMES = LoopTimes()


class Runs:
    """The loops of all TrainingRuns. turned_s: when any of them, or the relisting, turned last."""

    def __init__(
        self,
        world: World,
        lookout: Lookout,
        applier: Applier,
        rules: Sequence[EvidenceRule] = DEFAULT_RULES,
        times: LoopTimes = LOOP_TIMES,
    ) -> None:
        self._world, self._lookout, self._applier = world, lookout, applier
        self._rules, self._times = rules, times
        self._woken: dict[Key, asyncio.Event] = {}
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._failed: dict[Key, tuple[Failure, ...]] = {}
        self._uids: dict[Key, str] = {}
        self._fatal: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._is_closed = False
        self.turned_s = time.monotonic()
        self.num_looks = 0
        self.num_failures = 0

    def wake(self, key: Key) -> None:
        """Look at a run soon; one that is new gets a loop."""
        event = self._woken.setdefault(key, asyncio.Event())
        event.set()
        is_new = key not in self._tasks and not self._is_closed
        if is_new and self._world.runs.get(*key) is not None:
            self._tasks[key] = asyncio.create_task(self._turn(key), name=f"run {'/'.join(key)}")

    async def until_fatal(self) -> None:
        """Raise what must end the operator, once there is such a thing."""
        await asyncio.shield(self._fatal)

    async def close(self) -> None:
        """End every loop where it stands."""
        self._is_closed = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._fatal.cancel()

    async def _turn(self, key: Key) -> None:
        failures = 0
        try:
            while True:
                self._woken[key].clear()
                again_s = await self._look_and_act(key)
                if again_s is None:
                    return
                failures = failures + 1 if again_s < 0 else 0
                delay_s = again_s
                if failures:
                    delay_s = min(2.0**failures, self._times.back_off_max_s)
                await self._rest(key, delay_s, is_failing=failures > 0)
        finally:
            self._tasks.pop(key, None)
            self._woken.pop(key, None)
            self._failed.pop(key, None)
            # It may have come back while its loop was about to end.
            if self._world.runs.get(*key) is not None and not self._fatal.done():
                self.wake(key)

    async def _rest(self, key: Key, delay_s: float, *, is_failing: bool) -> None:
        """Wait until something changes or the time is over, and never less than calm_s."""
        self.turned_s = time.monotonic()
        await asyncio.sleep(self._times.calm_s if delay_s > 0 or is_failing else 0)
        with contextlib.suppress(TimeoutError):
            # Not wait_for: it may lose a cancellation that comes as what it waits for does.
            async with asyncio.timeout(max(delay_s - self._times.calm_s, 0.0)):
                await self._woken[key].wait()

    async def _look_and_act(self, key: Key) -> float | None:
        """Return after how long to look again; less than zero after a failure, None at the end."""
        run = self._world.runs.get(*key)
        self._note_uid(key, str(run["metadata"]["uid"]) if run is not None else "")
        if run is None:
            return None
        if not self._world.is_known:
            return self._times.calm_s
        self.num_looks += 1
        try:
            observed = await self._lookout.look(run)
            observed = msgspec.structs.replace(observed, failures=self._failed.get(key, ()))
            actions = reconcile(observed, self._rules)
            outcome = await self._applier.carry_out(actions, observed)
        except MidwatchError as error:
            if error.code == "lease-lost":
                self._end(error)
                return None
            self.num_failures += 1
            _log.warning("%s/%s: %s", *key, error)
            return -1.0
        except Exception as error:
            # A mistake of ours about one run must not end the watch over all others.
            self.num_failures += 1
            _log.exception("%s/%s: %r", *key, error)
            return -1.0
        self._failed[key] = _in_a_row(observed.failures, outcome.failed)
        if outcome.run is not None:
            # What was written is known at once: the watch may tell of it late.
            is_gone = not outcome.run["metadata"].get("finalizers") and observed.deleting_s
            self._world.runs.see("DELETED" if is_gone else "MODIFIED", outcome.run)
        if outcome.cluster is not None:
            self._world.clusters.see("MODIFIED", outcome.cluster)
        if outcome.failed:
            self.num_failures += 1
        again_s = self._times.resync_s
        return again_s if outcome.again_s is None else min(outcome.again_s, again_s)

    def _note_uid(self, key: Key, uid: str) -> None:
        """Forget what was remembered of a run that is gone, or has a successor of its name."""
        before = self._uids.pop(key, "")
        if before and before != uid:
            self._applier.forget(before)
            self._lookout.forget(before)
            self._failed.pop(key, None)
        if uid:
            self._uids[key] = uid

    def _end(self, error: MidwatchError) -> None:
        if not self._fatal.done():
            self._fatal.set_exception(error)


def _in_a_row(before: Sequence[Failure], now: Sequence[Failure]) -> tuple[Failure, ...]:
    """Return the failures of a look, each with how often it has come in a row."""
    times = {(each.what, each.code): each.times for each in before}
    return tuple(
        msgspec.structs.replace(each, times=times.get((each.what, each.code), 0) + 1)
        for each in now
    )
