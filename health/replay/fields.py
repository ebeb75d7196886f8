"""Which column of a recorded curve is what: names people use, and how their values are read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

import msgspec

from ...logbook.errors import ConfigError

FIELDS = (
    "step",
    "loss",
    "grad_norm",
    "loss_scale",
    "activation_norm",
    "lr",
    "skipped",
    "skipped_total",
)

# Compared in lower case with every run of other characters as one space; best name first.
_NAMES: dict[str, tuple[str, ...]] = {
    "step": (
        "step", "training step", "train step", "global step", "train global step", "iteration",
        "iter", "num updates", "update", "idx",
    ),
    "loss": (
        "loss", "train loss", "training loss", "lm loss", "step loss", "loss per tok",
        "reduced train loss",
    ),
    "grad_norm": ("grad norm", "gnorm", "gradient norm", "train grad norm", "global grad norm"),
    "loss_scale": ("loss scale", "scale", "grad scale"),
    "activation_norm": ("activation norm", "actv norm", "act norm"),
    "lr": ("lr", "learning rate", "train learning rate", "train lr"),
    "skipped": ("skipped", "found inf", "overflow", "skipped iterations"),
    "skipped_total": ("skipped total", "skipped steps", "skipped steps cum", "skipped steps total"),
}  # fmt: skip


FORMATS_READ = (
    "Read are tables (csv, jsonl; --map names columns), Hugging Face's trainer_state.json (hf) and "
    "the lines of Megatron-LM and DeepSpeed (log); --format names one. Write other logs as a table."
)


class ReadOptions(msgspec.Struct, frozen=True):
    """How to read a file.

    columns: field -> column, for files whose columns have names of their own.
    where: column -> value; rows that differ are left out (a file may hold several runs).
    format: "csv", "jsonl", "hf" (trainer_state.json) or "log"; None finds out.
    """

    columns: Mapping[str, str] = {}
    where: Mapping[str, str] = {}
    format: str | None = None


def unreadable(source: str, line: int, reason: str, remedy: str = "") -> ConfigError:
    """Return the error for input that cannot be read, naming the line and the reason."""
    return ConfigError("replay-unreadable", f"{source}, line {line}: {reason}.", remedy=remedy)


def parse_map(pairs: Iterable[str]) -> dict[str, str]:
    """Return field -> column from words such as "loss=train_loss".

    Raises: ConfigError[replay-map] for a word without "=" or an unknown field.
    """
    columns: dict[str, str] = {}
    for pair in pairs:
        field, equals, column = pair.partition("=")
        if not equals or not column or field not in FIELDS:
            raise ConfigError(
                "replay-map",
                f"{pair!r} is not FIELD=COLUMN with a known field.",
                remedy=f"Fields: {', '.join(FIELDS)}.",
            )
        columns[field] = column
    return columns


def find_columns(header: Iterable[str], options: ReadOptions, source: str) -> dict[str, str]:
    """Return field -> column for the columns that are there.

    Raises: ConfigError[replay-unreadable] when a mapped or a needed column is missing.
    """
    names = list(header)
    by_plain: dict[str, str] = {}
    for name in names:
        by_plain.setdefault(_plain(name), name)
    found: dict[str, str] = {}
    for field in FIELDS:
        if field in options.columns:
            column = options.columns[field]
            if column not in names:
                raise unreadable(source, 1, f"no column {column!r}", _columns_are(names))
            found[field] = column
        else:
            match = next((by_plain[n] for n in _NAMES[field] if n in by_plain), None)
            if match is not None:
                found[field] = match
    _check_needed(found, names, source)
    return found


def _check_needed(found: Mapping[str, str], names: list[str], source: str) -> None:
    if "step" not in found:
        raise unreadable(
            source, 1, "no column with the step", f"Add --map step=COLUMN. {_columns_are(names)}"
        )
    if not set(found) - {"step", "lr"}:
        raise unreadable(
            source, 1, "no column with a loss, norm, loss scale or skips",
            f"Add --map loss=COLUMN. {_columns_are(names)}",
        )  # fmt: skip


def _columns_are(names: list[str]) -> str:
    return f"Columns: {', '.join(names[:30])}."


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", name.lower()).strip()


def number(value: object) -> float | None:
    """Return value as a float, None for an absent one; "nan" and "inf" are values.

    Raises: ValueError for anything else.
    """
    if value is None or isinstance(value, float):
        return value
    if isinstance(value, int):
        return float(value)
    if isinstance(value, str):
        text = value.strip()
        return float(text) if text else None
    raise ValueError(f"{value!r} is not a number")


def whole(value: object) -> int:
    """Return value as a step. Raises: ValueError when it is absent, negative or not finite."""
    found = number(value)
    if found is None or not math.isfinite(found) or found < 0:
        raise ValueError(f"{value!r} is not a step")
    return round(found)
