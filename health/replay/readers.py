"""Points out of a recorded curve: CSV, JSONL, trainer_state.json, Megatron-LM or DeepSpeed logs."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ...logbook.errors import ConfigError
from ..numerics.point import Point
from .fields import FORMATS_READ, ReadOptions, find_columns, number, unreadable, whole
from .log_lines import looks_like_log, read_log

_SUFFIXES = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_SNIFFED_LINES = 2000
# What log lines have and the header of a table has not.
_PROSE = re.compile(r"[=|]|: ")


def read_points(path: Path, options: ReadOptions | None = None) -> Iterator[Point]:
    """Yield the points of the curve in path, in the order in which they were written.

    A step that goes back is left as it is: the panel takes it for a rollback.
    Raises: ConfigError[replay-unreadable] with the line and the reason.
    """
    options = options or ReadOptions()
    kind = options.format or _find_format(path)
    if kind == "csv":
        yield from _read_csv(path, options)
    elif kind == "jsonl":
        yield from _read_jsonl(path, options)
    elif kind == "hf":
        yield from _read_trainer_state(path)
    elif kind == "log":
        yield from read_log(_lines(path), str(path))
    else:
        raise ConfigError(
            "replay-map", f"unknown format {kind!r}.", remedy="Formats: csv, jsonl, hf, log."
        )


def _find_format(path: Path) -> str:
    if path.suffix.lower() in _SUFFIXES:
        return _SUFFIXES[path.suffix.lower()]
    first = ""
    for line_number, line in islice(_lines(path), _SNIFFED_LINES):
        if looks_like_log(line):
            return "log"
        if not first and line.strip():
            first = line.strip()
            if path.suffix.lower() == ".json" or (first == "{" and line_number == 1):
                return "hf"
    if not first:
        raise unreadable(str(path), 1, "the file is empty")
    if first.startswith("{'"):
        reason = "what the Hugging Face trainer prints carries no step"
        raise unreadable(str(path), 1, reason, "Give the trainer_state.json that it writes.")
    if first.startswith("{"):
        return "hf" if '"log_history"' in first else "jsonl"
    if "," in first and _PROSE.search(first):
        raise unreadable(str(path), 1, "neither a table nor a log of a known kind", FORMATS_READ)
    return "csv" if "," in first else "log"


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, text). Raises ConfigError when the file is missing or not text."""
    line_number = 0
    try:
        with path.open(encoding="utf-8") as stream:
            for line in stream:
                line_number += 1
                yield line_number, line
    except OSError as error:
        raise unreadable(str(path), 1, error.strerror or "cannot be opened") from error
    except UnicodeDecodeError as error:
        raise unreadable(str(path), line_number + 1, "not UTF-8 text") from error


def _read_csv(path: Path, options: ReadOptions) -> Iterator[Point]:
    source = str(path)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader((line for _, line in _lines(path)), delimiter=delimiter)
    try:
        header = next(reader, None)
        if header is None:
            raise unreadable(source, 1, "the file is empty")
        columns = find_columns(header, options, source)
        _check_where(header, options, source)
        builder = _Builder(columns, source)
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                reason = f"{len(cells)} cells where the header has {len(header)}"
                raise unreadable(source, reader.line_num, reason)
            row = dict(zip(header, cells, strict=True))
            if _is_wanted(row, options):
                yield builder.build(reader.line_num, row)
    except csv.Error as error:
        raise unreadable(source, reader.line_num, str(error)) from error


def _check_where(names: Iterable[str], options: ReadOptions, source: str) -> None:
    for column in options.where:
        if column not in names:
            raise unreadable(source, 1, f"no column {column!r} to select rows by")


def _is_wanted(row: Mapping[str, object], options: ReadOptions) -> bool:
    return all(str(row.get(column)) == value for column, value in options.where.items())


def _read_jsonl(path: Path, options: ReadOptions) -> Iterator[Point]:
    source = str(path)
    rows = [
        (line_number, _record(line, source, line_number))
        for line_number, line in _lines(path)
        if line.strip()
    ]
    names: dict[str, None] = {}
    for _, row in rows:
        names.update(dict.fromkeys(row))
    if not rows:
        raise unreadable(source, 1, "the file is empty")
    columns = find_columns(names, options, source)
    builder = _Builder(columns, source)
    told = set(columns.values()) - {columns["step"]}
    for line_number, row in rows:
        # Logs mix kinds of records; one without any column of ours is not about the curve.
        if told & row.keys() and _is_wanted(row, options):
            yield builder.build(line_number, row)


def _record(line: str, source: str, line_number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise unreadable(source, line_number, f"not JSON: {error.msg}") from error
    if not isinstance(record, dict):
        raise unreadable(source, line_number, "not a JSON object")
    return record


def _read_trainer_state(path: Path) -> Iterator[Point]:
    source = str(path)
    try:
        state = json.loads("".join(line for _, line in _lines(path)))
    except json.JSONDecodeError as error:
        raise unreadable(source, error.lineno, f"not JSON: {error.msg}") from error
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list):
        raise unreadable(source, 1, "no list log_history, which trainer_state.json has")
    columns = {"step": "step", "loss": "loss", "grad_norm": "grad_norm", "lr": "learning_rate"}
    builder = _Builder(columns, f"{source}, entry of log_history, counted as")
    for count, entry in enumerate(history, start=1):
        if not isinstance(entry, dict) or "loss" not in entry:
            continue
        point = builder.build(count, entry)
        # The trainer's own filter replaces a NaN loss by zero; the NaN gradient gives it away.
        norm = point.grad_norm
        if point.loss == 0.0 and norm is not None and not math.isfinite(norm):
            point.loss = math.nan
        yield point


class _Builder:
    """Turns rows into points, remembering the running total of skips."""

    def __init__(self, columns: Mapping[str, str], source: str) -> None:
        self._columns = columns
        self._source = source
        self._skipped_total: float | None = None

    def build(self, line_number: int, row: Mapping[str, object]) -> Point:
        """Return the point of one row. Raises ConfigError[replay-unreadable]."""
        try:
            step = whole(row.get(self._columns["step"]))
        except ValueError as error:
            column = self._columns["step"]
            raise unreadable(self._source, line_number, f"column {column!r}: {error}") from error
        value = {
            field: self._value(line_number, row, column)
            for field, column in self._columns.items()
            if field != "step"
        }
        return Point(
            step=step,
            loss=value.get("loss"),
            grad_norm=value.get("grad_norm"),
            loss_scale=value.get("loss_scale"),
            activation_norm=value.get("activation_norm"),
            lr=value.get("lr"),
            skipped=self._skips(value.get("skipped"), value.get("skipped_total")),
        )

    def _value(self, line_number: int, row: Mapping[str, object], column: str) -> float | None:
        try:
            return number(row.get(column))
        except ValueError:
            reason = f"column {column!r} has {row.get(column)!r}, which is not a number"
            raise unreadable(self._source, line_number, reason) from None

    def _skips(self, since: float | None, total: float | None) -> int:
        if total is not None:
            before, self._skipped_total = self._skipped_total, total
            return max(0, round(total - before)) if before is not None else round(total)
        return round(since) if since is not None and math.isfinite(since) else 0
