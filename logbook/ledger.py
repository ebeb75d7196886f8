"""The ledger: every second of every GPU between submission and end, under exactly one cause.

    productive   a step that stands in the final lineage
    recompute    a step that a restart went back past, so that it had to be trained again
    detect       from the last completed step to the first sign of trouble
    diagnose     from the first sign to the decision that answers it
    provision    waiting for nodes, and from a start to workers that are ready to load
    load         loading the state
    checkpoint   the loop stood still for a save, or for a copy to the nodes' memory
    validation   training stood still for a measurement on held-out text
    idle         paused, stopped or ending; and every GPU that the attempt has no rank on (spares)
    unheard      nobody knows yet: since the run was heard of last, and a few steps beyond

The record is cut at events into stretches that follow one another without a gap, so the causes sum
to wall time times GPUs by construction. The GPUs of a run are those its spec asks for, spares
included. Times are those of the journal. Steps come in batches, so a step ends where its worker
says it did, unless the worker's clock and the journal's are further apart than a batch explains.
A save tells for how long it held the loop up. A copy to memory does not: what it took is the time
from the end of its step to the beginning of the next, as far as the worker's clock is believed.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Any

import msgspec

from . import decisions as d
from . import events as ev
from .fold import evolve
from .hearing import holds_until_s
from .record import Record
from .state import RunState
from .wire import StepSample

NO_STEP = -1
LATE_S_MAX = 10.0
"""Told later than this, a step may have been dated by a clock that is wrong."""


class Cause(StrEnum):
    """What a GPU's time went to."""

    PRODUCTIVE = "productive"
    RECOMPUTE = "recompute"
    DETECT = "detect"
    DIAGNOSE = "diagnose"
    PROVISION = "provision"
    LOAD = "load"
    CHECKPOINT = "checkpoint"
    VALIDATION = "validation"
    IDLE = "idle"
    UNHEARD = "unheard"


CAUSES = tuple(Cause)
_CODE = {cause: code for code, cause in enumerate(CAUSES)}
_PRODUCTIVE, _RECOMPUTE = _CODE[Cause.PRODUCTIVE], _CODE[Cause.RECOMPUTE]
_TURNS = (d.StartAttempt, d.AwaitNodes, d.PauseRun, d.ResumeRun, d.EndRun)


class Stretch(msgspec.Struct, frozen=True):
    """A stretch of the run's time with one cause.

    attempt: the newest at the time. ranks of gpus are what the cause is about; the rest is idle.
    """

    start_s: float
    end_s: float
    cause: Cause
    attempt: int
    ranks: int
    gpus: int

    @property
    def span_s(self) -> float:
        return self.end_s - self.start_s


