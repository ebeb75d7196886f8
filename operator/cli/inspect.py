"""Commands that read a run: status, journal, notes. They need its folder, or its address."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.markdown import Markdown

from ...logbook.errors import ConfigError
from ...logbook.live_view import render_summary
from ...logbook.render_text import Filters, known_kinds, line_of
from .output import Output, OutputOption, RunArgument, console, print_json
from .places import (
    FolderPlace,
    Patient,
    Place,
    ServedPlace,
    TokenFileOption,
    UrlOption,
    place_of,
)
from .remarks import TimeoutOption, add_remark, send_remark

FOLLOW_POLL_S = 0.2


def status(
    run: RunArgument = None,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Say how a run stands: what it is doing and why, figures, incidents."""
    place = place_of(run, url, token_file)
    found = place.status()
    if output is Output.JSON:
        print_json(found)
        return
    console.print(found.doing)
    if found.silent:
        console.print(found.silent, style="bold red")
    console.print(render_summary(found.summary, place.where()))


def journal(
    run: RunArgument = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as records appear.")
    ] = False,
    kind: Annotated[list[str] | None, typer.Option(help="Only these kinds of event.")] = None,
    since: Annotated[int, typer.Option(help="Start at this sequence number.", min=1)] = 1,
    attempt: Annotated[int | None, typer.Option(help="Only events of this attempt.")] = None,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Print the journal, one event a line; -o json gives one object a line, for jq."""
    unknown = sorted(set(kind or ()) - set(known_kinds()))
    if unknown:
        remedy = f"Known: {', '.join(known_kinds())}."
        raise ConfigError("usage", f"no event is of kind {', '.join(unknown)}.", remedy=remedy)
    filters = Filters(kinds=frozenset(kind or ()), since_seq=since, attempt=attempt)
    patient = Patient(place_of(run, url, token_file).records(since))
    poll = patient.poll if follow else patient.records.poll
    while True:
        records = poll()
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
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    timeout_s: TimeoutOption = 30.0,
    output: OutputOption = Output.TEXT,
) -> None:
    """List the incidents of a run with the paths of their notes, print one note, or add to it."""
    place = place_of(run, url, token_file)
    if add is not None:
        if isinstance(place, FolderPlace):
            add_remark(place.folder, add, incident, timeout_s, output)
        elif isinstance(place, ServedPlace):
            send_remark(place.client, add, incident, output)
        return
    if incident is not None:
        _print_note(place, incident, output)
        return
    rows = [(row, place.note_at(row.id)) for row in place.incidents()]
    if output is Output.JSON:
        print_json([{"incident": row, "note": note} for row, note in rows])
        return
    for row, note in rows:
        print(f"{row.id}  {row.fault:18}  step {row.step:<8}  {row.outcome or 'open'}  {note}")


def _print_note(place: Place, incident: str, output: Output) -> None:
    text = place.note(incident)
    if output is Output.JSON:
        path = place.note_at(incident)
        print_json({"incident": incident, "path": path, "markdown": text})
    elif console.is_terminal:
        console.print(Markdown(text))
    else:
        print(text)
