"""What a preflight is told to check, and what every rank of it reports.

A preflight tries out machines before they are trusted with training, or when one is suspected. It
runs in worker processes like an attempt does: whoever starts it plans the groups, hands a
PreflightOrder to the workers through their environment, and judges their PreflightDone messages.
These types stand in logbook/ because the trainer, the judge in health/ and the operator speak them.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from .tiers import Storage

ORDER_VARIABLE = "MIDWATCH_PREFLIGHT"
"""Environment variable that carries a PreflightOrder as JSON."""
SCRATCH_CHECK = "scratch-path"
"""Name of the result that stands for the disk's where the scratch folder cannot be one at all."""
REACH_CHECK = "store-reach"
"""Name of the result that says whether a node can use the durable store."""
AWAY_CHECK = "store-away"
"""Name of the result that stands for it where the store did not answer, which may pass."""


class Thoroughness(StrEnum):
    """How much a preflight does: seconds (QUICK) or minutes (FULL) a node."""

    QUICK = "quick"
    FULL = "full"


class PreflightLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How long, how large, and what counts as bad. Sizes are per rank.

    matmul_size: side of the square matrices on a CPU; a GPU gets device_matmul_size.
    memory_bytes: of host memory tried out where there is no GPU, else device_memory_bytes of the
        GPU's; never more than half of what is free.
    walking_stride_bits: a single one walks over a word in such strides; 1 visits every bit.
    disk_bytes: written, synced and read back once a node and once to the checkpoint store.
    message_bytes: contributed by each rank to a collective; repeats: timed ones of each kind.
    bandwidth_frac_min: against the faster groups of the same size in the same preflight.
    group_timeout_s: for connecting a group, and for each of its collectives.
    """

    burn_in_s: float
    matmul_size: int
    device_matmul_size: int
    memory_bytes: int
    device_memory_bytes: int
    walking_stride_bits: int
    disk_bytes: int
    message_bytes: int
    repeats: int
    disk_bytes_per_s_min: float = 1e6
    disk_free_bytes_min: int = 256 << 20
    clock_skew_s_max: float = 0.5
    bandwidth_frac_min: float = 0.3
    group_timeout_s: float = 10.0


LIMITS = {
    Thoroughness.QUICK: PreflightLimits(
        burn_in_s=1.0,
        matmul_size=512,
        device_matmul_size=4096,
        memory_bytes=32 << 20,
        device_memory_bytes=2 << 30,
        walking_stride_bits=8,
        disk_bytes=8 << 20,
        message_bytes=1 << 20,
        repeats=8,
    ),
    Thoroughness.FULL: PreflightLimits(
        burn_in_s=60.0,
        matmul_size=1024,
        device_matmul_size=8192,
        memory_bytes=512 << 20,
        device_memory_bytes=32 << 30,
        walking_stride_bits=1,
        disk_bytes=512 << 20,
        message_bytes=64 << 20,
        repeats=8,
        disk_bytes_per_s_min=1e7,
        disk_free_bytes_min=1 << 30,
        group_timeout_s=30.0,
    ),
}


class PreflightOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What the workers of one preflight do.

    ranks_per_unit: a unit is what can be blamed, a node or a single rank; unit u holds the ranks
        from u * ranks_per_unit on.
    rounds: one after the other; each holds groups of units that work at the same time, and no unit
        is in two groups of a round.
    clock_ranks: whose clocks are compared with rank 0's: the first rank of every other node.
    scratch_dir: a folder on each node's own disk; store_dir: where checkpoints are written. ""
        leaves the check out. Both are created when missing.
    storage: the durable store to try; its local_root is not used.
    """

    limits: PreflightLimits
    ranks_per_unit: int
    rounds: tuple[tuple[tuple[int, ...], ...], ...] = ()
    clock_ranks: tuple[int, ...] = ()
    scratch_dir: str = ""
    store_dir: str = ""
    storage: Storage | None = None

    def ranks_of(self, units: tuple[int, ...]) -> list[int]:
        """Return the ranks of some units, in the order of units."""
        size = self.ranks_per_unit
        return [rank for unit in units for rank in range(unit * size, (unit + 1) * size)]


class CheckResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one check found.

    rank:     None when it is about the whole node.
    quantity: what value and limit measure, its unit last, e.g. "skew_s".
    message:  what was observed; remedy: what to do about it, "" when nothing is wrong.
    """

    name: str
    node: str
    rank: int | None
    ok: bool
    quantity: str
    value: float
    limit: float
    message: str = ""
    remedy: str = ""


class GroupResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one rank saw of the collectives of one group.

    wrong_from: ranks whose contribution to an all-gather arrived altered.
    is_sum_right: every all-reduce gave the exact sum.
    *_bytes_per_s: bus bandwidth, the best of the timed repeats; 0.0 when none was completed.
    error: why the collectives ended early, "" when they did not.
    """

    round: int
    units: tuple[int, ...]
    wrong_from: tuple[int, ...] = ()
    is_sum_right: bool = True
    all_gather_bytes_per_s: float = 0.0
    all_reduce_bytes_per_s: float = 0.0
    error: str = ""

    @property
    def is_correct(self) -> bool:
        """Whether every collective came to its end with the right result."""
        return not self.error and not self.wrong_from and self.is_sum_right


class PreflightDone(msgspec.Struct, frozen=True, kw_only=True, tag="preflight"):
    """Everything one rank found; judged together with those of all other ranks.

    kind:     hardware and software that decide the bits of a product; ranks of one kind must agree.
    checksum: of the float product, alike on all ranks of a kind.
    results:  of the checks that a rank can judge alone.
    clock_offset_s: rank 0's clock minus this node's, uncertain by clock_error_s; None when another
        rank of the node measured it, or when rank 0 did not answer.
    """

    rank: int
    node: str
    kind: str
    checksum: str
    results: tuple[CheckResult, ...]
    groups: tuple[GroupResult, ...] = ()
    clock_offset_s: float | None = None
    clock_error_s: float = 0.0
    wall_s: float = 0.0


class SilentRank(msgspec.Struct, frozen=True, omit_defaults=True):
    """A rank of a preflight that ended without a report. is_own: by no fault of another rank."""

    rank: int
    message: str
    is_own: bool = True
