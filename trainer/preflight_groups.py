"""What ranks can only find out together: whether data passes between them whole, and how fast.

Every group has process groups and a deadline of its own, so one that hangs costs its members a
timeout and nobody else anything. There is no group of all ranks: building one would need every
connection of the job to work, which is what is in question. Between rounds all ranks meet at the
rendezvous store, so that nobody is late for a sound partner because of a bad one before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store

from ..logbook.preflight import GroupResult, PreflightOrder

# Contributions are whole numbers small enough for float32 to sum exactly over thousands of ranks.
_PERIOD = 1021
# A group ends at its first timeout, in connecting or in a collective after it.
_PATIENCE = 3
# One rank's memory or disk may be much slower than another's, and is no less worth waiting for.
LOCAL_PATIENCE = 10
_CLOCK_ROUNDS = 5


class GroupChecks:
    """The collectives of one rank with all groups that the order puts it in."""

    def __init__(
        self, rank: int, world_size: int, device: torch.device, order: PreflightOrder, store: Store
    ) -> None:
        self._rank = rank
        self._world_size = world_size
        self._device = device
        self._order = order
        self._limits = order.limits
        self._store = store
        self._expected = world_size
        self._timeout = timedelta(seconds=order.limits.group_timeout_s)

    # --- seams -----------------------------------------------------------------------------------

    def outgoing(self, contribution: Tensor) -> Tensor:
        """Return what this rank puts into a collective."""
        return contribution

    def before_sending(self) -> None:
        """Called before each collective, within the time that is measured."""

    def elapsed_s(self) -> float:
        """Return the clock by which collectives are measured, from any origin."""
        return time.perf_counter()

    # --- rounds ----------------------------------------------------------------------------------

    def run(self) -> tuple[GroupResult, ...]:
        """Go through all rounds; a group that fails is a result, never an exception."""
        made_default = not dist.is_initialized()
        if made_default:
            # new_group needs a default group; this one connects nobody.
            dist.init_process_group(
                "fake", store=self._store, rank=self._rank, world_size=self._world_size
            )
        try:
            return tuple(self._rounds())
        finally:
            if made_default:
                dist.destroy_process_group()

    def _rounds(self) -> list[GroupResult]:
        """Go on until the store is gone (with rank 0): failures after that say nothing."""
        results: list[GroupResult] = []
        unit = self._rank // self._order.ranks_per_unit
        for number, groups in enumerate(self._order.rounds):
            if not self.meet(f"round-{number}"):
                return results
            units = next((group for group in groups if unit in group), None)
            if units is not None:
                result = self._try(number, units)
                if result.error and self._count("meet/alive") is None:
                    return results
                results.append(result)
        self.meet("end")
        return results

    def meet(self, name: str, patience: int = _PATIENCE) -> bool:
        """Wait for all ranks, but no longer than patience group timeouts: some may be dead.

        Those that did not come are not waited for again. Returns: whether the store is there.
        """
        key = f"meet/{name}"
        try:
            if self._store.add(key, 1) >= self._expected:
                self._store.set(f"{key}/open", "1")
            self._store.wait([f"{key}/open"], patience * self._timeout)
            return True
        except RuntimeError:
            came = self._count(key)
            print(f"preflight: {came} ranks came to {name}", flush=True)
            self._expected = came or 1
            return came is not None

    def _count(self, key: str) -> int | None:
        """Return how many have come to key, None when the store does not answer."""
        try:
            return self._store.add(key, 0)
        except RuntimeError:
            return None

    def _try(self, number: int, units: tuple[int, ...]) -> GroupResult:
        ranks = self._order.ranks_of(units)
        group: dist.ProcessGroup | None = None
        try:
            group = dist.new_group(
                ranks,
                timeout=self._timeout,
                backend="nccl" if self._device.type == "cuda" else "gloo",
                use_local_synchronization=True,
            )
            return self._exchange(number, units, ranks, group)
        except RuntimeError as error:
            text = str(error).strip().splitlines()
            said = f"{type(error).__name__}: {text[0][:300] if text else ''}"
            return GroupResult(round=number, units=units, error=said)
        finally:
            if group is not None:
                _leave(group)

    def _exchange(
        self, number: int, units: tuple[int, ...], ranks: list[int], group: dist.ProcessGroup
    ) -> GroupResult:
        size = max(self._limits.message_bytes // 4, 1)
        places = {rank: place for place, rank in enumerate(ranks)}
        own = contribution_of(self._rank, size, self._device)
        gathered = torch.empty(size * len(ranks), device=self._device)
        expected = [contribution_of(rank, size, self._device) for rank in ranks]
        expected_sum = torch.stack(expected).sum(0)
        wrong: set[int] = set()
        is_sum_right = True
        gather_s: list[float] = []
        reduce_s: list[float] = []
        for _ in range(self._limits.repeats + 1):
            sent = self.outgoing(own.clone())
            gather_s.append(self._gather(gathered, sent, group))
            parts = gathered.split(size)
            wrong |= {r for r, place in places.items() if not parts[place].equal(expected[place])}
            total = self.outgoing(own.clone())
            reduce_s.append(self._reduce(total, group))
            is_sum_right &= total.equal(expected_sum)
        # The first of each connects and warms up. An all-reduce moves every byte twice.
        total_bytes = own.numel() * own.element_size() * len(ranks)
        moved_bytes = total_bytes * (len(ranks) - 1) / len(ranks)
        return GroupResult(
            round=number,
            units=units,
            wrong_from=tuple(sorted(wrong)),
            is_sum_right=is_sum_right,
            all_gather_bytes_per_s=moved_bytes / min(gather_s[1:]),
            all_reduce_bytes_per_s=2 * moved_bytes / len(ranks) / min(reduce_s[1:]),
        )

    def _gather(self, gathered: Tensor, sent: Tensor, group: dist.ProcessGroup) -> float:
        return self._timed(
            lambda: dist.all_gather_single(gathered, sent, group=group, async_op=True)
        )

    def _reduce(self, total: Tensor, group: dist.ProcessGroup) -> float:
        return self._timed(lambda: dist.all_reduce(total, group=group, async_op=True))

    def _timed(self, begin: Callable[[], dist.Work | None]) -> float:
        self._finish()
        started_s = self.elapsed_s()
        self.before_sending()
        work = begin()
        assert work is not None
        work.wait(self._timeout)
        self._finish()
        return self.elapsed_s() - started_s

    def _finish(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def contribution_of(rank: int, size: int, device: torch.device) -> Tensor:
    """Return what rank puts into every collective: whole numbers in float32, another row a rank."""
    return ((torch.arange(size, device=device) + 17 * rank) % _PERIOD).to(torch.float32)


def _leave(group: dist.ProcessGroup) -> None:
    try:
        dist.destroy_process_group(group)
    except RuntimeError as error:
        # A group whose collective timed out may not come apart in order; its results are in.
        print(f"preflight: a group did not close: {error}", flush=True)


# --- clocks --------------------------------------------------------------------------------------


def measure_clock(
    store: Store,
    rank: int,
    askers: tuple[int, ...],
    timeout_s: float,
    now_s: Callable[[], float] = time.time,
) -> tuple[float | None, float]:
    """Return (rank 0's clock minus this rank's, its uncertainty in seconds).

    Rank 0 answers the askers one after the other; all of them and rank 0 must call this. The
    answer was read between question and receipt, so half the round trip is how wrong it can be,
    and of several exchanges the quickest counts.
    Returns: (0.0, 0.0) on rank 0; (None, 0.0) on an asker that got no answer.
    Source:  RFC 5905 section 8, for a server that answers at once.
    """
    timeout = timedelta(seconds=timeout_s)
    if rank == 0:
        for asker in askers:
            _answer(store, asker, timeout, now_s)
        return 0.0, 0.0
    best: tuple[float | None, float] = (None, 0.0)
    # All askers before this one may be dead and cost rank 0 a timeout each.
    patience = timeout * (1 + askers.index(rank))
    for turn in range(_CLOCK_ROUNDS):
        key = f"clock/{rank}/{turn}"
        # The first answer only says that it is this rank's turn: waiting for that is no trip.
        started_s, asked_s = time.perf_counter(), now_s()
        try:
            store.set(f"{key}/ask", "1")
            store.wait([f"{key}/answer"], patience if turn == 0 else timeout)
            answered_s = float(store.get(f"{key}/answer"))
        except RuntimeError:
            return best
        error_s = (time.perf_counter() - started_s) / 2
        if turn and (best[0] is None or error_s < best[1]):
            best = (answered_s - asked_s - error_s, error_s)
    return best


def _answer(store: Store, asker: int, timeout: timedelta, now_s: Callable[[], float]) -> None:
    for turn in range(_CLOCK_ROUNDS):
        key = f"clock/{asker}/{turn}"
        try:
            store.wait([f"{key}/ask"], timeout)
        except RuntimeError:
            return
        store.set(f"{key}/answer", repr(now_s()))
