"""What a server looks at now and then: whether its time is over, and whether TLS was renewed."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ...logbook.errors import MidwatchError
from ..spec_api import TlsSpec
from .endpoint import Endpoint, read_endpoint
from .order import ServeOrder
from .run_view import RunView

LOOK_S = 2.0
LOOKS_A_STATE = 5
_log = logging.getLogger(__name__)


def watch_time(
    order: ServeOrder, endpoint: Endpoint, view: RunView, leave: Callable[[str], None]
) -> None:
    """Call leave with the reason once this server's time is over; look in a thread of its own."""
    threading.Thread(
        target=lambda: leave(_wait_for_end(order, endpoint, view)), name="guard", daemon=True
    ).start()


def _wait_for_end(order: ServeOrder, endpoint: Endpoint, view: RunView) -> str:
    watched = []
    if order.while_pid:
        try:
            watched = [os.pidfd_open(order.while_pid)]
        except ProcessLookupError:
            return "the Ray of its node is gone"
    run_dir, linger_s, looks = Path(order.run_dir), order.spec.linger_s, 0
    while True:
        if select.select(watched, [], [], LOOK_S)[0]:
            return "the Ray of its node is gone"
        if read_endpoint(run_dir) != endpoint:
            return "another server has taken its place, or the run's folder is gone"
        looks += 1
        if looks % LOOKS_A_STATE == 0 and _is_long_over(view, linger_s):
            return f"the run has been over for {linger_s:.0f} s"


def _is_long_over(view: RunView, linger_s: float) -> bool:
    try:
        state = view.state()
    except (MidwatchError, OSError):
        # Whoever asks is told; it may be mended.
        return False
    is_over = state.status.is_terminal and state.is_at_rest
    return is_over and time.time() - state.time_s > linger_s


async def renew_certificate(tls: TlsSpec, context: ssl.SSLContext) -> None:
    """Take up a certificate whenever it was renewed, for ever.

    In the loop that shakes hands: no connection begins between taking up a certificate and its key.
    """
    known = _stamp(tls)
    while True:
        await asyncio.sleep(LOOK_S)
        stamp = _stamp(tls)
        if stamp == known:
            continue
        try:
            # Tried out first: a context that is given half of a new pair has none any more.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.cert, tls.key)
            context.load_cert_chain(tls.cert, tls.key)
        except (OSError, ssl.SSLError) as error:
            # Only half of the pair may be there yet: the old one goes on until both are.
            _log.warning("the new certificate cannot be used: %s", error)
        else:
            _log.info("the certificate was renewed")
            known = stamp


def _stamp(tls: TlsSpec) -> tuple[int, ...]:
    try:
        return tuple(os.stat(path).st_mtime_ns for path in (tls.cert, tls.key))
    except OSError:
        return ()
