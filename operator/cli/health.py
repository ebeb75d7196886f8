"""Commands that judge what is recorded: xid, classify, replay. They need no run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ...health.nodes.failure_text import classify as classify_text
from ...health.nodes.xid import answer, explain
from ...health.numerics.point import Point
from ...health.replay.fields import ReadOptions, parse_map
from ...health.replay.readers import read_points
from ...health.replay.replay import ReplayRow, to_json
from ...health.replay.replay import replay as replay_points
from ...logbook.errors import ConfigError
from ..hindsight import Hindsight, default_spec
from ..spec import RunSpec
from .output import Output, OutputOption, print_json
from .runs import NotFoundError

STDIN = "-"
TEXT_BYTES_MAX = 64 << 20

MapOption = Annotated[
    list[str] | None,
    typer.Option("--map", help="FIELD=COLUMN, e.g. loss=train_loss; may be repeated."),
]
WhereOption = Annotated[
    list[str] | None,
    typer.Option("--where", help="COLUMN=VALUE; only rows that have it, e.g. run=7."),
]


def xid(
    code: Annotated[int, typer.Argument(help="The number after 'Xid' in the kernel log.")],
    output: OutputOption = Output.TEXT,
) -> None:
    """Explain an XID: what it is, what to do with the node, and who says so."""
    fact = explain(code)
    if output is Output.JSON:
        print_json(answer(fact))
        return
    print(f"XID {fact.code}: {fact.name}")
    print(f"action: {fact.action} ({_MEANING[fact.action]})")
    print(f"blame:  {fact.blame}" + (f"; failure label {fact.label}" if fact.known else ""))
    print(f"source: {fact.source}")
    if fact.why:
        print(f"why:    {fact.why}")


def classify(
    file: Annotated[str, typer.Argument(help="A traceback or log; - reads standard input.")],
    output: OutputOption = Output.TEXT,
) -> None:
    """Say what a failure text is about, whose fault it is and what to do."""
    found = classify_text(_read_text(file))
    if output is Output.JSON:
        print_json(found)
        return
    print(f"{found.label} (confidence {found.confidence:.2f})")
    print(f"blame:  {found.blame}")
    print(f"action: {found.action} ({_MEANING[found.action]})")
    for line in found.lines:
        print(f"{line.number:>7}: {line.text.strip()}")


def replay(
    file: Annotated[
        Path | None, typer.Argument(help="CSV, JSONL, trainer_state.json or a training log.")
    ] = None,
    column_map: MapOption = None,
    where: WhereOption = None,
    format: Annotated[
        str | None, typer.Option(help="csv, jsonl, hf or log; found out by default.")
    ] = None,
    spec: Annotated[
        Path | None, typer.Option(help="Take thresholds and LR ladder from this run spec.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write a picture of the curve and its findings here.")
    ] = None,
    incidents: Annotated[
        Path | None, typer.Option(help="Instead: a CSV of incidents, each with what people did.")
    ] = None,
    curve: Annotated[
        Path | None, typer.Option(help="With --incidents: digitised panels of the run's curve.")
    ] = None,
    gaps: Annotated[
        Path | None, typer.Option(help="With --incidents: the gaps between stretches of training.")
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Run detectors and policy over a recorded curve: what would have been seen and decided.

    With --incidents, what is decided in each of them beside what people did and what came of it.
    """
    if incidents is not None:
        from .incidents import replay_incidents

        replay_incidents(incidents, curve, gaps, output)
        return
    if file is None:
        raise ConfigError("usage", "there is nothing to replay.", remedy="Name a curve to replay.")
    options = ReadOptions(columns=parse_map(column_map or ()), where=_pairs(where), format=format)
    settings = _settings(spec)
    points = list(read_points(file, options))
    if not points:
        raise ConfigError(
            "replay-unreadable", f"{file}, line 1: there is no point of a curve in it."
        )
    rows = []
    hindsight = Hindsight(settings)
    for row in replay_points(hindsight.follow(points), settings.detectors, hindsight.decide):
        rows.append(row)
        print(to_json(row) if output is Output.JSON else _row_text(row))
    if output is Output.TEXT:
        print(_sum_up(points, rows))
    if plot is not None:
        _draw(points, rows, plot, file.name)


def _settings(spec: Path | None) -> RunSpec:
    if spec is None:
        return default_spec()
    # The trainer's model takes a moment to import; a replay without a spec must not pay for it.
    from ..spec_file import load_spec

    return load_spec(spec)


def _read_text(file: str) -> str:
    """Return what stands in file; bytes that are no text are replaced, never refused."""
    if file == STDIN:
        return sys.stdin.buffer.read(TEXT_BYTES_MAX).decode("utf-8", "replace")
    try:
        with Path(file).open("rb") as stream:
            return stream.read(TEXT_BYTES_MAX).decode("utf-8", "replace")
    except FileNotFoundError as error:
        raise NotFoundError("no-such-file", f"there is no file {file}.") from error
    except OSError as error:
        raise ConfigError("text-unreadable", f"{file} cannot be read: {error.strerror}.") from error


def _pairs(words: Sequence[str] | None) -> dict[str, str]:
    pairs = {}
    for word in words or ():
        column, equals, value = word.partition("=")
        if not equals or not column:
            raise ConfigError("usage", f"--where {word!r} is not COLUMN=VALUE.")
        pairs[column] = value
    return pairs


def _row_text(row: ReplayRow) -> str:
    since = f" since {row.onset_step}" if row.onset_step != row.step else ""
    factor = f", remaining LR x{row.lr_factor:g}" if row.lr_factor != 1.0 else ""
    what = f"{row.kind}{since}: {row.value:.6g} against {row.reference:.6g}"
    return f"step {row.step:<8} {row.severity:8} {what} ({row.detector}); {row.decision}{factor}"


def _sum_up(points: Sequence[Point], rows: Sequence[ReplayRow]) -> str:
    counts = {name: sum(row.severity == name for row in rows) for name in _SEVERITIES}
    found = ", ".join(f"{count} {name}" for name, count in counts.items())
    decided = sum(row.decision == "rollback" for row in rows)
    span = f"steps {points[0].step} to {points[-1].step}"
    return f"{len(points)} points, {span}: {found}; {decided} rollbacks decided"


def _draw(points: Sequence[Point], rows: Sequence[ReplayRow], path: Path, title: str) -> None:
    from ...health.replay.plot import save_plot

    save_plot(points, rows, path, title=title)
    print(f"picture: {path}", file=sys.stderr)


_SEVERITIES = ("observe", "warn", "rollback")
_MEANING = {
    "ignore": "nothing is wrong",
    "watch": "write it down; it counts when it repeats",
    "restart": "a new attempt on the same nodes",
    "rollback": "a new attempt from an earlier checkpoint",
    "stop": "hold the run for a person: the same would fail again",
    "drain": "leave the node out at the next restart",
    "evict": "replace the node now",
}
