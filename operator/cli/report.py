"""midwatch report: what a run amounts to, as one HTML file and as Markdown."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ...logbook.chronicle import Chronicle, read_chronicle
from ...logbook.document import Figure, to_html, to_markdown
from ...logbook.errors import ConfigError
from ...logbook.failures import failures_by_fault
from ...logbook.report import render_report
from ...logbook.summary import summarize
from .output import Output, OutputOption, RunArgument, print_json
from .places import FolderPlace, Place, all_records, place_of


def report(
    run: RunArgument = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; RUN/report by default.")
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Write the report of a run: report.html, one file that needs nothing else, and report.md."""
    place = place_of(run, None, None)
    target = _target(place, out)
    chronicle = read_chronicle(all_records(place))
    now_s, alive_s = time.time(), place.alive_s()
    title, blocks = render_report(chronicle, now_s, alive_s)
    files = {target / "report.html": to_html(title, blocks)}
    files[target / "report.md"] = to_markdown(title, blocks, "figures")
    for block in blocks:
        if isinstance(block, Figure):
            files[target / "figures" / f"{block.name}.svg"] = block.svg
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            "report-not-written",
            f"cannot write {error.filename or target}: {error.strerror}.",
            remedy="Name a folder that can be written with --out.",
        ) from error
    if output is Output.JSON:
        files_at = {"html": str(target / "report.html"), "markdown": str(target / "report.md")}
        print_json({**files_at, **_data(chronicle, now_s, alive_s)})
        return
    for name in ("report.html", "report.md"):
        print(target / name)


def _target(place: Place, out: Path | None) -> Path:
    if out is not None:
        return out.absolute()
    if isinstance(place, FolderPlace):
        return (place.folder / "report").absolute()
    raise ConfigError("usage", "say with --out where the report of a served run goes.")


def _data(chronicle: Chronicle, now_s: float, alive_s: float) -> dict[str, object]:
    state = chronicle.state
    end_s = state.ended_s if state.ended_s is not None else now_s
    summary = summarize(state, now_s)
    return {
        "summary": summary,
        "gpu_seconds": {c.value: s for c, s in chronicle.ledger.totals(end_s, alive_s).items()},
        "heard_s": max(state.time_s, alive_s),
        "faults": failures_by_fault(state, summary),
        "attempts": chronicle.attempts,
    }
