"""Look at the GPUs from a process of its own, so that a stuck driver call blocks nobody else.

The probe asks a child process for a report and waits no longer than a deadline. A child that is
late is killed and counted as stuck; one that even SIGKILL cannot end (it sleeps uninterruptibly in
the driver) is left behind, and no more than ABANDONED_MAX are ever left behind.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

import msgspec

from ...logbook.decoding import prepared
from .snapshot import ProbeReport, ProbeStatus

ABANDONED_MAX = 2
RETRY_DELAY_S_MAX = 60.0
CLOSE_S_MAX = 3.0
_ANSWER_BYTES_MAX = 4 << 20


class ProbeSettings(msgspec.Struct, frozen=True):
    """How patient the probe is.

    deadline_s:       for a report from a child that has answered before.
    first_deadline_s: for the first report of a child, which opens the driver.
    retry_delay_s:    before a new child follows one that was stuck or died; doubles each time, up
                      to RETRY_DELAY_S_MAX.
    """

    deadline_s: float = 1.5
    first_deadline_s: float = 10.0
    retry_delay_s: float = 1.0


class NvmlProbe:
    """Takes one report at a time; never raises for anything that driver or child may do.

    environment: variables for the child on top of this process's own.
    """

    def __init__(
        self,
        settings: ProbeSettings | None = None,
        environment: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings or ProbeSettings()
        self._environment = {**os.environ, **(environment or {})}
        self._clock = clock
        self._child: subprocess.Popen[bytes] | None = None
        self._abandoned: list[subprocess.Popen[bytes]] = []
        self._has_answered = False
        self._pending = b""
        self._failures = 0
        self._retry_at_s = 0.0
        self._last_failure = ProbeReport(ProbeStatus.DIED, "the probe has not started yet")

    def sample(self) -> ProbeReport:
        """Return a report, or within the deadline the reason why there is none."""
        self._reap()
        if self._child is None and not self._may_start():
            return self._last_failure
        started_s = self._clock()
        try:
            child = self._child or self._start()
            assert child.stdin is not None
            child.stdin.write(b"\n")
            child.stdin.flush()
        except OSError as error:
            return self._give_up(ProbeStatus.DIED, f"the probe process is gone: {error}")
        return self._await_answer(child, started_s)

    def close(self) -> None:
        """End every child. Returns within CLOSE_S_MAX, even when one cannot be ended."""
        if self._child is not None:
            self._abandon(self._child)
            self._child = None
        for child in self._abandoned:
            try:
                child.wait(CLOSE_S_MAX / (ABANDONED_MAX + 1))
            except subprocess.TimeoutExpired:
                # It sleeps in the driver; the kernel ends it when that call returns.
                continue
        self._reap()

    @property
    def pid(self) -> int | None:
        """The child's process id, None when there is none."""
        return None if self._child is None else self._child.pid

    def _start(self) -> subprocess.Popen[bytes]:
        self._child = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.probe_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self._environment,
        )
        self._has_answered = False
        self._pending = b""
        return self._child

    def _may_start(self) -> bool:
        return len(self._abandoned) < ABANDONED_MAX and self._clock() >= self._retry_at_s

    def _await_answer(self, child: subprocess.Popen[bytes], started_s: float) -> ProbeReport:
        assert child.stdout is not None
        limits = self._settings
        allowed_s = limits.deadline_s if self._has_answered else limits.first_deadline_s
        while b"\n" not in self._pending:
            left_s = started_s + allowed_s - self._clock()
            if left_s <= 0 or not select.select([child.stdout], [], [], left_s)[0]:
                return self._give_up(
                    ProbeStatus.STUCK, f"no answer from the driver within {allowed_s:g} s"
                )
            chunk = os.read(child.stdout.fileno(), 1 << 16)
            if not chunk or len(self._pending) > _ANSWER_BYTES_MAX:
                return self._give_up(ProbeStatus.DIED, "the probe process ended without an answer")
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        return self._accept(line)

    def _accept(self, line: bytes) -> ProbeReport:
        try:
            report = msgspec.json.decode(line, type=prepared(ProbeReport))
        except msgspec.DecodeError as error:
            return self._give_up(ProbeStatus.DIED, f"the probe process answered nonsense: {error}")
        self._has_answered = True
        self._failures = 0
        return report

    def _give_up(self, status: ProbeStatus, detail: str) -> ProbeReport:
        if self._child is not None:
            self._abandon(self._child)
            self._child = None
        delay_s = min(self._settings.retry_delay_s * 2**self._failures, RETRY_DELAY_S_MAX)
        self._failures = min(self._failures + 1, 16)
        self._retry_at_s = self._clock() + delay_s
        self._last_failure = ProbeReport(status, detail)
        return self._last_failure

    def _abandon(self, child: subprocess.Popen[bytes]) -> None:
        """Kill the child and close its pipes, but do not wait: it may never come back."""
        child.kill()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    # A request that it never read was still buffered.
                    continue
        self._abandoned.append(child)

    def _reap(self) -> None:
        self._abandoned = [child for child in self._abandoned if child.poll() is None]
