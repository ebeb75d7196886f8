"""When a training run has stopped moving, and which rank stopped it.

A hung run looks healthy from outside: every process is alive, most of them waiting inside a
collective for the one that will never come. Two pure pieces answer it from the notes that workers
leave in their progress pages. ProgressDeadline says when the slowest rank has gone too long without
completing a step, judged against the median of recent steps. blame() names the rank that everybody
else is waiting for, or admits that the facts do not single one out.
"""

from __future__ import annotations

import re
import statistics
from collections import deque
from collections.abc import Sequence

import msgspec

from ...logbook.wire import CollectiveMark, Phase

STOPPED_STATES = "Tt"
GONE_STATES = "ZX"


class RankProgress(msgspec.Struct, frozen=True):
    """Where one rank stands, as its node sees it.

    step:  steps completed. age_s: seconds since the rank's last note.
    state: process state letter of /proc/PID/stat; "?" when it was not read.
    waits: whether its stack is inside a collective; None when no stack was taken.
    marks: where it stands in its collectives, group by group; () when it did not say.
    rounds: of a validation after that step that it has completed.
    """

    rank: int
    step: int
    phase: Phase
    age_s: float
    state: str = "?"
    waits: bool | None = None
    marks: tuple[CollectiveMark, ...] = ()
    rounds: int = 0

    @property
    def place(self) -> tuple[int, int, Phase]:
        """How far it is; the rank with the least is behind."""
        return self.step, self.rounds, self.phase


class HangLimits(msgspec.Struct, frozen=True):
    """How long a step may take before the run counts as hung.

    The deadline is the median of the last `window` step times, times `multiple`, kept within
    [min_s, max_s]. Single steps of several times the median are normal (a slow read, a collected
    garbage heap, a neighbour's traffic), so multiple stays well above the 3.4 seen in healthy runs.
    saving_s: how long saving may hold up one step before it counts as silence.
    """

    multiple: float = 6.0
    min_s: float = 5.0
    max_s: float = 900.0
    saving_s: float = 1800.0
    window: int = 64


class Overdue(msgspec.Struct, frozen=True):
    """The ranks of this node have got nowhere for waited_s; deadline_s was the limit."""

    step: int
    waited_s: float
    deadline_s: float
    median_step_s: float


# A longer gap between two looks means that the observer itself was stopped or starved, and what
# it did not see is no evidence against the workers.
_OWN_GAP_S = 2.0


