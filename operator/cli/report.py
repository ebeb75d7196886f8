"""midwatch report: what a run amounts to, as one HTML file and as Markdown."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ...logbook import events as ev
from ...logbook.chronicle import Chronicle, read_chronicle
from ...logbook.document import Figure, to_html, to_markdown
from ...logbook.errors import ConfigError
from ...logbook.failures import failures_by_fault
from ...logbook.reader import read
from ...logbook.report import render_report
from ...logbook.summary import summarize
from .output import Output, OutputOption, RunArgument, print_json
from .places import folder_of


def report(
    run: RunArgument = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; RUN/report by default.")
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Write the report of a run: report.html, one file that needs nothing else, and report.md."""
    folder = folder_of(run)
    chronicle = read_chronicle(read(folder / "journal", ev.Event))
    now_s = time.time()
    title, blocks = render_report(chronicle, now_s)
    target = (out or folder / "report").absolute()
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
        print_json(_data(chronicle, now_s, target))
        return
    for name in ("report.html", "report.md"):
        print(target / name)


def _data(chronicle: Chronicle, now_s: float, target: Path) -> dict[str, object]:
    state = chronicle.state
    end_s = state.ended_s if state.ended_s is not None else now_s
    summary = summarize(state, now_s)
    return {
        "html": str(target / "report.html"),
        "markdown": str(target / "report.md"),
        "summary": summary,
        "gpu_seconds": {c.value: s for c, s in chronicle.ledger.totals(end_s).items()},
        "faults": failures_by_fault(chronicle, summary, end_s),
        "attempts": chronicle.attempts,
    }
