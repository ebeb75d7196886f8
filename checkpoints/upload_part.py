"""What an uploader remembers: how far each part on the disk is, and what trouble it has told."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from .manifest import Manifest
from .retrying import Backoff

TROUBLE_EVERY_S = 300.0
"""The same trouble is told again no sooner."""
RETRY_FIRST_S = 0.5
OTHERS_MAX_S = 15.0
"""Longest wait for what other nodes have yet to bring."""
_OTHERS_FIRST_S = 0.5


class UploadPart:
    """A checkpoint of which this node has files, on its way to the store.

    known:      files that the store is known to have, by their SHA-256.
    read_back:  files whose copy in the store was read back and is sound.
    is_spoiled: a file here is not what was saved, so that it never leaves this node.
    trouble:    code of what keeps it from getting on, "" for nothing.
    look_s:     when to look at it again, by the monotonic clock.
    """

    def __init__(self, manifest: Manifest, retry_max_s: float) -> None:
        self.manifest = manifest
        self.found_s = time.monotonic()
        self.known: set[str] = set()
        self.read_back: set[str] = set()
        self.is_sent = False
        self.is_stored = False
        self.is_clean = False
        self.is_spoiled = False
        self.trouble = ""
        self.look_s = 0.0
        self.others = Backoff(_OTHERS_FIRST_S, OTHERS_MAX_S)
        self.retries = Backoff(RETRY_FIRST_S, retry_max_s)

    def is_due(self, now_s: float) -> bool:
        """Whether there may be something to do for it by now."""
        return not (self.is_stored or self.is_spoiled) and now_s >= self.look_s

    def wait(self, backoff: Backoff, at_least_s: float = 0.0) -> float:
        """Put the next look at it off; return for how long."""
        wait_s = backoff.next_s(at_least_s)
        self.look_s = time.monotonic() + wait_s
        return wait_s


class Troubles:
    """Tells each kind of trouble when it begins, and again now and then while it lasts.

    tell: is given code, message and since when (seconds since the epoch).
    """

    def __init__(self, tell: Callable[[str, str, float], None]) -> None:
        self._witness = tell
        self._since_s: dict[str, float] = {}
        self._told_s: dict[str, float] = {}

    def tell(self, code: str, message: str) -> None:
        """There is, or still is, trouble of this kind."""
        now_s = time.time()
        since_s = self._since_s.setdefault(code, now_s)
        if now_s - self._told_s.get(code, 0.0) > TROUBLE_EVERY_S:
            self._told_s[code] = now_s
            self._witness(code, message, since_s)

    def keep(self, codes: Collection[str]) -> None:
        """Forget every kind but these: when it comes again, it is new."""
        self._since_s = {code: at_s for code, at_s in self._since_s.items() if code in codes}
        self._told_s = {code: at_s for code, at_s in self._told_s.items() if code in codes}
