"""How the API says no: one shape for every error, with the status that HTTP has for it."""

from __future__ import annotations

import msgspec

from ...logbook.errors import ConfigError, MidwatchError
from ..cli.runs import NotFoundError

STATUSES = (400, 401, 403, 404, 405, 409, 413, 415, 422, 429, 500, 503)


class ErrorDocument(msgspec.Struct, frozen=True):
    """What every refused request is answered with. remedy: what to do next, "" when nothing."""

    code: str
    message: str
    remedy: str = ""


class Refusal(MidwatchError):
    """An answer with a status of HTTP, as the server gives it and as the client gets it."""

    def __init__(self, status: int, code: str, message: str, *, remedy: str = "") -> None:
        super().__init__(code, message, remedy=remedy)
        self.status = status

    @property
    def is_passing(self) -> bool:
        """Whether the same request may be answered later."""
        return self.status in (429, 503)


def status_of(error: MidwatchError) -> int:
    """Return the status that an error is answered with.

    What is wrong with the folder of the run is no fault of whoever asks: 503.
    """
    if isinstance(error, Refusal):
        return error.status
    if isinstance(error, NotFoundError):
        return 404
    return 422 if isinstance(error, ConfigError) else 503


def document_of(error: MidwatchError) -> ErrorDocument:
    """Return what an error is answered with."""
    return ErrorDocument(error.code, error.message, error.remedy)
