"""The trainer's entry point with a diary: when each rank entered each phase of its start.

Named in a spec as entry_points.worker. It differs from the trainer's own main() in nothing but
that a note in the progress page is also a line in <run_dir>/stamps/<attempt>-<rank>, up to the
first completed step.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from midwatch.logbook.wire import Phase, ProgressPage, WorkerStart
from midwatch.trainer.control import Mailbox, die_with_parent, exit_without_agent
from midwatch.trainer.parts import Progress
from midwatch.trainer.report import PipeReport
from midwatch.trainer.worker import dump_stacks_on_signal, serve

FOLDER = "stamps"
FIRST_STEP = "FIRST_STEP"


class StampedPage(ProgressPage):
    """A progress page that also writes its first notes down."""

    def __init__(self, fd: int, path: Path) -> None:
        super().__init__(fd)
        self._diary = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._resumed: int | None = None
        self._is_done = False
        self._write("ENTERED")

    def note(self, step: int, phase: Phase, rounds: int = 0) -> None:
        super().note(step, phase, rounds)
        if self._is_done:
            return
        if phase is Phase.TRAINING and self._resumed is None:
            self._resumed = step
        self._is_done = self._resumed is not None and step > self._resumed
        self._write(FIRST_STEP if self._is_done else phase.name)

    def _write(self, moment: str) -> None:
        os.write(self._diary, f"{moment} {time.time():.6f}\n".encode())


def main(start: WorkerStart) -> None:
    """Be the trainer's worker, and keep a diary of its start."""
    assert start.report_fd is not None
    assert start.progress_fd is not None
    folder = Path(start.run_dir) / FOLDER
    folder.mkdir(exist_ok=True)
    page = StampedPage(start.progress_fd, folder / f"{start.attempt}-{start.rank}")
    die_with_parent()
    dump_stacks_on_signal()
    report = PipeReport(start.report_fd, exit_without_agent)
    mailbox = Mailbox(start.command_fd, start.first_command, exit_without_agent)
    serve(start, None, report, mailbox, Progress(page))


def read_stamps(run_dir: Path, attempt: int) -> dict[str, float]:
    """Return when the last rank of an attempt first entered each phase; seconds since the epoch."""
    last: dict[str, float] = {}
    for path in (run_dir / FOLDER).glob(f"{attempt}-*"):
        first: dict[str, float] = {}
        for line in path.read_text().splitlines():
            moment, stamp_s = line.split()
            first.setdefault(moment, float(stamp_s))
        for moment, stamp in first.items():
            last[moment] = max(last.get(moment, 0.0), stamp)
    return last
