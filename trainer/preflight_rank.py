"""One rank of a preflight, from its order to its report."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import msgspec
import torch
from torch._C._distributed_c10d import PrefixStore, Store

from ..logbook.decoding import prepared
from ..logbook.errors import ConfigError
from ..logbook.preflight import ORDER_VARIABLE, CheckResult, PreflightDone, PreflightOrder
from ..logbook.wire import WorkerStart
from .preflight_checks import LocalChecks
from .preflight_groups import LOCAL_PATIENCE, GroupChecks, measure_clock
from .rendezvous import prefer_loopback


class PreflightRank:
    """What a rank does in a preflight; a test replaces its parts to put a fault into them."""

    def __init__(
        self, start: WorkerStart, order: PreflightOrder, store: Store, device: torch.device
    ) -> None:
        self._start = start
        self._order = order
        self._store = PrefixStore("preflight", store)
        self._device = device
        self.local = LocalChecks(start.rank, start.node, device, order.limits)
        self.groups = GroupChecks(start.rank, start.world_size, device, order, self._store)

    def now_s(self) -> float:
        """Return this node's clock, in seconds since the epoch."""
        return time.time()

    def run(self) -> PreflightDone:
        """Make every check of the order and return what was found."""
        started_s = time.perf_counter()
        prefer_loopback(self._start.rendezvous_host)
        results = self._local_results()
        # Nobody's clock or network is to seem late because of its disk.
        self.groups.meet("local", LOCAL_PATIENCE)
        offset_s, error_s = self._clock()
        groups = self.groups.run()
        return PreflightDone(
            rank=self._start.rank,
            node=self._start.node,
            kind=kind_of(self._device),
            checksum=self.local.checksum,
            results=tuple(results),
            groups=groups,
            clock_offset_s=offset_s,
            clock_error_s=error_s,
            wall_s=time.perf_counter() - started_s,
        )

    def _local_results(self) -> list[CheckResult]:
        results = self.local.matmul() + self.local.memory()
        if self._start.local_rank == 0:
            order = self._order
            results += self.local.disk(order.scratch_dir) if order.scratch_dir else []
            results += self.local.store(order.store_dir) if order.store_dir else []
            results += self.local.reach(order.storage, self._start.run) if order.storage else []
        return results

    def _clock(self) -> tuple[float | None, float]:
        rank, askers = self._start.rank, self._order.clock_ranks
        if not askers or (rank and rank not in askers):
            return None, 0.0
        timeout_s = self._order.limits.group_timeout_s
        return measure_clock(self._store, rank, askers, timeout_s, self.now_s)


def kind_of(device: torch.device) -> str:
    """Return what decides the bits of a product on device: ranks of one kind must agree."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    capability = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    return f"{_cpu_model()}, {capability}, {threads} threads, torch {torch.__version__}"


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text("ascii", "replace")
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2] for line in text.splitlines() if line.startswith("model name"))
    return next(names, platform.machine()).strip()


def order_from_environment() -> PreflightOrder | None:
    """Return the order that the environment carries, None where there is none.

    Raises: ConfigError[preflight-order-invalid].
    """
    text = os.environ.get(ORDER_VARIABLE)
    if not text:
        return None
    try:
        return msgspec.json.decode(text, type=prepared(PreflightOrder))
    except (msgspec.MsgspecError, ValueError) as error:
        raise ConfigError(
            "preflight-order-invalid",
            f"{ORDER_VARIABLE} holds no preflight order: {error}",
            remedy="Start preflights with midwatch doctor.",
        ) from error