class Ledger:
    """Grows record by record: give take() every record with the states before and after it."""

    def __init__(self) -> None:
        self._begin_s: float | None = None
        self._until_s = 0.0
        self._ends_s, self._codes = array("d"), array("b")
        self._steps, self._attempts = array("q"), array("q")
        self._ranks, self._gpus = array("q"), array("q")
        self._gaps_s, self._copied = array("d"), array("b")
        self._memory_step: int | None = None
        self._blocked_s: dict[tuple[int, int], float] = {}
        self._last = RunState()

    def take(self, before: RunState, after: RunState, record: Record[Any]) -> None:
        """Account for the time that a record shows to be over."""
        event, time_s = record.event, record.time_s
        self._last = after
        if isinstance(event, ev.StepDone):
            if after.steps_total != before.steps_total:
                self._stepped(before, event.sample, time_s)
        elif isinstance(event, ev.ValidationUnderWay):
            # The first of them comes before any round, and ends what the step left to do.
            if after.validating is event and event.done:
                self._cut(before, time_s, Cause.VALIDATION)
        elif isinstance(event, ev.ValidationDone):
            if after.validations is not before.validations:
                self._cut(before, _told(event.ended_s, time_s), Cause.VALIDATION)
        elif isinstance(event, ev.RunSubmitted):
            if self._begin_s is None:
                self._begin_s = self._until_s = after.submitted_s
            self._cut_waiting(before, time_s)
        elif isinstance(event, ev.DecisionMade):
            is_new = after.num_decisions > before.num_decisions
            if is_new and isinstance(event.decision.action, _TURNS):
                is_end = isinstance(event.decision.action, d.EndRun)
                self._cut_waiting(before, time_s, is_end=is_end)
        elif isinstance(event, ev.AttemptResumed):
            if after.lineage != before.lineage:
                self._resumed(before, event, time_s)
        elif isinstance(event, ev.StepsRecalled):
            known = before.last.step if before.last is not None else 0
            if after.steps_total != before.steps_total:
                self._recalled([s for s in event.samples if known < s.step <= after.step])
        elif isinstance(event, ev.CheckpointCommitted) and event.blocked_s > 0.0:
            self._blocked_s.setdefault((event.attempt, event.step), event.blocked_s)

    # --- reading it ------------------------------------------------------------------------------

    def stretches(self, now_s: float, alive_s: float = 0.0) -> Iterator[Stretch]:
        """Yield every stretch from submission to the end (now_s while the run goes on), in order.

        Neighbours that differ in nothing but their times come as one. alive_s: the last pulse of
        the controller, as in hearing.py.
        """
        held: Stretch | None = None
        for stretch in self._pieces(now_s, alive_s):
            if held is not None and _is_alike(held, stretch):
                held = msgspec.structs.replace(held, end_s=stretch.end_s)
                continue
            if held is not None:
                yield held
            held = stretch
        if held is not None:
            yield held

    def _pieces(self, now_s: float, alive_s: float) -> Iterator[Stretch]:
        if self._begin_s is None:
            return
        start_s, blocked_s = self._begin_s, 0.0
        for index, end_s in enumerate(self._ends_s):
            attempt, cause = self._attempts[index], CAUSES[self._codes[index]]
            about = attempt, self._ranks[index], self._gpus[index]
            saved_s = min(start_s + blocked_s, end_s)
            if saved_s > start_s:
                yield Stretch(start_s, saved_s, Cause.CHECKPOINT, *about)
            if end_s > saved_s:
                yield Stretch(saved_s, end_s, cause, *about)
            start_s, step = end_s, self._steps[index]
            blocked_s = self._blocked_s.get((attempt, step), 0.0) if step != NO_STEP else 0.0
            if self._copied[index] and index + 1 < len(self._gaps_s):
                blocked_s = max(blocked_s, self._gaps_s[index + 1])
        last = self._last
        end_s = max(start_s, last.ended_s if last.ended_s is not None else now_s)
        about = last.num_attempts, *_size(last)
        heard_s = max(start_s, holds_until_s(last, end_s, alive_s))
        tail = [*_waiting(last, start_s, heard_s, Cause.PRODUCTIVE), (end_s, Cause.UNHEARD)]
        for until_s, cause in tail:
            if until_s > start_s:
                yield Stretch(start_s, until_s, cause, *about)
                start_s = until_s

    def totals(self, now_s: float, alive_s: float = 0.0) -> dict[Cause, float]:
        """Return GPU-seconds by cause; they sum to wall time times GPUs. As stretches."""
        found = dict.fromkeys(CAUSES, 0.0)
        for stretch in self.stretches(now_s, alive_s):
            found[stretch.cause] += stretch.span_s * stretch.ranks
            found[Cause.IDLE] += stretch.span_s * (stretch.gpus - stretch.ranks)
        return found

    # --- writing it ------------------------------------------------------------------------------

    def _stepped(self, state: RunState, sample: StepSample, time_s: float) -> None:
        if sample.memory_step is not None and sample.memory_step != self._memory_step:
            self._memory_step = sample.memory_step
            self._was_copied(sample.memory_step)
        end_s = _told(sample.time_s, time_s)
        gap_s = end_s - sample.step_s - self._until_s if end_s == sample.time_s else 0.0
        self._cut(state, end_s, Cause.PRODUCTIVE, sample.step)
        if self._gaps_s and gap_s > 0.0:
            self._gaps_s[-1] = gap_s

    def _was_copied(self, memory_step: int) -> None:
        """Note after which step the loop stood still for a copy; news of it comes soon after."""
        for index in range(len(self._steps) - 1, -1, -1):
            step = self._steps[index]
            if step == memory_step:
                self._copied[index] = 1
            if NO_STEP != step <= memory_step:
                break

    def _cut(self, state: RunState, end_s: float, cause: Cause, step: int = NO_STEP) -> None:
        if self._begin_s is None:
            return
        # The clock of another controller may be behind: no stretch ever has a negative length.
        self._until_s = max(self._until_s, end_s)
        ranks, gpus = _size(state)
        self._ends_s.append(self._until_s)
        self._codes.append(_CODE[cause])
        self._steps.append(step)
        self._attempts.append(state.num_attempts)
        self._ranks.append(ranks)
        self._gpus.append(gpus)
        self._gaps_s.append(0.0)
        self._copied.append(0)

    def _cut_waiting(self, state: RunState, time_s: float, is_end: bool = False) -> None:
        calm = Cause.IDLE if is_end else Cause.DIAGNOSE
        for end_s, cause in _waiting(state, self._until_s, time_s, calm):
            self._cut(state, end_s, cause)

    def _resumed(self, before: RunState, event: ev.AttemptResumed, time_s: float) -> None:
        self._cut(before, max(time_s - max(event.load_s, 0.0), self._until_s), Cause.PROVISION)
        self._cut(before, time_s, Cause.LOAD)
        for index in range(len(self._steps) - 1, -1, -1):
            step = self._steps[index]
            if self._codes[index] == _PRODUCTIVE and step != NO_STEP and step <= event.step:
                break
            if self._codes[index] == _PRODUCTIVE and step > event.step:
                self._codes[index] = _RECOMPUTE

    def _recalled(self, samples: list[StepSample]) -> None:
        """Steps made in what looked like the time before a sign of trouble."""
        detect = _CODE[Cause.DETECT]
        index = len(self._codes) - 1
        while index >= 0 and self._codes[index] != detect:
            if self._codes[index] in (_PRODUCTIVE, _RECOMPUTE):
                return
            index -= 1
        if index < 0 or not samples:
            return
        start_s = self._ends_s[index - 1] if index else self._begin_s or 0.0
        made_s = sum(max(sample.step_s, 0.0) for sample in samples)
        end_s = min(start_s + made_s, self._ends_s[index]) if made_s == made_s else start_s
        columns: list[tuple[array[Any], float]] = [
            (self._ends_s, end_s),
            (self._codes, _PRODUCTIVE),
            (self._steps, samples[-1].step),
            (self._attempts, self._attempts[index]),
            (self._ranks, self._ranks[index]),
            (self._gpus, self._gpus[index]),
            (self._gaps_s, 0.0),
            (self._copied, 0),
        ]
        for column, value in columns:
            column.insert(index, value)


