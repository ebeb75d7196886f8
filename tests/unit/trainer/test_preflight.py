"""Every fault that a preflight exists for, put into one of four real ranks, and found there."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from midwatch.checkpoints.manifest import FileEntry
from midwatch.checkpoints.objects import prepare_store
from midwatch.health.nodes.grouping import plan_groups
from midwatch.health.nodes.preflight_judge import PreflightVerdict, judge_preflight
from midwatch.logbook.preflight import CheckResult, PreflightDone, PreflightLimits, PreflightOrder
from midwatch.logbook.tiers import Storage
from midwatch.logbook.wire import Mesh, WorkerStart
from midwatch.trainer.preflight_checks import LocalChecks
from midwatch.trainer.preflight_groups import GroupChecks
from midwatch.trainer.preflight_rank import PreflightRank
from msgspec.structs import replace
from torch import Tensor
from torch.distributed.distributed_c10d import _get_default_store

from tests.support.ranks import run_ranks

NUM_NODES = 4
NODES = tuple(f"node-{index}" for index in range(NUM_NODES))
BAD = 2
CPU = torch.device("cpu")
DELAY_S = 0.2
SKEW_S = 100.0
LIMITS = PreflightLimits(
    burn_in_s=0.0,
    matmul_size=64,
    device_matmul_size=64,
    memory_bytes=1 << 20,
    device_memory_bytes=1 << 20,
    walking_stride_bits=16,
    disk_bytes=1 << 16,
    message_bytes=1 << 14,
    repeats=2,
    disk_bytes_per_s_min=0.0,
    disk_free_bytes_min=0,
)


def order_for(folder: Path, num_units: int = NUM_NODES, ranks_per_unit: int = 1) -> PreflightOrder:
    return PreflightOrder(
        limits=LIMITS,
        ranks_per_unit=ranks_per_unit,
        rounds=plan_groups(num_units, ranks_per_unit),
        clock_ranks=tuple(range(ranks_per_unit, num_units * ranks_per_unit, ranks_per_unit)),
        scratch_dir=str(folder / "scratch"),
        store_dir=str(folder / "store"),
        storage=Storage(url=str(folder / "durable"), local_root=""),
    )


def flipped(x: Tensor) -> Tensor:
    """Return x with the lowest bit of one element turned over."""
    x = x.clone()
    x.view(torch.int32 if x.element_size() == 4 else torch.int64).flatten()[7] ^= 1
    return x


class CorruptProducts(LocalChecks):
    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        a = a.clone()
        # The lowest bit of an operand is lost in rounding now and then; a sign never is.
        a.view(torch.int32)[3, 5] ^= -(2**31)
        a[3, 5] += a[3, 5] == 0
        return super().multiply(a, b)


class FitfulProducts(LocalChecks):
    made = 0

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        self.made += 1
        product = super().multiply(a, b)
        return flipped(product) if self.made == 2 else product


class LeakyMemory(LocalChecks):
    def settle(self, words: Tensor) -> None:
        words[4711] ^= 1 << 40


class FullDisk(LocalChecks):
    def write(self, path: Path, data: memoryview) -> FileEntry:
        # The kernel's own answer: no space left on device.
        path.symlink_to("/dev/full")
        return super().write(path, data)


class RottingDisk(LocalChecks):
    def write(self, path: Path, data: memoryview) -> FileEntry:
        entry = super().write(path, data)
        with path.open("r+b") as file:
            file.seek(1000)
            file.write(bytes([data[1000] ^ 1]))
        return entry


class LimitedDisk(LocalChecks):
    def write(self, path: Path, data: memoryview) -> FileEntry:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            return super().write(path, data)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class CutOff(LocalChecks):
    def reach(self, storage: Storage, run: str) -> list[CheckResult]:
        return super().reach(replace(storage, url="somewhere/else"), run)


class Unanswered(LocalChecks):
    def reach(self, storage: Storage, run: str) -> list[CheckResult]:
        return super().reach(replace(storage, url=f"{storage.url}-not-mounted"), run)


class TickingGroups(GroupChecks):
    """A stopwatch that counts its readings: on a busy machine real times mean little."""

    ticks = 0.0

    def elapsed_s(self) -> float:
        self.ticks += 1.0
        return self.ticks


class CorruptSender(TickingGroups):
    def outgoing(self, contribution: Tensor) -> Tensor:
        contribution[11] += 1
        return contribution


class SlowSender(TickingGroups):
    def before_sending(self) -> None:
        self.ticks += 100.0


class SleepySender(GroupChecks):
    def before_sending(self) -> None:
        time.sleep(DELAY_S)


class DeafRank(TickingGroups):
    def before_sending(self) -> None:
        raise RuntimeError("the network card is gone")


class SkewedClock(PreflightRank):
    def now_s(self) -> float:
        return time.time() + SKEW_S


def start_of(rank: int, num_ranks: int, ranks_per_node: int) -> WorkerStart:
    return WorkerStart(
        run="preflight",
        run_dir="",
        attempt=1,
        rank=rank,
        local_rank=rank % ranks_per_node,
        world_size=num_ranks,
        node=f"node-{rank // ranks_per_node}",
        mesh=Mesh(num_ranks, 1),
        rendezvous_host="127.0.0.1",
        rendezvous_port=0,
        trainer={},
    )


def _be_rank(rank: int, num_ranks: int, order: PreflightOrder, sick: dict[int, str]) -> Any:
    fault: Any = globals()[sick[rank]] if rank in sick else None
    start = start_of(rank, num_ranks, num_ranks // NUM_NODES)
    store = _get_default_store()
    kind = fault if fault is not None and issubclass(fault, PreflightRank) else PreflightRank
    mine = kind(start, order, store, CPU)
    if fault is not None and issubclass(fault, LocalChecks):
        mine.local = fault(rank, start.node, CPU, order.limits)
    groups = fault if fault is not None and issubclass(fault, GroupChecks) else TickingGroups
    mine.groups = groups(rank, num_ranks, CPU, order, dist.PrefixStore("preflight", store))
    return mine.run()


def examined(
    folder: Path, sick: dict[int, str], ranks_per_node: int = 1, *, has_store: bool = True
) -> PreflightVerdict:
    """Return the verdict on four nodes, some ranks of which have a fault by name."""
    num_ranks = NUM_NODES * ranks_per_node
    order = order_for(folder, NUM_NODES, ranks_per_node)
    if has_store:
        prepare_store(str(folder / "durable"))
    reports: list[PreflightDone] = run_ranks(_be_rank, num_ranks, num_ranks, order, sick)
    nodes = [node for node in NODES for _ in range(ranks_per_node)]
    return judge_preflight(order, nodes, dict(enumerate(reports)), {})


def failed(verdict: PreflightVerdict) -> dict[str, list[str]]:
    """Return the failed checks with the nodes on which they failed."""
    found: dict[str, list[str]] = {}
    for result in verdict.results:
        if not result.ok:
            found.setdefault(result.name, []).append(result.node)
            assert result.remedy, result
            assert result.message, result
    return found


def test_healthy_ranks_pass_every_check_and_leave_nothing_behind(tmp_path: Path) -> None:
    verdict = examined(tmp_path, {}, ranks_per_node=2)
    assert verdict.is_ok, failed(verdict)
    assert (verdict.bad_nodes, verdict.suspect_nodes) == ((), ())
    counts: dict[str, int] = {}
    for result in verdict.results:
        counts[result.name] = counts.get(result.name, 0) + 1
    per_rank = ("matmul-repeat", "matmul-exact", "matmul-agreement", "memory")
    per_node = ("disk-free", "disk-write", "store-write", "store-reach", "clock-skew")
    per_node += ("collectives-alone",)
    per_node += ("collectives", "all-gather-bandwidth", "all-reduce-bandwidth")
    per_node += ("all-gather-bandwidth-alone", "all-reduce-bandwidth-alone")
    assert counts == dict.fromkeys(per_rank, 8) | dict.fromkeys(per_node, 4)
    assert list((tmp_path / "scratch").iterdir()) == list((tmp_path / "store").iterdir()) == []
    assert [p for p in (tmp_path / "durable").rglob("*") if p.is_file()] == [
        tmp_path / "durable" / ".midwatch-store"
    ]


@pytest.mark.parametrize(
    ("fault", "checks"),
    [
        ("CorruptProducts", ["matmul-exact", "matmul-agreement"]),
        ("FitfulProducts", ["matmul-repeat"]),
        ("LeakyMemory", ["memory"]),
        ("FullDisk", ["disk-write", "store-write"]),
        ("RottingDisk", ["disk-write", "store-write"]),
        ("LimitedDisk", ["disk-write", "store-write"]),
        ("CutOff", ["store-reach"]),
        ("CorruptSender", ["collectives"]),
        ("DeafRank", ["collectives"]),
        ("SlowSender", ["all-gather-bandwidth", "all-reduce-bandwidth"]),
        ("SkewedClock", ["clock-skew"]),
    ],
)
def test_a_fault_is_found_and_laid_at_the_door_of_its_node_alone(
    tmp_path: Path, fault: str, checks: Sequence[str]
) -> None:
    verdict = examined(tmp_path, {BAD: fault})
    assert failed(verdict) == {check: [NODES[BAD]] for check in checks}
    assert verdict.bad_nodes == (NODES[BAD],)
    assert verdict.suspect_nodes == ()


def test_a_collective_is_as_slow_as_its_slowest_rank_by_the_real_clock(tmp_path: Path) -> None:
    real = dict.fromkeys(range(NUM_NODES), "GroupChecks")
    verdict = examined(tmp_path, real | {BAD: "SleepySender"})
    found = {r.name: r for r in verdict.results if r.node == NODES[BAD] and "bandwidth" in r.name}
    assert set(found) == {"all-gather-bandwidth", "all-reduce-bandwidth"}
    for result in found.values():
        # Of a pair's two messages each rank receives one.
        assert 0.0 < result.value <= LIMITS.message_bytes / DELAY_S, result


def test_two_corrupt_senders_among_four_are_both_singled_out(tmp_path: Path) -> None:
    verdict = examined(tmp_path, {1: "CorruptSender", 3: "CorruptSender"})
    assert failed(verdict) == {"collectives": ["node-1", "node-3"]}
    assert verdict.bad_nodes == ("node-1", "node-3")


def test_rank_0_is_blamed_for_its_own_clock(tmp_path: Path) -> None:
    """All others differ from it, and agree among themselves."""
    verdict = examined(tmp_path, {0: "SkewedClock"})
    assert failed(verdict) == {"clock-skew": ["node-0"]}
    skew = next(r for r in verdict.results if r.name == "clock-skew" and not r.ok)
    assert skew.value == pytest.approx(SKEW_S, abs=5.0)
    assert "ahead of" in skew.message


def test_a_node_that_fails_among_its_own_ranks_is_bad(tmp_path: Path) -> None:
    verdict = examined(tmp_path, {5: "CorruptSender"}, ranks_per_node=2)
    assert failed(verdict) == {"collectives-alone": ["node-2"], "collectives": ["node-2"]}
    assert verdict.bad_nodes == ("node-2",)
    alone = next(r for r in verdict.results if r.name == "collectives-alone" and not r.ok)
    assert "altered data of rank 5" in alone.message


def test_a_store_that_is_full_for_everybody_is_no_fault_of_the_nodes(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where the folder should be")
    verdict = examined(tmp_path, {})
    assert failed(verdict) == {"store-write": list(NODES)}
    assert verdict.bad_nodes == ()
    assert verdict.suspect_nodes == NODES


def test_a_durable_store_that_nobody_reaches_is_no_fault_of_the_nodes(tmp_path: Path) -> None:
    verdict = examined(tmp_path, {}, has_store=False)
    assert failed(verdict) == {"store-away": list(NODES)}
    assert (verdict.bad_nodes, verdict.suspect_nodes) == ((), NODES)


def test_a_node_that_the_store_does_not_answer_for_once_is_not_to_blame(tmp_path: Path) -> None:
    verdict = examined(tmp_path, {BAD: "Unanswered"})
    assert failed(verdict) == {"store-away": [NODES[BAD]]}
    assert (verdict.bad_nodes, verdict.suspect_nodes) == ((), (NODES[BAD],))


def test_a_scratch_folder_that_cannot_be_one_is_no_fault_of_any_node(tmp_path: Path) -> None:
    (tmp_path / "scratch").write_text("a file where the folder should be")
    verdict = examined(tmp_path, {})
    assert failed(verdict) == {"scratch-path": list(NODES)}
    assert (verdict.bad_nodes, verdict.suspect_nodes) == ((), ())


class OneBit(LocalChecks):
    """Turns one bit of one element of one product."""

    def __init__(self, product: int, element: int, bit: int) -> None:
        super().__init__(0, "node-0", CPU, LIMITS)
        self._left = product
        self._element = element
        self._bit = bit

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        product = super().multiply(a, b)
        self._left -= 1
        if not self._left:
            mask = -(2**31) if self._bit == 31 else 1 << self._bit
            product.view(torch.int32).flatten()[self._element] ^= mask
        return product


@pytest.mark.parametrize(
    ("product", "check", "bits"), [(2, "matmul-repeat", 32), (5, "matmul-exact", 31)]
)
def test_a_single_turned_bit_is_found_whichever_it_is(product: int, check: str, bits: int) -> None:
    """The sign of a zero is the one bit that an exact sum cannot see."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(3)
    for bit in range(bits):
        element = int(torch.randint(64 * 64, (), generator=generator))
        results = OneBit(product, element, bit).matmul()
        assert [r.name for r in results if not r.ok] == [check], bit
