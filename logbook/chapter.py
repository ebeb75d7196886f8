"""What the journal holds around one incident: the numbers, the turns of events, the last words.

The state keeps what decisions need; a note wants more. Everything here is bounded, however long the
journal and however many ranks died at once.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from . import decisions as d
from . import events as ev
from .action_phrases import action_text
from .phrases import phrase_of
from .reader import read
from .record import Record
from .state import Incident
from .wire import StepSample

LOOK_BACK_RECORDS, RECORDS_MAX = 4000, 24_000
STEPS_BEFORE, STEPS_AFTER = 240, 120
MOMENTS_MAX, EXITS_MAX, FINDINGS_MAX, SAVES_MAX = 40, 6, 8, 3
EXCERPT_LINES, EXCERPT_CHARS = 24, 3000
STACKS_BYTES = 256 << 10
_FIRST_THREAD = "Thread 0x"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


class Moment(msgspec.Struct, frozen=True):
    """One turn of events; seq is its place in the journal."""

    seq: int
    time_s: float
    text: str


class Excerpt(msgspec.Struct, frozen=True):
    """The end of what a worker wrote, or where its threads stood."""

    source: str
    text: str


class Chapter(msgspec.Struct, frozen=True):
    """An incident's part of the journal.

    samples: (attempt, step sample) in the order of the journal. saved_steps: of the last
    checkpoints before it. resumed: (attempt, step it went on from) of what followed. measured: on
    held-out text.
    """

    moments: tuple[Moment, ...] = ()
    samples: tuple[tuple[int, StepSample], ...] = ()
    excerpts: tuple[Excerpt, ...] = ()
    saved_steps: tuple[int, ...] = ()
    resumed: tuple[tuple[int, int], ...] = ()
    measured: tuple[ev.ValidationDone, ...] = ()


def read_chapter(journal: Path, incident: Incident) -> Chapter:
    """Return the chapter of an incident as the journal in a folder has it so far.

    Reads a bounded part around the incident, found by bisection. Raises: as reader.read.
    """
    first = max(1, incident.opened_seq - LOOK_BACK_RECORDS)
    records = itertools.islice(read(journal, ev.Event, from_seq=first), RECORDS_MAX)
    return chapter_of(records, incident, _read_stacks)


def chapter_of(
    records: Iterable[Record[Any]],
    incident: Incident,
    stacks_of: Callable[[str], str] = lambda path: "",
) -> Chapter:
    """Return the chapter of an incident from records that lead up to it and beyond.

    stacks_of: returns the stack dump that lies under a path, "" when there is none.
    """
    author = _Author(incident, stacks_of)
    for record in records:
        if not author.take(record):
            break
    return author.chapter()


class _Author:
    def __init__(self, incident: Incident, stacks_of: Callable[[str], str]) -> None:
        self._incident = incident
        self._stacks_of = stacks_of
        self._moments: list[Moment] = []
        self._samples: list[tuple[int, StepSample]] = []
        self._exits: list[ev.WorkerExited] = []
        self._hangs: list[ev.HangSuspected] = []
        self._saved: list[int] = []
        self._resumed: list[tuple[int, int]] = []
        self._measured: list[ev.ValidationDone] = []
        self._told = {"worker-exited": 0, "finding": 0}
        self._left_out = dict.fromkeys(self._told, 0)
        self._steps_after = 0

    def take(self, record: Record[Any]) -> bool:
        """Take one record in; return whether more are wanted."""
        event, incident = record.event, self._incident
        if isinstance(event, ev.StepDone):
            return self._take_step(record, event)
        if isinstance(event, ev.CheckpointCommitted) and record.seq < incident.opened_seq:
            self._saved = [*self._saved, event.step][-SAVES_MAX:]
        if isinstance(event, ev.ValidationDone):
            self._measured.append(event)
        if incident.closed_s is not None and record.time_s > incident.closed_s:
            return True
        if record.time_s < min(incident.draft.seen_s, incident.opened_s) - 1e-6:
            return True
        if isinstance(event, ev.AttemptResumed) and not self._is_over(record):
            self._resumed.append((event.attempt, event.step))
        if isinstance(event, ev.HangSuspected):
            self._hangs.append(event)
        if self._is_told(record):
            words = _decision_text(event) or phrase_of(event) or ""
            self._moments.append(Moment(record.seq, record.time_s, f"{record.kind}: {words}"))
        return True

    def _take_step(self, record: Record[Any], event: ev.StepDone) -> bool:
        incident, step = self._incident, event.sample.step
        if record.seq > incident.opened_seq:
            self._steps_after += 1
        elif step < min(incident.draft.onset_step, incident.draft.step) - STEPS_BEFORE:
            return True
        self._samples.append((event.attempt, event.sample))
        if record.time_s == incident.recovered_s:
            words = f"step {step} completed by attempt {event.attempt}: training again"
            self._moments.append(Moment(record.seq, record.time_s, words))
        is_over = incident.closed_s is not None and record.time_s > incident.closed_s
        return not (is_over and self._steps_after >= STEPS_AFTER)

    def _is_over(self, record: Record[Any]) -> bool:
        recovered_s = self._incident.recovered_s
        return recovered_s is not None and record.time_s > recovered_s

    def _is_told(self, record: Record[Any]) -> bool:
        """Whether the time line of the note has this turn of events."""
        event, name = record.event, self._incident.draft.id
        if isinstance(event, ev.DecisionMade):
            return event.decision.incident == name and not isinstance(
                event.decision.action, d.VerifyCheckpoint
            )
        if isinstance(event, ev.NoteAdded):
            return event.incident == name
        if self._is_over(record):
            return False
        if isinstance(event, ev.CommandApplied) and event.phase == "loaded" and not event.error:
            # Every node of every attempt says so: only one that holds something else is news.
            return False
        if isinstance(event, ev.WorkerExited):
            self._exits.append(event)
            return self._has_room("worker-exited", EXITS_MAX)
        if isinstance(event, ev.WorkersExited):
            self._exits.extend(event.exits)
            return True
        if isinstance(event, ev.FindingSeen):
            return not event.finding.shadow and self._has_room("finding", FINDINGS_MAX)
        return isinstance(event, _TOLD)

    def _has_room(self, kind: str, most: int) -> bool:
        # Only what is told takes room: where any is left out, the note tells of others of its kind.
        has_room = self._told[kind] < most
        (self._told if has_room else self._left_out)[kind] += 1
        return has_room

    def chapter(self) -> Chapter:
        """Return what was gathered, cut to a bearable length."""
        moments = self._moments
        for kind, count in self._left_out.items():
            if count:
                last = max(m.seq for m in moments if m.text.startswith(f"{kind}:"))
                at = next(i for i, m in enumerate(moments) if m.seq == last)
                more = msgspec.structs.replace(moments[at], text=f"{kind}: and {count} more")
                moments = [*moments[: at + 1], more, *moments[at + 1 :]]
        if len(moments) > MOMENTS_MAX:
            half = MOMENTS_MAX // 2
            moments = [*moments[:half], *moments[-half:]]
        return Chapter(
            moments=tuple(moments),
            samples=self._near_samples(),
            excerpts=tuple(self._excerpts()),
            saved_steps=tuple(self._saved),
            resumed=tuple(self._resumed),
            measured=tuple(self._measured),
        )

    def _near_samples(self) -> tuple[tuple[int, StepSample], ...]:
        before = len(self._samples) - self._steps_after
        return tuple(self._samples[: before + STEPS_AFTER * 4])

    def _excerpts(self) -> list[Excerpt]:
        draft = self._incident.draft
        found: list[Excerpt] = []
        blamed = sorted(self._exits, key=lambda e: e.rank != draft.rank)
        spoken = [e for e in blamed if e.log_tail.strip()][:1]
        found += [Excerpt(f"log of rank {e.rank} on {e.node}", _tail(e.log_tail)) for e in spoken]
        for hang in self._hangs[:2]:
            rows = "\n".join(
                f"rank {r.rank}: step {r.step}, {r.phase}, still for {r.age_s:.1f} s, "
                f"process state {r.process_state}"
                for r in hang.rows[:16]
            )
            found.append(Excerpt(f"where the ranks of {hang.node} stood", rows))
            stacks = _stack_of(self._stacks_of(hang.stacks), draft.rank) if hang.stacks else ""
            if stacks:
                found.append(Excerpt(f"stacks on {hang.node} ({Path(hang.stacks).name})", stacks))
        return found


_TOLD = (
    ev.FaultInjected,
    ev.NodeLost,
    ev.StartFailed,
    ev.HangSuspected,
    ev.AttemptResumed,
    ev.ControllerStarted,
    ev.InterventionRequested,
    ev.CommandApplied,
    ev.CheckpointFailed,
)


def _decision_text(event: Any) -> str:
    """Return a decision in the words of its own note, "" for anything else."""
    if not isinstance(event, ev.DecisionMade):
        return ""
    decision = event.decision
    if isinstance(decision.action, d.CloseIncident):
        return f"{decision.id} close: {decision.action.outcome}"
    return f"{decision.id} {action_text(decision.action)}: {decision.reason}"


def _stack_of(dump: str, rank: int | None) -> str:
    """Return the stack of a rank from a dump of all ranks of a node; of the first without one."""
    parts = re.split(r"(?m)^(?==== rank )", dump)
    wanted = [part for part in parts if part.startswith(f"=== rank {rank}\n")]
    others = [part for part in parts if part.strip()]
    chosen = (wanted or others or [""])[0]
    # Of all its threads the one that trains says where the rank stood.
    head, mark, current = chosen.partition("Current thread")
    chosen = f"{head.partition(_FIRST_THREAD)[0]}{mark}{current}" if mark else chosen
    return _safe("\n".join(chosen.strip().splitlines()[:EXCERPT_LINES])[:EXCERPT_CHARS])


def _tail(log: str) -> str:
    return _safe("\n".join(log.strip().splitlines()[-EXCERPT_LINES:])[-EXCERPT_CHARS:])


def _safe(words: str) -> str:
    # What a worker wrote must not steer the terminal that shows it.
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), words)


def _read_stacks(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as dump:
            return dump.read(STACKS_BYTES)
    except OSError:
        return ""