def build_ledger(records: Iterable[Record[Any]]) -> Ledger:
    """Return the ledger of a whole journal."""
    ledger, state = Ledger(), RunState()
    for record in records:
        after = evolve(state, record.event, seq=record.seq, time_s=record.time_s)
        ledger.take(state, after, record)
        state = after
    return ledger


def _told(worker_s: float, journal_s: float) -> float:
    """Return when something was over: as its worker says, unless its clock must be wrong."""
    return worker_s if 0.0 <= journal_s - worker_s <= LATE_S_MAX else journal_s


def _is_alike(one: Stretch, other: Stretch) -> bool:
    return (one.cause, one.attempt, one.ranks, one.gpus) == (
        other.cause,
        other.attempt,
        other.ranks,
        other.gpus,
    )


def _waiting(
    state: RunState, start_s: float, end_s: float, calm: Cause
) -> Iterator[tuple[float, Cause]]:
    """Yield (end, cause) of what the time since start_s went to, while no step was completed.

    calm: the cause where an attempt trains and shows no sign of trouble.
    """
    attempt = state.attempt
    if state.end is not None or state.paused:
        yield end_s, Cause.IDLE
    elif attempt is None:
        yield end_s, Cause.PROVISION
    elif attempt.signal_s is None:
        yield end_s, calm if attempt.resumed_s is not None else Cause.PROVISION
    else:
        sign_s = min(max(attempt.signal_s, start_s), end_s)
        yield sign_s, Cause.DETECT if attempt.resumed_s is not None else Cause.PROVISION
        yield end_s, Cause.DIAGNOSE


def _size(state: RunState) -> tuple[int, int]:
    """Return (ranks, GPUs) of the run as it stands: of the attempt, else as the spec asks for."""
    mesh, nodes = _section(state.spec, "mesh"), _section(state.spec, "nodes")
    asked = _whole(mesh, "dp_shard") * (_whole(mesh, "tp") or 1)
    spares = _whole(nodes, "spares") * _whole(nodes, "ranks_per_node")
    ranks = state.attempt.plan.mesh.world_size if state.attempt is not None else asked
    return ranks, max(asked + spares, ranks)


def _section(spec: dict[str, Any], name: str) -> dict[str, Any]:
    found = spec.get(name)
    return found if isinstance(found, dict) else {}


def _whole(section: dict[str, Any], name: str) -> int:
    found = section.get(name)
    return found if isinstance(found, int) and found >= 0 else 0
