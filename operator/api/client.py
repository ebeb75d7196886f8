"""The client of the API: a run somewhere else, asked over HTTP.

It goes straight to the address that it was given: neither a proxy nor a redirect ever gets to see
the token.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from ...logbook import events as ev
from ...logbook.decisions import Decision
from ...logbook.decoding import prepared
from ...logbook.errors import ConfigError, IntegrityError, Retryable
from ...logbook.events import InterventionRequested
from ...logbook.live_status import RunStatus
from ...logbook.record import Record
from ...logbook.state import Intervention, RunState
from ...logbook.summary import IncidentRow
from ...logbook.tui.controls import Places
from ..cli.runs import NotFoundError
from .intake import Receipt
from .refusal import ErrorDocument, Refusal

CONNECT_S, ANSWER_S = 5.0, 30.0
RETRY_S = 1.0
T = TypeVar("T")


class Access(msgspec.Struct, frozen=True):
    """Where a run is served, and how to get in. ca_file: PEM certificates to trust instead of the
    system's, "" for those."""

    url: str
    token: str = ""
    ca_file: str = ""


class ApiClient:
    """Asks about one run. It may be used from several threads.

    Raises, each call: Refusal with the server's own status, code and words;
        NotFoundError for what is not there; Retryable[api-unreachable, api-unwilling];
        IntegrityError[api-not-understood].
    Raises: ConfigError[url-invalid, ca-invalid].
    """

    def __init__(self, access: Access) -> None:
        self.url = access.url.rstrip("/")
        headers = {"User-Agent": "midwatch"}
        if access.token:
            headers["Authorization"] = f"Bearer {access.token}"
        _require_web(self.url)
        self._http = httpx.Client(
            base_url=self.url,
            headers=headers,
            verify=_context(access.ca_file),
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
            trust_env=False,
            follow_redirects=False,
        )

    def close(self) -> None:
        self._http.close()

    def status(self) -> RunStatus:
        return self._decoded(self._get("/v1/status"), RunStatus)

    def state(self) -> RunState:
        return self._decoded(self._get("/v1/state"), RunState)

    def events(self, after: int, limit: int) -> list[Record[ev.Event]]:
        """Return records behind a sequence number, [] when there is none."""
        blob = self._get("/v1/events", {"after": after, "limit": limit})
        return self._decoded(blob, list[Record[ev.Event]])

    def incidents(self) -> list[IncidentRow]:
        return self._decoded(self._get("/v1/incidents"), list[IncidentRow])

    def note(self, incident: str) -> str:
        return self._get(f"/v1/incidents/{quote(incident, safe='')}/note").decode()

    def places(self) -> Places:
        """Return where checkpoints lie now, as the server finds them."""
        return self._decoded(self._get("/v1/checkpoints/places"), Places)

    def metrics(self) -> str:
        return self._get("/metrics").decode()

    def intervention(self, name: str) -> Intervention | None:
        """Return a request and how far it got, None when nobody there knows of it."""
        try:
            blob = self._get(f"/v1/interventions/{quote(name)}")
        except NotFoundError:
            return None
        return self._decoded(blob, Intervention)

    def post(self, request: InterventionRequested) -> Receipt:
        """Ask for a change. Sending the same one again is harmless."""
        return self._decoded(self._post("/v1/interventions", _asked(request)), Receipt)

    def try_out(self, request: InterventionRequested) -> list[Decision]:
        """Return what would be decided about a change now, [] when it would have to wait."""
        blob = self._post("/v1/interventions", _asked(request), {"dry_run": "true"})
        return self._decoded(blob, list[Decision])

    def remark(self, incident: str, text: str, by: str) -> None:
        """Add to the note of an incident."""
        path = f"/v1/incidents/{quote(incident, safe='')}/remarks"
        self._post(path, {"text": text, "by": by})

    # --- the wire --------------------------------------------------------------------------------

    def _get(self, path: str, params: Mapping[str, Any] | None = None) -> bytes:
        return self._send(self._http.build_request("GET", path, params=params))

    def _post(self, path: str, body: Any, params: Mapping[str, Any] | None = None) -> bytes:
        headers = {"Content-Type": "application/json"}
        content = msgspec.json.encode(body)
        return self._send(
            self._http.build_request("POST", path, params=params, content=content, headers=headers)
        )

    def _send(self, request: httpx.Request) -> bytes:
        try:
            answer = self._http.send(request)
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise Retryable(
                "api-unreachable",
                f"nobody answers at {self.url}: {error or type(error).__name__}.",
                delay_s=RETRY_S,
                remedy="See whether the run is served there: its journal has api-served events.",
            ) from error
        if answer.is_success:
            return answer.content
        raise self._refused(answer)

    def _refused(self, answer: httpx.Response) -> Exception:
        status = answer.status_code
        try:
            said = msgspec.json.decode(answer.content, type=prepared(ErrorDocument))
        except ValueError:
            return Retryable(
                "api-unwilling",
                f"{self.url} answered {status}, and not as a midwatch server does.",
                delay_s=RETRY_S,
                remedy="See what listens there.",
            )
        if status == 404:
            return NotFoundError(said.code, said.message, remedy=said.remedy)
        if status in (429, 503):
            return Retryable(said.code, said.message, delay_s=RETRY_S, remedy=said.remedy)
        # Whoever meets this sets a variable, and sends no header.
        remedy = _REMEDIES[401] if status == 401 else said.remedy or _REMEDIES.get(status, "")
        return Refusal(status, said.code, said.message, remedy=remedy)

    def _decoded(self, blob: bytes, kind: type[T]) -> T:
        try:
            # Not strict: that reads "NaN" into a float, as in the journal.
            return msgspec.json.decode(blob, type=prepared(kind), strict=False)
        except ValueError as error:
            raise IntegrityError(
                "api-not-understood",
                f"what {self.url} answers is not understood here: {error}.",
                remedy="Use the version of midwatch that serves it.",
            ) from error


_REMEDIES = {
    401: "Set MIDWATCH_TOKEN or --token-file; the run's folder has tokens in api/.",
    403: "Use the token of an operator.",
}


def _asked(request: InterventionRequested) -> dict[str, Any]:
    """Return the body for a request: its fields but for those that stand at their defaults."""
    fields: dict[str, Any] = msgspec.to_builtins(request)
    fields.pop("kind", None)
    return fields


def _require_web(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_web = parts.scheme in ("http", "https") and bool(parts.hostname)
        is_plain = parts.username is None and not parts.query and not parts.fragment
        _ = parts.port
    except ValueError:
        is_web = is_plain = False
    if not (is_web and is_plain):
        raise ConfigError(
            "url-invalid",
            "the address of a run is http://HOST:PORT or https://HOST:PORT, and nothing else.",
            remedy="Name tokens with MIDWATCH_TOKEN or --token-file, never in the address.",
        )


def _context(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            "ca-invalid", f"the certificates in {Path(ca_file)} cannot be used: {error}."
        ) from error
