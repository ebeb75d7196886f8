"""The pulse of a controller: a small file beside the journal, whose time says when it last turned.

A run that waits for nodes, tries them out or loads its state records nothing for minutes. Without
this a reader of its folder could not tell that from a run whose controller is gone.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

_log = logging.getLogger(__name__)
NAME = "pulse"
EVERY_S = 5.0


class Pulse:
    """Keeps the pulse beside the journal in a folder: a few system calls every EVERY_S."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = directory / NAME
        self._clock = clock
        self._beaten_s = 0.0
        self._is_well = True

    def beat(self) -> None:
        """Leave a sign of life, if the last one is EVERY_S old; a disk that fails is no trouble."""
        now_s = self._clock()
        if abs(now_s - self._beaten_s) < EVERY_S:
            return
        self._beaten_s = now_s
        try:
            self._path.touch()
            # The clock of the journal, and not of a file server.
            os.utime(self._path, (now_s, now_s))
        except OSError as error:
            if self._is_well:
                _log.warning("no pulse can be left in %s: %s", self._path, error)
            self._is_well = False
        else:
            self._is_well = True


def pulse_s(directory: Path) -> float:
    """Return when the controller of the journal in a folder last turned, 0.0 where none says."""
    try:
        return (directory / NAME).stat().st_mtime
    except OSError:
        return 0.0
