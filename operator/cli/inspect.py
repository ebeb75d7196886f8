"""Commands that read a run: status, journal, notes. They need nothing but its folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markdown import Markdown

from ...logbook import events as ev
from ...logbook.chapter import read_chapter
from ...logbook.errors import ConfigError
from ...logbook.live_view import doing_text, render_summary
from ...logbook.notes import render_note
from ...logbook.reader import Follower
from ...logbook.render_text import Filters, known_kinds, line_of
from ...logbook.summary import summarize
from ..desk import note_path
from .output import Output, OutputOption, RunArgument, console, print_json
from .remarks import TimeoutOption, add_remark
from .runs import NotFoundError, find_run, load_state

FOLLOW_POLL_S = 0.2


def status(run: RunArgument = None, output: OutputOption = Output.TEXT) -> None:
    """Say how a run stands: what it is doing and why, figures, incidents."""
    folder = find_run(run)
    state = load_state(folder)
    summary = summarize(state, time.time())
    if output is Output.JSON:
        print_json({"doing": doing_text(state), "seq": state.seq, "summary": summary})
        return
    console.print(doing_text(state))
    console.print(render_summary(summary, [("folder", str(folder))]))


def journal(
    run: RunArgument = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as records appear.")
    ] = False,
    kind: Annotated[list[str] | None, typer.Option(help="Only these kinds of event.")] = None,
    since: Annotated[int, typer.Option(help="Start at this sequence number.")] = 1,
    attempt: Annotated[int | None, typer.Option(help="Only events of this attempt.")] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Print the journal, one event a line; -o json gives one object a line, for jq."""
    unknown = sorted(set(kind or ()) - set(known_kinds()))
    if unknown:
        remedy = f"Known: {', '.join(known_kinds())}."
        raise ConfigError("usage", f"no event is of kind {', '.join(unknown)}.", remedy=remedy)
    filters = Filters(kinds=frozenset(kind or ()), since_seq=since, attempt=attempt)
    follower: Follower[ev.Event] = Follower(find_run(run) / "journal", ev.Event, from_seq=since)
    while True:
        records = follower.poll()
        for record in records:
            if not filters.match(record):
                continue
            if output is Output.JSON:
                print_json(record)
            else:
                print(line_of(record), flush=follow)
        if not records:
            if not follow:
                return
            time.sleep(FOLLOW_POLL_S)


def notes(
    run: RunArgument = None,
    incident: Annotated[
        str | None, typer.Option(help="Print the whole note of one incident.")
    ] = None,
    add: Annotated[
        str | None, typer.Option(help="Add this to the incident's note, or to the run's record.")
    ] = None,
    timeout_s: TimeoutOption = 30.0,
    output: OutputOption = Output.TEXT,
) -> None:
    """List the incidents of a run with the paths of their notes, print one note, or add to it."""
    folder = find_run(run)
    if add is not None:
        add_remark(folder, add, incident, timeout_s, output)
        return
    if incident is not None:
        _print_note(folder, incident, output)
        return
    summary = summarize(load_state(folder), time.time())
    rows = [(row, note_path(folder, row.id)) for row in summary.incidents]
    if output is Output.JSON:
        print_json([{"incident": row, "note": str(path)} for row, path in rows])
        return
    for row, path in rows:
        print(f"{row.id}  {row.fault:18}  step {row.step:<8}  {row.outcome or 'open'}  {path}")


def _note_of(folder: Path, incident: str) -> str:
    """Return the note of an incident whose file is not there: from the journal, as it was made."""
    state = load_state(folder)
    known = state.incidents.get(incident)
    if known is None:
        raise NotFoundError(
            "no-such-incident",
            f"the run has no incident {incident!r}.",
            remedy="`midwatch notes` lists them.",
        )
    return render_note(state, known, read_chapter(folder / "journal", known))


def _print_note(folder: Path, incident: str, output: Output) -> None:
    path = note_path(folder, incident)
    text = path.read_text(encoding="utf-8") if path.is_file() else _note_of(folder, incident)
    if output is Output.JSON:
        print_json({"incident": incident, "path": str(path), "markdown": text})
    elif console.is_terminal:
        console.print(Markdown(text))
    else:
        print(text)