class ProgressDeadline:
    """Watch the slowest of some ranks; say once per silence that its deadline has passed.

    A round of a validation is progress like a step, and must end within the same deadline, but it
    says nothing of how long steps take.

    Nothing is armed before the first completed step of the attempt, because start-up (rendezvous,
    loading, compiling) has no honest median yet; a start-up limit belongs to whoever started it.
    Memory is constant. One object serves one attempt.
    """

    def __init__(self, limits: HangLimits) -> None:
        self._limits = limits
        self._steps_s: deque[float] = deque(maxlen=limits.window)
        self._median_s = 0.0
        self._reached: tuple[int, int] | None = None
        self._advanced_s = 0.0
        self._looked_s = 0.0
        self._excused_s = 0.0
        self._saving_s = 0.0
        self._told = False

    @property
    def is_armed(self) -> bool:
        """Whether a step of this attempt has been completed."""
        return bool(self._steps_s)

    @property
    def median_step_s(self) -> float:
        """Median of the recent step times; 0.0 before the first."""
        return self._median_s

    @property
    def deadline_s(self) -> float:
        """Seconds that the step in progress may take."""
        limits = self._limits
        return min(max(limits.multiple * self._median_s, limits.min_s), limits.max_s)

    def observe(self, rows: Sequence[RankProgress], now_s: float) -> Overdue | None:
        """Look at the ranks at monotonic time now_s; meant to be called several times a second.

        Returns: Overdue at the first look past the deadline; None otherwise, also on later looks
            at the same silence. A completed step arms it again.
        """
        active = [row for row in rows if row.phase != Phase.DONE]
        if not active or any(row.phase < Phase.TRAINING for row in active):
            self._reached = None
            return None
        reached = min((row.step, row.rounds) for row in active)
        if reached != self._reached:
            self._advance(reached, now_s)
            return None
        self._excuse(active, now_s)
        waited_s = now_s - self._advanced_s - self._excused_s
        if self._told or not self.is_armed or waited_s <= self.deadline_s:
            return None
        self._told = True
        return Overdue(reached[0], waited_s, self.deadline_s, self._median_s)

    def _advance(self, reached: tuple[int, int], now_s: float) -> None:
        steps = reached[0] - self._reached[0] if self._reached is not None else 0
        if steps > 0:
            self._excuse((), now_s)
            spent_s = max(now_s - self._advanced_s - self._excused_s, 0.0)
            if spent_s > 0.0:
                self._steps_s.append(spent_s / steps)
                self._median_s = statistics.median(self._steps_s)
        self._reached = reached
        self._advanced_s = self._looked_s = now_s
        self._excused_s = self._saving_s = 0.0
        self._told = False

    def _excuse(self, active: Sequence[RankProgress], now_s: float) -> None:
        """Leave out of the wait what saving took (bounded), and what nobody was awake to see."""
        gap_s = now_s - self._looked_s
        self._looked_s = now_s
        if gap_s > _OWN_GAP_S:
            self._excused_s += gap_s
            return
        is_saving = any(row.phase == Phase.SAVING for row in active)
        is_stopped = any(row.state in STOPPED_STATES for row in active)
        if is_saving and not is_stopped:
            credit_s = min(gap_s, max(self._limits.saving_s - self._saving_s, 0.0))
            self._saving_s += credit_s
            self._excused_s += credit_s


def blame(rows: Sequence[RankProgress]) -> tuple[int | None, str]:
    """Name the rank that the others wait for, with the evidence.

    Strongest evidence first: a process that is stopped or gone; the lowest place, and among
    those the one that has not called a collective in which others wait; among equals, the only
    ones whose stacks are not inside a collective while all others' are; then the longest silence,
    since the rank that stopped first left its last note first.
    Returns: (rank, reason), or (None, reason) when nothing tells the ranks apart. The order of
        rows does not matter.
    """
    if not rows:
        return None, "no rank was observed"
    ordered = sorted(rows, key=lambda row: row.rank)
    for letters, word in ((STOPPED_STATES, "stopped"), (GONE_STATES, "gone")):
        found = [row for row in ordered if row.state in letters]
        if found:
            first = _oldest(found)
            return first.rank, f"rank {first.rank} is {word} (state {first.state}) {_where(first)}"
    return _blame_laggard(ordered)


def _blame_laggard(ordered: list[RankProgress]) -> tuple[int | None, str]:
    lowest = min(row.place for row in ordered)
    behind = [row for row in ordered if row.place == lowest]
    missing = _missing(behind, ordered)
    if missing is not None:
        return missing
    if len(behind) < len(ordered):
        first = _oldest(behind)
        ahead = max(ordered, key=lambda row: row.place)
        return first.rank, f"rank {first.rank} is behind {_where(first)}; rank {ahead.rank} is " + (
            f"{_where(ahead)}" + (f"; {len(behind)} ranks are behind" if len(behind) > 1 else "")
        )
    working = [row for row in ordered if row.waits is False]
    waiting = [row for row in ordered if row.waits]
    if working and waiting and len(working) < len(waiting):
        first = _oldest(working)
        reason = f"rank {first.rank} is outside any collective {_where(first)}, "
        return first.rank, reason + f"while {len(waiting)} ranks wait in one"
    first = _oldest(ordered)
    others_s = [row.age_s for row in ordered if row.rank != first.rank]
    lead_s = first.age_s - max(others_s, default=0.0)
    if lead_s < _CLEAR_LEAD_S:
        return None, f"all {len(ordered)} ranks stand {_where(first)}; none stands out"
    return first.rank, f"rank {first.rank} fell silent {lead_s:.1f} s before any other rank"


