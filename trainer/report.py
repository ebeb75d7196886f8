"""What a worker tells its agent, without the training loop ever waiting for the agent.

Frames go straight into the pipe with non-blocking writes from whichever thread has something to
say. What a full pipe does not take is kept and tried again with the next message. When the backlog
grows because the agent is slow, RankSamples are given up first and counted; everything else is
kept, up to a bound past which an agent must be called dead.
"""

from __future__ import annotations

import errno
import math
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from ..logbook.errors import Fatal
from ..logbook.events_validation import perplexity_of
from ..logbook.wire import (
    Applied,
    CheckpointStage,
    Finished,
    RankSample,
    Resumed,
    StepSample,
    Validated,
    WorkerFailed,
    WorkerMessage,
    encode_frame,
)

RANK_SAMPLE_BACKLOG_BYTES = 1 << 18
"""Past this backlog new RankSamples are dropped."""
BACKLOG_BYTES_MAX = 1 << 26
"""Past this backlog, hundreds of thousands of steps, the agent no longer counts as alive."""


class Report(Protocol):
    """Where a worker's messages go."""

    def send(self, message: WorkerMessage) -> None:
        """Pass message on without waiting; callable from any thread."""

    def close(self, timeout_s: float) -> None:
        """Wait until everything kept has gone out, but no longer than timeout_s."""


class PipeReport:
    """Messages as frames on the agent's pipe.

    on_gone is called when the agent has closed its end; it is expected not to return.
    dropped_total: RankSamples given up so far.
    """

    def __init__(self, fd: int, on_gone: Callable[[], None]) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._on_gone = on_gone
        self._lock = threading.Lock()
        self._backlog: deque[bytes] = deque()
        self._backlog_bytes = 0
        self.dropped_total = 0

    def send(self, message: WorkerMessage) -> None:
        """Write message, or keep it for later; a RankSample may be dropped instead.

        Raises: Fatal[agent-not-reading] when BACKLOG_BYTES_MAX wait unread.
        """
        with self._lock:
            may_drop = isinstance(message, RankSample)
            if may_drop and self._backlog_bytes > RANK_SAMPLE_BACKLOG_BYTES:
                self.dropped_total += 1
            else:
                self._keep(encode_frame(message))
            self._flush()

    def close(self, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        with self._lock:
            while self._backlog and (left_s := deadline_s - time.monotonic()) > 0.0:
                select.select([], [self._fd], [], left_s)
                self._flush()
        if self.dropped_total:
            print(f"{self.dropped_total} rank samples dropped: slow agent", file=sys.stderr)

    def _keep(self, frame: bytes) -> None:
        if self._backlog_bytes + len(frame) > BACKLOG_BYTES_MAX:
            raise Fatal(
                "agent-not-reading",
                f"the agent has left {self._backlog_bytes} bytes of reports unread, "
                f"at most {BACKLOG_BYTES_MAX} are kept.",
                remedy="Look at the agent's log; it is stuck or its node is overloaded.",
            )
        self._backlog.append(frame)
        self._backlog_bytes += len(frame)

    def _flush(self) -> None:
        while self._backlog:
            frame = self._backlog[0]
            try:
                written = os.write(self._fd, frame)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.EPIPE:
                    raise
                self._drop_all()
                self._on_gone()
                return
            self._backlog_bytes -= written
            if written < len(frame):
                # The rest must follow before any other frame, or the stream is cut wrongly.
                self._backlog[0] = frame[written:]
            else:
                self._backlog.popleft()

    def _drop_all(self) -> None:
        self._backlog.clear()
        self._backlog_bytes = 0


class PlainReport:
    """Messages as plain lines on stdout: what a person sees of a run without a controller.

    Steps are printed by rank 0, at most one line per period_s besides the first and the last.
    """

    def __init__(self, rank: int, last_step: int, period_s: float = 1.0) -> None:
        self._rank = rank
        self._last_step = last_step
        self._period_s = period_s
        self._printed_s = -math.inf

    def send(self, message: WorkerMessage) -> None:
        if isinstance(message, WorkerFailed):
            tail = message.traceback or f"[{message.code}] {message.message}"
            print(f"rank {message.rank} failed: {tail}", file=sys.stderr, flush=True)
            return
        line = self._line(message) if self._rank == 0 else None
        if line is not None:
            print(line, flush=True)

    def close(self, timeout_s: float) -> None:
        sys.stdout.flush()

    def _line(self, message: WorkerMessage) -> str | None:
        match message:
            case StepSample():
                return self._step_line(message)
            case Resumed(checkpoint="", passed_over=()):
                return "starting afresh"
            case Resumed():
                passed = "".join(
                    f"; passed over {name}: {why}" for name, why in message.passed_over
                )
                return f"resumed at step {message.step} from {message.checkpoint}{passed}"
            case CheckpointStage(stage="committed"):
                return (
                    f"saved {message.checkpoint}: {message.bytes} bytes in {message.save_s:.2f} s, "
                    f"training stood still for {message.blocked_s * 1e3:.1f} ms"
                )
            case CheckpointStage(stage="failed"):
                return f"save of {message.checkpoint} failed: {message.error}"
            case Validated():
                return (
                    f"held-out text at step {message.step}: perplexity "
                    f"{perplexity_of(message.loss):.4g} (loss {message.loss:.4f}) over "
                    f"{message.sequences} sequences, in {message.spent_s:.2f} s"
                )
            case Applied():
                return f"command {message.seq} at step {message.at_step}: {message.readback}"
            case Finished():
                return f"{'stopped' if message.stopped else 'finished'} at step {message.step}"
        return None

    def _step_line(self, sample: StepSample) -> str | None:
        now_s = time.monotonic()
        if now_s - self._printed_s < self._period_s and sample.step != self._last_step:
            return None
        self._printed_s = now_s
        scale = "" if sample.loss_scale is None else f" scale {sample.loss_scale:g}"
        skipped = " skipped" if sample.skipped else ""
        return (
            f"step {sample.step}/{self._last_step} loss {sample.loss:.4f} lr {sample.lr:.3e}"
            f"{scale} grad_norm {sample.grad_norm:.3f} {sample.tokens_per_s:,.0f} tokens/s{skipped}"
        )
