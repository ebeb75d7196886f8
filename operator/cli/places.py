"""Where a run is read: in its folder, or at the address where somebody serves it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol
from urllib.parse import urlsplit

import typer

from ...logbook import events as ev
from ...logbook.errors import ConfigError, Retryable
from ...logbook.live_status import RunStatus, status_now
from ...logbook.pulse import pulse_s
from ...logbook.reader import Follower, Rewound
from ...logbook.record import Record
from ...logbook.state import RunState
from ...logbook.summary import IncidentRow, summarize
from ..desk import note_path, note_text
from .runs import NotFoundError, StateFollower, find_run, load_state

if TYPE_CHECKING:
    from ..api.client import ApiClient

URL, TOKEN, TOKEN_FILE, CA_FILE = (
    "MIDWATCH_URL",
    "MIDWATCH_TOKEN",
    "MIDWATCH_TOKEN_FILE",
    "MIDWATCH_CA_FILE",
)
LOOPBACK = ("localhost", "127.0.0.1", "::1")

UrlOption = Annotated[
    str | None, typer.Option("--url", help=f"Where the run is served; {URL} when no RUN is named.")
]
TokenFileOption = Annotated[
    Path | None, typer.Option("--token-file", help=f"Holds the token; {TOKEN} by default.")
]


class Following(Protocol):
    """A run that is folded as it goes on."""

    state: RunState

    def poll(self) -> Sequence[Record[ev.Event]]:
        """Fold everything new and return it."""
        ...


class Records(Protocol):
    """Records in their order, each once."""

    def poll(self) -> Sequence[Record[ev.Event]]:
        """Return the next ones, none when nothing is new."""
        ...


class Place(Protocol):
    """A run that can be read."""

    def where(self) -> list[tuple[str, str]]:
        """Return what to say of where it is, as rows of a table."""
        ...

    def status(self) -> RunStatus: ...

    def alive_s(self) -> float:
        """Return when its controller last gave a sign of life, 0.0 where that is not known."""
        ...

    def state(self) -> RunState: ...

    def following(self) -> Following: ...

    def records(self, since: int) -> Records:
        """Return the records from a sequence number on."""
        ...

    def incidents(self) -> Sequence[IncidentRow]: ...

    def note(self, incident: str) -> str:
        """Return the note of an incident. Raises: NotFoundError[no-such-incident]."""
        ...

    def note_at(self, incident: str) -> str:
        """Return where the note of an incident is found."""
        ...


class FolderPlace:
    """A run in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def where(self) -> list[tuple[str, str]]:
        # Here alone: other commands, the screen above all, do not wait for what it imports.
        from ..api.endpoint import read_endpoint

        endpoint = read_endpoint(self.folder)
        is_known_dead = endpoint is not None and endpoint.is_here and not endpoint.is_alive
        served = [("served at", endpoint.url)] if endpoint and not is_known_dead else []
        return [("folder", str(self.folder)), *served]

    def status(self) -> RunStatus:
        return status_now(self.state(), time.time(), self.alive_s())

    def alive_s(self) -> float:
        return pulse_s(self.folder / "journal")

    def state(self) -> RunState:
        return load_state(self.folder)

    def following(self) -> Following:
        return StateFollower(self.folder)

    def records(self, since: int) -> Records:
        return Follower(self.folder / "journal", ev.Event, from_seq=since)

    def incidents(self) -> Sequence[IncidentRow]:
        return summarize(self.state(), time.time()).incidents

    def note(self, incident: str) -> str:
        state = self.state()
        known = state.incidents.get(incident)
        if known is None:
            raise NotFoundError(
                "no-such-incident",
                f"the run has no incident {incident!r}.",
                remedy="`midwatch notes` lists them.",
            )
        return note_text(self.folder, state, known)

    def note_at(self, incident: str) -> str:
        return str(note_path(self.folder, incident))


