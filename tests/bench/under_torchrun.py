"""A job under plain torchrun, seen through what its rank 0 prints."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from .processes import descendants, environ_of

DEADLINE_S = 120.0
_STEP = re.compile(r"^step (\d+)/")
_RESUMED = re.compile(r"^resumed at step (\d+) from (\S+)")


class Line(NamedTuple):
    """A line of output and when it came, in seconds since the epoch."""

    time_s: float
    text: str

    @property
    def step(self) -> int | None:
        found = _STEP.match(self.text)
        return int(found[1]) if found else None

    @property
    def resumed_step(self) -> int | None:
        found = _RESUMED.match(self.text)
        return int(found[1]) if found else None


class Torchrun:
    """`torchrun --standalone` over a spec; a context manager that ends every process it began.

    Rank 0 prints its first step at once and then a line a second at most. A line's time is that of
    its arrival here, some tens of microseconds after the step.
    """

    def __init__(self, spec: Path, log: Path, *, ranks: int = 4, max_restarts: int = 100) -> None:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={ranks}", f"--max-restarts={max_restarts}"]
        command += ["-m", "midwatch.trainer.worker", str(spec)]
        self._log = log.open("ab")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            start_new_session=True,
        )
        self.lines: list[Line] = []
        self._arrived = threading.Condition()
        self._is_over = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Torchrun:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        below = descendants(self._process.pid)
        for pid in (self._process.pid, *below):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join()
        self._log.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            line = Line(time.time(), raw.decode(errors="replace").rstrip())
            with self._arrived:
                self.lines.append(line)
                self._arrived.notify_all()
        with self._arrived:
            self._is_over = True
            self._arrived.notify_all()

    def wait_line(self, wanted: Callable[[Line], bool], since: int = 0) -> Line:
        """Return the first line from number since on that is wanted, waiting for it."""
        deadline_s = time.monotonic() + DEADLINE_S
        with self._arrived:
            while True:
                found = next((line for line in self.lines[since:] if wanted(line)), None)
                if found is not None:
                    return found
                left_s = deadline_s - time.monotonic()
                if self._is_over or left_s <= 0.0:
                    raise RuntimeError(f"torchrun did not get there; see {self._log.name}")
                self._arrived.wait(left_s)

    def join(self) -> None:
        """Wait until the job has ended by itself."""
        self._process.wait(DEADLINE_S)
        self._reader.join()

    def workers(self) -> dict[int, int]:
        """Return the process of each rank that lives now."""
        ranks: dict[int, int] = {}
        for pid in descendants(self._process.pid):
            environment = environ_of(pid)
            if "TORCHELASTIC_RESTART_COUNT" in environment:
                ranks.setdefault(int(environment["RANK"]), pid)
        return ranks
