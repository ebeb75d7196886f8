"""From what agents say of a preflight to events of the journal, fenced by its number."""

from __future__ import annotations

from ..logbook import events as ev
from ..logbook.preflight import PreflightDone, SilentRank
from ..logbook.state import PreflightState, RunState
from ..logbook.wire import PEER_CODES, WorkerFailed
from .agent import reports as rp


class Examinations:
    """Turns reports of a preflight into events. Remembers only the last words of its ranks."""

    def __init__(self) -> None:
        self._number = 0
        self._last_words: dict[int, WorkerFailed] = {}

    def observe(self, state: RunState, report: rp.AgentReport) -> list[ev.Event]:
        """Return the events that a report with a negative attempt amounts to."""
        number = -report.attempt
        current = state.preflight
        if current is None or current.plan.number != number or current.judged is not None:
            return []
        if number != self._number:
            self._number = number
            self._last_words.clear()
        if isinstance(report, rp.WorkersStarted):
            return [ev.PreflightBegun(number, report.node)]
        done: tuple[PreflightDone, ...] = ()
        silent: tuple[SilentRank, ...] = ()
        if isinstance(report, rp.WorkerMessages):
            done = tuple(m for _, m in report.batch if isinstance(m, PreflightDone))
            words = {rank: m for rank, m in report.batch if isinstance(m, WorkerFailed)}
            self._last_words.update(words)
        elif isinstance(report, rp.WorkerExited):
            silent = self._ended(current, report.exit)
        elif isinstance(report, rp.WorkersExited):
            silent = tuple(s for row in report.rows for s in self._ended(current, row.exit))
        elif isinstance(report, rp.StartFailed):
            silent = _not_started(current, report)
        if not done and not silent:
            return []
        return [ev.PreflightAnswered(number, report.node, done, silent)]

    def _ended(self, current: PreflightState, end: rp.Exit) -> tuple[SilentRank, ...]:
        words = self._last_words.pop(end.rank, None)
        node = current.plan.rank_nodes[end.rank]
        answers = current.answers.get(node)
        if answers is not None and any(done.rank == end.rank for done in answers.done):
            return ()
        if words is not None:
            said = f"failed: {words.code}: {words.message[:500]}"
            return (SilentRank(end.rank, said, words.code not in PEER_CODES),)
        how = f"signal {end.signal}" if end.signal is not None else f"exit {end.exit_code}"
        return (SilentRank(end.rank, f"ended without a report ({how})"),)


def _not_started(current: PreflightState, report: rp.StartFailed) -> tuple[SilentRank, ...]:
    ranks = [r for r, node in enumerate(current.plan.rank_nodes) if node == report.node]
    said = f"could not be started: {report.code}: {report.message[:500]}"
    # A node that was given ranks meanwhile is not to blame for refusing.
    return tuple(SilentRank(rank, said, report.code != "node-busy") for rank in ranks)
