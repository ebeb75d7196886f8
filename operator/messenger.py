"""Tells people of a run by webhook, from a thread of its own: at least once, and rarely twice.

There is no queue that could overflow: what is yet to be told is what the state has (notices.py)
less what was told. What was told is kept in the run's folder, so a new controller goes on there.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from ..logbook.errors import Fatal, MidwatchError, Retryable
from ..logbook.state import RunState
from .notices import Notice, is_news, notices_of, slack_text
from .secret_value import read_secret
from .spec_outward import NotifySpec
from .web_call import call

TOLD_FILE = "notify-told"
LOOK_S = 0.5
FIRST_DELAY_S = 1.0
BATCH_MAX = 10
WAITING_MAX = 100
REFUSALS_MAX = 5
_log = logging.getLogger(__name__)


class Messenger:
    """Watches the state of a run and tells what is new. The webhook must be set in the spec."""

    def __init__(self, spec: NotifySpec, run_dir: Path, state_of: Callable[[], RunState]) -> None:
        self._spec = spec
        self._state_of = state_of
        self._path = run_dir / TOLD_FILE
        self._told = self._remembered()
        self._seen: RunState | None = None
        self._refusals = 0
        self._failure = ""
        self._is_all_told = False
        self._closing, self._gone = threading.Event(), threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work, name="messenger", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float) -> bool:
        """Tell what is left to tell, for at most timeout_s; return whether all of it was told."""
        self._closing.set()
        is_done = self._done.wait(timeout_s)
        self._gone.set()
        return is_done

    # --- the thread ------------------------------------------------------------------------------

    def _work(self) -> None:
        delay_s = 0.0
        while not self._gone.is_set():
            if self._closing.is_set():
                # Whoever closes says when it has had enough; until then no wait is long.
                self._gone.wait(min(delay_s, FIRST_DELAY_S))
            else:
                self._closing.wait(delay_s or LOOK_S)
            is_last = self._closing.is_set()
            delay_s = self._try(delay_s)
            if is_last and self._is_all_told:
                self._done.set()
                return

    def _try(self, delay_s: float) -> float:
        """Tell some of what waits; return how long to leave them in peace after a failure."""
        self._is_all_told = False
        try:
            waiting = self._waiting()
            self._is_all_told = not waiting
            if waiting:
                self._tell(waiting)
        except Retryable as error:
            return self._later(delay_s, error.delay_s, error)
        except MidwatchError as error:
            return self._later(delay_s, 0.0, error)
        except Exception as error:
            _log.error("a message could not be made: %s", type(error).__name__)
            return self._spec.retry_max_s
        return 0.0

    def _waiting(self) -> list[Notice]:
        state = self._state_of()
        if self._seen is not None and not is_news(state, self._seen):
            return []
        waiting = [
            n for n in notices_of(state) if n.topic in self._spec.topics and n.key not in self._told
        ]
        if not waiting:
            self._seen = state
        return waiting

    def _tell(self, waiting: Sequence[Notice]) -> None:
        """Send the oldest of what waits in one message; a flood is cut to the newest of it."""
        left_out = waiting[:-WAITING_MAX]
        batch = waiting[len(left_out) :][:BATCH_MAX]
        texts = [notice.text for notice in batch]
        if left_out:
            texts.insert(0, f"{len(left_out)} earlier messages are left out.")
        try:
            self._post("\n\n".join(texts))
        except Fatal as error:
            self._refusals += 1
            if self._refusals < REFUSALS_MAX:
                raise
            _log.error("%d messages are given up: %s", len(batch), error)
        self._refusals, self._failure = 0, ""
        self._remember([notice.key for notice in (*left_out, *batch)])

    def _post(self, text: str) -> None:
        webhook = self._spec.webhook
        assert webhook is not None
        headers = {"Content-Type": "application/json", "User-Agent": "midwatch"}
        if self._spec.webhook_token is not None:
            headers["Authorization"] = f"Bearer {read_secret(self._spec.webhook_token)}"
        body = json.dumps({"text": slack_text(text)}).encode()
        call(read_secret(webhook), body, headers, self._spec.timeout_s)

    def _later(self, delay_s: float, asked_s: float, error: MidwatchError) -> float:
        if str(error) != self._failure:
            # Said once, not at every try.
            self._failure = str(error)
            _log.warning("people cannot be told: %s", error)
        return min(max(2 * delay_s, asked_s, FIRST_DELAY_S), self._spec.retry_max_s)

    # --- what was told ---------------------------------------------------------------------------

    def _remembered(self) -> set[str]:
        try:
            return set(self._path.read_text(encoding="utf-8").split("\n"))
        except FileNotFoundError:
            pass
        except OSError as error:
            _log.warning("what was told before cannot be read: %s", error)
        # Nobody was told of this run so far: what is over by now is no news any more.
        state = self._state_of()
        over = {name for name, known in state.incidents.items() if not known.is_open}
        old = {n.key for n in notices_of(state) if n.key.partition("/")[0] in over}
        self._write("".join(f"{key}\n" for key in sorted(old)))
        return old

    def _remember(self, keys: Sequence[str]) -> None:
        self._told.update(keys)
        self._write("".join(f"{key}\n" for key in keys))

    def _write(self, lines: str) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(lines)
        except OSError as error:
            # Worse than telling twice after a restart would be telling nobody.
            _log.warning("what was told cannot be written down: %s", error)
