"""One request to somebody else's server, over within a given time whatever that server does.

Its URL is a secret: no error that leaves here holds it, nor anything that the server said.
"""

from __future__ import annotations

import http.client
import queue
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

from ..logbook.errors import ConfigError, Fatal, Retryable

_BAD_MESSAGE = frozenset({400, 411, 413, 414, 415, 422})


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """What is meant for one address goes to no other."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def call(url: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float) -> None:
    """Ask for a URL (GET) or give it a body (POST); return once it answers with success.

    The request runs in a thread that is left to itself when its time is over: neither a name that
    does not resolve nor a server that sends a byte a second holds the caller longer.
    Raises: ConfigError[url-invalid]; Retryable[web-unreachable, web-timeout, web-unwilling] with
        the server's own Retry-After where it gave one; Fatal[web-refused] where the message itself
        is at fault: any other refusal may be mended from outside.
    """
    if not _is_web(url):
        raise ConfigError(
            "url-invalid", "the secret is no http or https URL.", remedy="Give one, scheme and all."
        )
    outcome: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            _send(url, body, headers, timeout_s)
        except Exception as error:
            outcome.put(error)
        else:
            outcome.put(None)

    threading.Thread(target=run, name="web-call", daemon=True).start()
    try:
        error = outcome.get(timeout=timeout_s)
    except queue.Empty:
        raise Retryable("web-timeout", f"no answer within {timeout_s:g} s.", delay_s=1.0) from None
    if error is not None:
        # Without its cause: the text of a foreign error may hold the URL.
        raise _classified(error) from None


def _is_web(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)


def _send(url: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float) -> None:
    request = urllib.request.Request(url, body, dict(headers))
    opener = urllib.request.build_opener(_NoRedirect)
    with opener.open(request, timeout=timeout_s):
        pass


def _classified(error: Exception) -> Exception:
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        if error.code in _BAD_MESSAGE:
            return Fatal("web-refused", f"it answered {error.code}.")
        delay_s = _seconds(error.headers.get("Retry-After"))
        return Retryable("web-unwilling", f"it answered {error.code}.", delay_s=delay_s)
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return Retryable("web-timeout", "no answer in time.", delay_s=1.0)
    if isinstance(reason, (OSError, http.client.HTTPException)):
        said = getattr(reason, "strerror", None) or type(reason).__name__
        return Retryable("web-unreachable", f"cannot reach it: {said}.", delay_s=1.0)
    return Fatal("web-refused", f"the request could not be made ({type(error).__name__}).")


def _seconds(text: str | None) -> float:
    return float(text) if text is not None and text.isdecimal() and len(text) < 6 else 1.0
