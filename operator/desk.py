"""The run folder as people meet it: requests come in as files, notes and evidence are laid down.

    <run_dir>/journal/    the write-ahead log
              requests/   one JSON file per request, written by the CLI, removed once journaled
              notes/      one Markdown note per incident, and the plot of its numbers
              evidence/   stack dumps
              logs/       output of controller, agents and workers
              checkpoints/
A request survives whatever the controller is doing, and needs nothing but the folder.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from ..logbook.chapter import Chapter, read_chapter
from ..logbook.decoding import prepared
from ..logbook.errors import ConfigError, MidwatchError
from ..logbook.events import Event, FaultInjected, InterventionRequested, NoteAdded
from ..logbook.notes import picture_line, render_note
from ..logbook.plots import plot_incident
from ..logbook.state import Incident, RunState

_log = logging.getLogger(__name__)
MAX_REQUEST_BYTES = 64 << 10
REQUEST_MODE = 0o644

Request = InterventionRequested | FaultInjected | NoteAdded
_decode = msgspec.json.Decoder(prepared(Request)).decode


class FileDesk:
    """The desk of one run, in its folder."""

    def __init__(self, run_dir: Path) -> None:
        self._journal = run_dir / "journal"
        self._requests = run_dir / "requests"
        self._notes = run_dir / "notes"
        self._evidence = run_dir / "evidence"
        for folder in (self._requests, self._notes, self._evidence):
            folder.mkdir(parents=True, exist_ok=True)
        self._taken: list[Path] = []
        self._unread: set[Path] = set()
        # Looked up once: thousands of dumps at once would each ask the file system.
        self._given = {path.name for path in self._evidence.iterdir()}
        # A hang of a large run brings a dump from every node at once, and its answer is urgent.
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="evidence")

    def requests(self) -> Sequence[Event]:
        """Return the requests that lie here, oldest first.

        What is no request is put aside. One that cannot be read just now stays for the next time.
        """
        found: list[Event] = []
        for path in sorted(self._requests.glob("*.json")):
            if path in self._taken:
                continue
            try:
                if path.stat().st_size > MAX_REQUEST_BYTES:
                    raise ValueError(f"larger than {MAX_REQUEST_BYTES} bytes")
                found.append(_decode(path.read_bytes()))
            except FileNotFoundError:
                continue
            except ValueError as error:
                path.with_suffix(".refused").write_text(f"{error}\n")
                path.unlink(missing_ok=True)
                continue
            except OSError as error:
                # The file system's trouble says nothing about what somebody asked for.
                if path not in self._unread:
                    self._unread.add(path)
                    _log.warning("a request waits, it cannot be read: %s", error)
                continue
            self._unread.discard(path)
            self._taken.append(path)
        return found

    def settled(self) -> None:
        """Remove the requests that are journaled."""
        for path in self._taken:
            path.unlink(missing_ok=True)
        self._taken.clear()

    def write_note(self, state: RunState, incident: Incident) -> None:
        """Write or rewrite the note of an incident and its plot, each atomically."""
        path = note_path(self._notes.parent, incident.draft.id)
        chapter = self._chapter(incident)
        plot = plot_path(self._notes.parent, incident.draft.id)
        if chapter.samples:
            _write_atomically(plot, plot_incident(incident, chapter).encode())
        picture = plot.name if chapter.samples else ""
        _write_atomically(path, render_note(state, incident, chapter, picture).encode())

    def _chapter(self, incident: Incident) -> Chapter:
        try:
            return read_chapter(self._journal, incident)
        except (MidwatchError, OSError):
            # A journal that cannot be read just now is somebody else's to report: what the state
            # holds makes a note all the same.
            return Chapter()

    def attach(self, name: str, text: str) -> str:
        """Keep a piece of evidence under a name of its own; return its path.

        It is written soon, on a thread of its own.
        """
        free, stem, suffix = name, Path(name).stem, Path(name).suffix
        for number in range(2, 1000):
            if free not in self._given:
                break
            free = f"{stem}-{number}{suffix}"
        self._given.add(free)
        path = self._evidence / free
        self._writer.submit(_write_evidence, path, text)
        return str(path)

    def close(self) -> None:
        """Wait until all evidence is written."""
        self._writer.shutdown()


def note_path(run_dir: Path, incident: str) -> Path:
    """Return where the note of an incident lies."""
    return run_dir / "notes" / f"{incident}.md"


def plot_path(run_dir: Path, incident: str) -> Path:
    """Return where the plot of an incident's numbers lies, once there are any."""
    return note_path(run_dir, incident).with_suffix(".svg")


def note_text(run_dir: Path, state: RunState, incident: Incident, picture: str = "") -> str:
    """Return the note of an incident: the file, or what the journal makes of it where it is gone.

    picture: the address of its plot for whoever reads elsewhere; "" for the file beside the note.
    Raises: as reader.read.
    """
    name = incident.draft.id
    plot = plot_path(run_dir, name)
    try:
        text = note_path(run_dir, name).read_text(encoding="utf-8")
    except OSError:
        chapter = read_chapter(run_dir / "journal", incident)
        beside = plot.name if plot.is_file() else ""
        return render_note(state, incident, chapter, (picture or beside) if chapter.samples else "")
    if picture:
        # The first line of its kind is the note's own: what people add is quoted.
        text = text.replace(picture_line(name, plot.name), picture_line(name, picture), 1)
    return text


def plot_text(run_dir: Path, incident: Incident) -> str:
    """Return the plot of an incident as SVG: the file, or drawn anew from the journal; "" for none.

    Raises: as reader.read.
    """
    try:
        return plot_path(run_dir, incident.draft.id).read_text(encoding="utf-8")
    except OSError:
        chapter = read_chapter(run_dir / "journal", incident)
        return plot_incident(incident, chapter) if chapter.samples else ""


def post_request(run_dir: Path, request: Request, *, time_s: float) -> None:
    """Lay a request on the desk of a run.

    What the desk would put aside is refused here, where somebody is told of it.
    Raises: ConfigError[no-such-run, request-too-large, request-unreadable].
    """
    folder = run_dir / "requests"
    if not folder.is_dir():
        raise ConfigError(
            "no-such-run",
            f"{run_dir} is not the folder of a run.",
            remedy="Name a run under runs/, or the run's folder.",
        )
    name = f"{time_s:017.6f}-{secrets.token_hex(4)}.json"
    # The controller may be another user than whoever asks, of any umask.
    _write_atomically(folder / name, _encoded(request), REQUEST_MODE)


def _encoded(request: Request) -> bytes:
    try:
        data = msgspec.json.encode(request)
        is_same = _decode(data) == request
    except (UnicodeError, msgspec.ValidationError):
        is_same = False
    if not is_same:
        # JSON has no word for such numbers: the controller would find nothing in their place.
        raise ConfigError(
            "request-unreadable",
            "a number of the request is not finite, or a text is not Unicode.",
            remedy="Give plain numbers and text.",
        )
    if len(data) > MAX_REQUEST_BYTES:
        raise ConfigError(
            "request-too-large",
            f"the request has {len(data)} bytes, of {MAX_REQUEST_BYTES} at most.",
            remedy="Say it in fewer words.",
        )
    return data


def _write_evidence(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        _log.warning("evidence is lost: %s cannot be written: %s", path, error)


def _write_atomically(path: Path, data: bytes, mode: int | None = None) -> None:
    """Write a file in one piece. mode: its permissions, None for what the umask leaves."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(data)
    if mode is not None:
        draft.chmod(mode)
    draft.replace(path)
