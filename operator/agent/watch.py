"""Looks at the progress pages of this node's workers; raises the alarm when they stand still."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from ...health.nodes.liveness import (
    Overdue,
    ProgressDeadline,
    RankProgress,
    blame,
    is_waiting_stack,
)
from ...logbook.wire import CollectiveTrace
from .local_attempt import Desk, LocalAttempt
from .reports import HangSuspected, StacksDumped
from .stacks import StackCollection

# Process states are read only of ranks that have been silent for so long.
_SILENT_S = 0.5


class HangWatch:
    """The hang watch of one attempt.

    It rests once a worker has ended by itself: its peers wait for it in vain, which is no news.
    """

    def __init__(self, attempt: LocalAttempt, desk: Desk) -> None:
        self.attempt = attempt
        self._desk = desk
        self._deadline = ProgressDeadline(desk.config.hang)

    def rows(self, silent_s: float = 0.0) -> tuple[RankProgress, ...]:
        """Return where each live worker stands; process states of those silent for silent_s."""
        rows = []
        for worker in self.attempt.live_workers():
            row = worker.progress(with_state=False)
            if row.age_s >= silent_s:
                row = worker.progress(with_state=True)
            rows.append(row)
        return tuple(rows)

    def look(self) -> None:
        """Compare the ranks with the deadline; on expiry collect stacks, then report."""
        if self.attempt.is_ending or self.attempt.has_lost_worker:
            return
        overdue = self._deadline.observe(self.rows(_SILENT_S), time.monotonic())
        if overdue is not None:
            self._collect(lambda rows, stacks: self._report_hang(overdue, rows, stacks))

    def dump_stacks(self) -> None:
        """Collect stacks because somebody asked."""
        self._collect(self._report_stacks)

    def _collect(self, tell: Callable[[tuple[RankProgress, ...], dict[int, str]], None]) -> None:
        # The rows are those of the moment of suspicion, before anybody is disturbed by a signal.
        rows = self.rows()
        workers = self.attempt.live_workers()
        for worker in workers:
            worker.request_trace()

        def on_done(stacks: dict[int, str]) -> None:
            self.attempt.read_reports()
            traces = {w.rank: w.trace for w in workers if w.trace is not None}
            texts = {rank: text + _trace_text(traces.get(rank)) for rank, text in stacks.items()}
            tell(tuple(_with_evidence(row, stacks, traces) for row in rows), texts)

        StackCollection(self._desk.loop, workers, on_done)

    def _report_stacks(self, rows: tuple[RankProgress, ...], stacks: dict[int, str]) -> None:
        report = StacksDumped(attempt=self.attempt.attempt, rows=rows, stacks=stacks)
        self._desk.outbox.push(report)

    def _report_hang(
        self, overdue: Overdue, rows: tuple[RankProgress, ...], stacks: dict[int, str]
    ) -> None:
        if self.attempt.is_ending or self.attempt.has_lost_worker:
            return
        rank, reason = blame(rows)
        self._desk.batch.flush()
        self._desk.outbox.push(
            HangSuspected(
                attempt=self.attempt.attempt,
                rank=rank,
                reason=reason,
                waited_s=overdue.waited_s,
                deadline_s=overdue.deadline_s,
                median_step_s=overdue.median_step_s,
                rows=rows,
                stacks=stacks,
            )
        )


def _with_evidence(
    row: RankProgress, stacks: dict[int, str], traces: dict[int, CollectiveTrace]
) -> RankProgress:
    trace = traces.get(row.rank)
    waits = is_waiting_stack(stacks.get(row.rank, ""))
    return msgspec.structs.replace(row, waits=waits, marks=trace.marks if trace else ())


def _trace_text(trace: CollectiveTrace | None) -> str:
    if trace is None:
        return "\ncollectives: no answer\n"
    lines = [
        f"{mark.group}: {mark.op} {mark.enqueued} called, {mark.completed} completed"
        for mark in trace.marks
    ]
    return "\n".join(["", f"collectives: {trace.error}", *lines, ""])