def _missing(behind: list[RankProgress], ordered: list[RankProgress]) -> tuple[int, str] | None:
    """Name the rank that has not called a collective in which others wait, and waits in none.

    A rank that waits in one group's collective is late for another group's through no fault of
    its own: the chain ends at the one that waits for nobody.
    """
    newest: dict[str, CollectiveMark] = {}
    over: dict[str, int] = {}
    for mark in (mark for row in ordered for mark in row.marks):
        over[mark.group] = max(over.get(mark.group, 0), mark.completed)
        known = newest.get(mark.group)
        # One that was asked in the very moment of its call may not know the name yet.
        if known is None or (mark.enqueued, bool(mark.op)) > (known.enqueued, bool(known.op)):
            newest[mark.group] = mark
    found = [
        (row, mark)
        for row in behind
        if not _waits(row, over)
        for mark in row.marks
        if _is_awaited(mark, newest)
    ]
    if not found or not all(row.marks for row in behind):
        return None
    row = _oldest([row for row, _ in found])
    wanted = next(newest[mark.group] for other, mark in found if other.rank == row.rank)
    num_waiting = sum(
        mark.group == wanted.group and mark.completed < mark.enqueued == wanted.enqueued
        for other in ordered
        for mark in other.marks
    )
    return row.rank, (
        f"rank {row.rank} has not called {wanted.op or 'collective'} {wanted.enqueued} of group "
        f"{wanted.group}, in which {num_waiting} ranks wait; it stands {_where(row)}"
    )


def _is_awaited(mark: CollectiveMark, newest: dict[str, CollectiveMark]) -> bool:
    wanted = newest[mark.group]
    return wanted.completed < wanted.enqueued and mark.enqueued < wanted.enqueued


def _waits(row: RankProgress, over: dict[str, int]) -> bool:
    """Whether a rank waits in a collective. One that has ended for another rank holds nobody: the
    recorder learns of an end late, and of ends that come together out of their order."""
    return any(max(own.completed, over[own.group]) < own.enqueued for own in row.marks)


# Notes of ranks in step with each other lie this close together, whatever node they are on.
_CLEAR_LEAD_S = 0.1


def _oldest(rows: list[RankProgress]) -> RankProgress:
    return max(rows, key=lambda row: row.age_s)


def _where(row: RankProgress) -> str:
    rounds = f" after {row.rounds} rounds" if row.phase is Phase.VALIDATING else ""
    return f"at step {row.step} in {row.phase.name}{rounds}, silent for {row.age_s:.1f} s"


_FRAME = re.compile(r'^\s+File "(?P<file>[^"]+)", line \d+ in \S+', re.MULTILINE)
# Only where a rank waits for others: tensor dispatch and sharding hooks are on every stack.
_COLLECTIVE_FILE = re.compile(
    r"torch/distributed/(?:distributed_c10d|_functional_collectives|nn/functional)\.py$"
    r"|torch/distributed/fsdp/_fully_shard/_fsdp_collectives\.py$"
)
_TOP_FRAMES = 6


def is_waiting_stack(stack: str) -> bool | None:
    """Whether a faulthandler dump shows a thread inside a torch.distributed collective.

    Returns: None when the text holds no stack at all (a stopped process leaves none).
    """
    threads = re.split(r"^(?:Current t|T)hread 0x", stack, flags=re.MULTILINE)[1:]
    files = [_FRAME.findall(thread)[:_TOP_FRAMES] for thread in threads]
    if not any(files):
        return None
    return any(_COLLECTIVE_FILE.search(name) for names in files for name in names)
