"""Writes incident notes in a thread of its own: no disk, however slow, holds up a tick."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from ..logbook.state import Incident, RunState
from .desk import FileDesk

RETRY_S = 1.0
_log = logging.getLogger(__name__)


class ScribedDesk(FileDesk):
    """A desk whose notes are written as soon as may be, newest state first to last.

    What waits is one entry for each incident, so it is bounded however often one changes. A note
    that cannot be written is tried again until it can; the journal has everything meanwhile.
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir)
        self._waiting: dict[str, tuple[RunState, Incident]] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._writing = False
        self._failure = ""
        self._thread = threading.Thread(target=self._work, name="scribe", daemon=True)
        self._thread.start()

    def write_note(self, state: RunState, incident: Incident) -> None:
        """Have the note of an incident written; return at once."""
        with self._changed:
            self._waiting[incident.draft.id] = (state, incident)
            self._changed.notify_all()

    def finish(self, timeout_s: float) -> bool:
        """Write what waits, for at most timeout_s; return whether all notes were written."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            is_written = self._changed.wait_for(
                lambda: not self._waiting and not self._writing, timeout_s
            )
        self.close()
        return is_written

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                name = next(iter(self._waiting))
                state, incident = self._waiting.pop(name)
                self._writing = True
            is_written = self._write(name, state, incident)
            with self._changed:
                self._writing = False
                if not is_written:
                    self._waiting.setdefault(name, (state, incident))
                self._changed.notify_all()
            if not is_written:
                time.sleep(RETRY_S)

    def _write(self, name: str, state: RunState, incident: Incident) -> bool:
        try:
            super().write_note(state, incident)
        except OSError as error:
            if str(error) != self._failure:
                # Said once, not at every try.
                self._failure = str(error)
                _log.warning("the note of %s waits: %s", name, error)
            return False
        except Exception:
            # A note that cannot be rendered would fail for ever; the others must not wait for it.
            _log.exception("the note of %s could not be written", name)
        self._failure = ""
        return True