class ServedPlace:
    """A run that is served somewhere."""

    def __init__(self, client: ApiClient) -> None:
        self.client = client

    def where(self) -> list[tuple[str, str]]:
        return [("served at", self.client.url)]

    def status(self) -> RunStatus:
        return self.client.status()

    def alive_s(self) -> float:
        return self.client.status().heard_s

    def state(self) -> RunState:
        return self.client.state()

    def following(self) -> Following:
        from ..api.remote_run import RemoteState

        return RemoteState(self.client)

    def records(self, since: int) -> Records:
        from ..api.remote_run import RemoteJournal

        return RemoteJournal(self.client, since - 1)

    def incidents(self) -> Sequence[IncidentRow]:
        return self.client.incidents()

    def note(self, incident: str) -> str:
        return self.client.note(incident)

    def note_at(self, incident: str) -> str:
        return f"{self.client.url}/v1/incidents/{incident}/note"


class Patient:
    """Records of a place that may be out of reach for a while: said once, and tried again."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self._trouble = ""

    def poll(self) -> Sequence[Record[ev.Event]]:
        """Return the next records, none while they are out of reach."""
        try:
            found = self.records.poll()
        except Rewound:
            raise
        except Retryable as error:
            if not self._trouble:
                typer.echo(f"midwatch: {error}", err=True)
            self._trouble = str(error)
            time.sleep(error.delay_s)
            return ()
        if self._trouble:
            typer.echo("midwatch: it answers again", err=True)
            self._trouble = ""
        return found


def place_of(run: str | None, url: str | None, token_file: Path | None) -> Place:
    """Return the run that a command names: RUN, else --url, else MIDWATCH_URL, else the newest.

    Raises: ConfigError[usage, token-unreadable, url-invalid, ca-invalid];
        NotFoundError[no-such-run].
    """
    client = client_of(run, url, token_file)
    return ServedPlace(client) if client is not None else FolderPlace(find_run(run))


def folder_of(run: str | None) -> Path:
    """Return the folder of the run that a command names, where it can be read nowhere else.

    Raises: ConfigError[needs-folder] for a served run, so that no other is taken for it;
        NotFoundError[no-such-run].
    """
    if is_address(run) or (run is None and os.environ.get(URL)):
        raise ConfigError(
            "needs-folder",
            f"this needs the folder of a run, and {run or os.environ[URL]} is an address.",
            remedy=f"Name a run whose folder lies here, or unset {URL}.",
        )
    return find_run(run)


def is_address(run: str | None) -> bool:
    """Whether RUN is where a run is served."""
    return run is not None and run.startswith(("http://", "https://"))


def all_records(place: Place) -> Iterator[Record[ev.Event]]:
    """Yield every record that there is now, in order."""
    records = place.records(1)
    while batch := records.poll():
        yield from batch


def client_of(
    run: str | None, url: str | None = None, token_file: Path | None = None
) -> ApiClient | None:
    """Return the way to a served run, None where a command means one in a folder.

    RUN may be the address itself. Raises: ConfigError[usage, token-unreadable, url-invalid,
        ca-invalid]; NotFoundError[no-such-run].
    """
    if is_address(run) and url is None:
        run, url = None, run
    if run is not None and url is not None:
        raise ConfigError("usage", "give RUN or --url, not both.")
    wanted = url or (os.environ.get(URL) if run is None else None)
    if not wanted:
        return None
    # Here alone: the HTTP client takes its time to load, and folders need none.
    from ..api.client import Access, ApiClient

    token = _token(token_file)
    parts = urlsplit(wanted)
    if token and parts.scheme == "http" and parts.hostname not in LOOPBACK:
        typer.echo(f"midwatch: the token goes to {parts.hostname} unencrypted", err=True)
    return ApiClient(Access(wanted, token, os.environ.get(CA_FILE, "")))


def _token(token_file: Path | None) -> str:
    path = token_file or os.environ.get(TOKEN_FILE)
    if path is None:
        return os.environ.get(TOKEN, "").strip()
    try:
        text = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "token-unreadable", f"there is no token to be read in {path}: {error}."
        ) from error
    return text
