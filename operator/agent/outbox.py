"""Reports on their way to the controller, kept until it has acknowledged them.

The controller may be away for minutes (restarted, or its node lost), and what workers said in the
meantime must not be. Memory is bounded: past the limit per-rank samples and old status go first,
and if even that is not enough the oldest reports are lost, and counted.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from logging import getLogger

import msgspec

from .reports import AgentReport, AgentStatus, RankSamples

_TAKE_MAX = 256
_log = getLogger(__name__)


class Outbox:
    """A thread-safe, bounded, ordered store of reports, from push to acknowledge."""

    def __init__(self, node: str, bytes_max: int) -> None:
        self.agent = uuid.uuid4().hex
        self.dropped_total = 0
        self.lost_total = 0
        self._node = node
        self._bytes_max = bytes_max
        self._encoder = msgspec.msgpack.Encoder()
        self._changed = threading.Condition()
        self._kept: dict[int, tuple[AgentReport, int]] = {}
        self._droppable: dict[int, None] = {}
        self._fresh: deque[int] = deque()
        self._bytes = 0
        self._last_seq = 0
        self._taken_seq = 0
        self._status_seq = 0
        self._samples_seq = 0
        self._is_closed = False

    def push(self, report: AgentReport) -> int:
        """Stamp a report, keep it, and wake the deliverer. Returns its seq.

        Rank samples wake nobody: they travel with the next report that does.
        """
        with self._changed:
            self._last_seq += 1
            stamped = msgspec.structs.replace(
                report,
                node=self._node,
                agent=self.agent,
                seq=self._last_seq,
                time_s=time.time(),
            )
            self._keep(stamped)
            if not isinstance(stamped, RankSamples):
                self._changed.notify()
            return self._last_seq

    def _keep(self, report: AgentReport) -> None:
        if isinstance(report, AgentStatus):
            self._forget(self._status_seq)
            self._status_seq = report.seq
        elif isinstance(report, RankSamples):
            self._samples_seq = report.seq
        size = len(self._encoder.encode(report))
        self._kept[report.seq] = (report, size)
        self._bytes += size
        self._fresh.append(report.seq)
        if report.is_droppable:
            self._droppable[report.seq] = None
        self._make_room()

    def _make_room(self) -> None:
        while self._bytes > self._bytes_max and self._droppable:
            self._forget(next(iter(self._droppable)))
            self.dropped_total += 1
        while self._bytes > self._bytes_max and len(self._kept) > 1:
            self._forget(next(iter(self._kept)))
            self.lost_total += 1

    def _forget(self, seq: int) -> None:
        entry = self._kept.pop(seq, None)
        self._droppable.pop(seq, None)
        if entry is not None:
            self._bytes -= entry[1]

    @property
    def has_untaken_samples(self) -> bool:
        """Whether rank samples wait for the deliverer: the reader is slower than the workers."""
        with self._changed:
            return self._samples_seq > self._taken_seq and self._samples_seq in self._kept

    def take(self) -> Sequence[AgentReport]:
        """Wait for reports not delivered before; return them in order, empty only when closed."""
        with self._changed:
            while not (fresh := self._take_fresh()) and not self._is_closed:
                self._changed.wait()
            return fresh

    def _take_fresh(self) -> list[AgentReport]:
        fresh: list[AgentReport] = []
        while self._fresh and len(fresh) < _TAKE_MAX:
            self._taken_seq = self._fresh.popleft()
            # What was replaced, dropped or acknowledged meanwhile is not delivered.
            if self._taken_seq in self._kept:
                fresh.append(self._kept[self._taken_seq][0])
        return fresh

    def acknowledge(self, seq: int) -> None:
        """The reader has safely kept everything up to seq; forget it."""
        with self._changed:
            while self._kept and (oldest := next(iter(self._kept))) <= seq:
                self._forget(oldest)

    def unacknowledged(self) -> list[AgentReport]:
        """Return all that was delivered and not acknowledged, oldest first, for resending."""
        with self._changed:
            return [kept[0] for seq, kept in self._kept.items() if seq <= self._taken_seq]

    def close(self) -> None:
        """Let take() return what is left, then empty lists."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


class Deliverer:
    """Hands reports to on_reports on a thread of its own.

    A reader that blocks must not delay the discovery of the next dead worker, so it is never
    called from the thread that watches workers. While it is busy, reports gather in the outbox.
    """

    def __init__(
        self, outbox: Outbox, on_reports: Callable[[Sequence[AgentReport]], None], name: str
    ) -> None:
        self._outbox = outbox
        self._on_reports = on_reports
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Deliver what is left and end, unless the reader blocks for longer than timeout_s."""
        self._outbox.close()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while reports := self._outbox.take():
            try:
                self._on_reports(reports)
            except Exception:
                # Unacknowledged, they will be sent again when the reader is well.
                _log.exception("the reader of agent reports failed")
