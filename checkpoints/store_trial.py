"""Find out whether this process can use a durable store, before anything depends on it."""

from __future__ import annotations

import contextlib
import secrets

from msgspec.structs import replace

from ..logbook.errors import IntegrityError, MidwatchError
from ..logbook.tiers import Storage
from .objects import open_store
from .remote import TRIALS
from .retrying import Backoff, persist

_TRIAL_BYTES = 1 << 16
_BACKOFF_S = (0.2, 2.0)
_CALL_TIMEOUT_S_MIN = 1.0


def try_store(storage: Storage, run: str, who: str, patience_s: float) -> None:
    """Write an object of some kilobytes beside a run's checkpoints, read it back and remove it.

    who: a name for the object. patience_s: how long failures that may pass are tried again; one
        call that gets no answer leaves time for others.
    Raises: Retryable and Fatal of the store; ConfigError[store-url]; IntegrityError[object-altered]
        when other bytes come back than were stored.
    """
    call_s = max(patience_s / 4, _CALL_TIMEOUT_S_MIN)
    store = open_store(replace(storage, timeout_s=min(storage.timeout_s, call_s)))
    data = secrets.token_bytes(_TRIAL_BYTES)
    key = f"{run}/{TRIALS}/{who}-{secrets.token_hex(6)}"

    def trial() -> None:
        # An answer that was lost leaves the object of an earlier try, which is as good.
        store.put_new(key, data)
        if store.read(key) != data:
            with contextlib.suppress(MidwatchError):
                store.delete([key])
            raise IntegrityError(
                "object-altered",
                f"{storage.url} gave back other bytes than were stored in it.",
                remedy="Have the store looked at; keep no checkpoints in it until then.",
            )
        store.delete([key])

    persist(trial, Backoff(*_BACKOFF_S), patience_s)
