"""How commands answer: data to standard output, everything else to standard error."""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console

from ...logbook.errors import ConfigError, MidwatchError
from ...logbook.record import to_json
from .runs import NotFoundError

OK, FAILED, USAGE, NOT_FOUND, CONFLICT, TIMED_OUT = range(6)


class Output(enum.StrEnum):
    """The two shapes of an answer."""

    TEXT = "text"
    JSON = "json"


OutputOption = Annotated[
    Output, typer.Option("--output", "-o", help="text for people, json for programs")
]
RunArgument = Annotated[
    str | None, typer.Argument(help="Name or folder of a run; the newest one by default.")
]

# The real streams by name: sys.stdout is lent to a log file while Ray would print to it.
console = Console(file=sys.__stdout__)
err_console = Console(file=sys.__stderr__)
PLAIN_WIDTH = 240


def wide_console() -> Console:
    """Return where tables go: the terminal, or lines that no width breaks."""
    return console if console.is_terminal else Console(file=sys.__stdout__, width=PLAIN_WIDTH)


def print_json(value: Any) -> None:
    """Write one JSON document and a newline to standard output."""
    sys.stdout.buffer.write(to_json(value) + b"\n")
    sys.stdout.buffer.flush()


@contextmanager
def one_clear_error() -> Iterator[None]:
    """Turn an error of ours into one message on standard error and its exit status."""
    try:
        yield
    except MidwatchError as error:
        sys.stderr.write(f"midwatch: {error}\n")
        raise SystemExit(_status_of(error)) from None
    except BrokenPipeError:
        # The reader of our output has seen enough (`midwatch journal | head`).
        sys.stderr.close()
        raise SystemExit(OK) from None


_REFUSED = (
    "run-is-over",
    "run-over",
    "intervention-id-taken",
    "token-missing",
    "token-wrong",
    "role-too-low",
)
_STATUS_OF_CODE = {"timed-out": TIMED_OUT, **dict.fromkeys(_REFUSED, CONFLICT)}


def _status_of(error: MidwatchError) -> int:
    if isinstance(error, NotFoundError):
        return NOT_FOUND
    if error.code in _STATUS_OF_CODE:
        return _STATUS_OF_CODE[error.code]
    return USAGE if isinstance(error, ConfigError) else FAILED
