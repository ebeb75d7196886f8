"""The lemon memory on disk: one file beside the runs, shared by every run that lives there.

Several controllers may write at once: each change is made under a lock, on what the file holds
then, and put in place in one go.
"""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from ..health.nodes.lemons import (
    Failure,
    LemonBook,
    LemonBudget,
    MachineIdentity,
    judge_machine,
    record,
    release,
)
from ..logbook.decoding import prepared
from ..logbook.diskio import replace_file

NAME = "lemons.json"
_log = logging.getLogger(__name__)


class LemonFile:
    """The book of one folder of runs. A book that cannot be read or written costs no run.

    path: the file; its folder exists.
    """

    def __init__(
        self,
        path: Path,
        budget: LemonBudget | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._budget = budget or LemonBudget()
        self._clock = clock

    def verdict(self, machine: MachineIdentity) -> str:
        """Return why a machine must not be used, "" when it may be."""
        if not machine.is_known:
            return ""
        found = judge_machine(self._read(), machine, self._clock(), self._budget)
        return found.reason if found.is_quarantined else ""

    def record(self, failure: Failure) -> None:
        """Remember a failure; the same one again changes nothing."""
        self._change(lambda book: record(book, failure, self._budget))

    def release(self, machine: MachineIdentity, by: str) -> None:
        """Forgive a machine and its GPUs."""
        if machine.is_known:
            self._change(lambda book: release(book, machine, by, self._clock()))

    def _change(self, change: Callable[[LemonBook], LemonBook]) -> None:
        try:
            with self._locked():
                before = self._read()
                after = change(before)
                if after != before:
                    replace_file(self._path, msgspec.json.encode(after))
        except OSError as error:
            _log.error("the lemon memory %s cannot be written: %s", self._path, error)

    def _read(self) -> LemonBook:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=prepared(LemonBook))
        except FileNotFoundError:
            return LemonBook()
        except (OSError, msgspec.DecodeError) as error:
            # Put aside rather than overwritten: somebody may want to mend it.
            _log.error("the lemon memory %s cannot be read: %s", self._path, error)
            if isinstance(error, msgspec.DecodeError):
                self._path.replace(self._path.with_suffix(".unreadable"))
            return LemonBook()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
