"""Calls to actors that nobody waits for: what becomes of a result, or of its absence."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

_log = logging.getLogger(__name__)


def on_result(
    ref: Any, done: Callable[[Any], None], failed: Callable[[BaseException], None]
) -> None:
    """Call done with the result of a Ray call, or failed with its error, on a thread of Ray's."""

    def settled(future: Future[Any]) -> None:
        error = future.exception()
        if error is not None:
            failed(error)
        else:
            done(future.result())

    ref.future().add_done_callback(settled)


def ignore(error: BaseException) -> None:
    """Write down that a call to an agent failed; its death is told elsewhere."""
    _log.info("a call to an agent failed: %s", brief(error))


def brief(error: object) -> str:
    """Return the first line of an error."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
