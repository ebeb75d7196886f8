"""A picture of a replayed curve with its findings marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...logbook.errors import ConfigError
from ..numerics.point import Point
from .replay import ReplayRow

_COLOURS = {"observe": "#8a8f98", "warn": "#e08a00", "rollback": "#c62828"}
_LINE = "#2f5d8a"
_PANELS = {
    "loss": "loss (nats/token)",
    "grad_norm": "gradient norm",
    "loss_scale": "loss scale",
    "activation_norm": "activation norm",
}
_LOG_PANELS = ("grad_norm", "loss_scale")
# Where a kind of finding shows; one that is not named here shows in the loss.
_PANEL_OF = {
    "grad-norm-growth": "grad_norm",
    "activation-norm-trend": "activation_norm",
    "scaler-collapse": "loss_scale",
    "scale-high": "loss_scale",
}
_LABELS_MAX = 12
# Beyond these quantiles values may leave the picture: one spike must not flatten the rest.
_LOW, _HIGH, _ROOM = 0.002, 0.998, 0.25
# Nor must the steep beginning of a run.
_WARM_UP_FRAC = 0.05


def save_plot(
    points: Sequence[Point], rows: Sequence[ReplayRow], path: Path, title: str = ""
) -> None:
    """Write a picture of every series that points have, with what was found.

    Each finding is a dot on the curve that its detector looks at, at the step where it was made;
    warnings and rollbacks are lines through all curves besides, and from the onset of a rollback
    to where it was called the ground is shaded. Rollbacks say what was decided.
    Raises: ConfigError[plot-needs-matplotlib]; [plot-failed] when path cannot be written or has an
        unknown suffix.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "plot-needs-matplotlib",
            "a picture needs matplotlib, which is not installed.",
            remedy="pip install matplotlib, or leave --plot out.",
        ) from error
    shown = [name for name in _PANELS if any(getattr(p, name) is not None for p in points)]
    figure = Figure(figsize=(13, 1.2 + 2.6 * max(1, len(shown))), layout="constrained")
    axes = figure.subplots(max(1, len(shown)), 1, sharex=True, squeeze=False)[:, 0]
    for axis, name in zip(axes, shown, strict=False):
        _draw_curve(axis, points, name)
        _mark(axis, points, [row for row in rows if _panel_of(row, shown) == name], name)
        for row in rows:
            _strike(axis, row)
    _label(axes[0], rows)
    axes[-1].set_xlabel("step")
    figure.suptitle(_title(points, rows, title), x=0.01, ha="left", fontsize=11)
    _legend(figure, rows)
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise ConfigError("plot-failed", f"cannot write {path}: {error}.") from error


def _draw_curve(axis: Any, points: Sequence[Point], name: str) -> None:
    steps, values = _series(points, name)
    axis.plot(steps, values, linewidth=0.9, color=_LINE, zorder=2)
    axis.set_ylabel(_PANELS[name])
    axis.grid(True, color="#dddddd", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.01)
    settled = values[int(_WARM_UP_FRAC * len(values)) :]
    known = sorted(value for value in settled if not math.isnan(value))
    if name in _LOG_PANELS and known and known[0] > 0:
        axis.set_yscale("log", base=2 if name == "loss_scale" else 10)
    elif len(known) > 1 / _LOW:
        _crop(axis, known)


def _crop(axis: Any, known: list[float]) -> None:
    low, high = known[int(_LOW * len(known))], known[int(_HIGH * (len(known) - 1))]
    room = _ROOM * (high - low)
    if high > low:
        axis.set_ylim(max(known[0], low - room) - 0.05 * room, min(known[-1], high + room) + room)


def _mark(axis: Any, points: Sequence[Point], rows: Sequence[ReplayRow], name: str) -> None:
    """Put a dot on the curve for every finding that is about it."""
    steps, values = _series(points, name)
    at = {step: value for step, value in zip(steps, values, strict=True) if not math.isnan(value)}
    lowest, highest = axis.get_ylim()
    for row in rows:
        # A loss that is not finite has no height; its dot stands at the upper edge.
        height = min(max(at.get(row.step, highest), lowest), highest)
        axis.plot(
            [row.step], [height], "o", markersize=5.5 if row.severity == "rollback" else 4.0,
            color=_COLOURS[row.severity], markeredgecolor="white", markeredgewidth=0.6,
            zorder=4, clip_on=False,
        )  # fmt: skip


def _strike(axis: Any, row: ReplayRow) -> None:
    if row.severity == "observe":
        return
    colour = _COLOURS[row.severity]
    width = 1.1 if row.severity == "rollback" else 0.7
    axis.axvline(row.step, color=colour, linewidth=width, alpha=0.8, zorder=1)
    if row.severity == "rollback":
        axis.axvspan(row.onset_step, row.step, color=colour, alpha=0.12, linewidth=0, zorder=0)


def _label(axis: Any, rows: Sequence[ReplayRow]) -> None:
    """Write beside the first rollbacks what was decided; more would cover each other."""
    low, high = axis.get_xlim()
    called = [row for row in rows if row.severity == "rollback"][:_LABELS_MAX]
    for index, row in enumerate(called):
        factor = f", LR x{row.lr_factor:g}" if row.lr_factor != 1.0 else ""
        is_left = row.step < low + 0.2 * (high - low)
        axis.annotate(
            f"{row.kind}: {row.decision}{factor}",
            xy=(row.step, 0.97 - 0.085 * (index % 4)), xycoords=("data", "axes fraction"),
            xytext=(4 if is_left else -4, 0), textcoords="offset points",
            ha="left" if is_left else "right", va="top",
            fontsize=7.5, color=_COLOURS["rollback"],
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.0},
            zorder=5,
        )  # fmt: skip


def _legend(figure: Any, rows: Sequence[ReplayRow]) -> None:
    from matplotlib.lines import Line2D

    found = [name for name in _COLOURS if any(row.severity == name for row in rows)]
    handles = [
        Line2D([], [], marker="o", linestyle="none", color=_COLOURS[name], label=name)
        for name in found
    ]
    if handles:
        figure.legend(handles=handles, loc="upper right", ncols=3, frameon=False, fontsize=9)


def _title(points: Sequence[Point], rows: Sequence[ReplayRow], title: str) -> str:
    counts = [f"{sum(row.severity == name for row in rows)} {name}" for name in reversed(_COLOURS)]
    return f"{title}  ({len(points)} points; {', '.join(counts)})".strip()


def _panel_of(row: ReplayRow, shown: Sequence[str]) -> str:
    name = _PANEL_OF.get(row.kind, "loss")
    return name if name in shown else next(iter(shown), "")


def _series(points: Sequence[Point], name: str) -> tuple[list[int], list[float]]:
    steps, values = [], []
    for point in points:
        value = getattr(point, name)
        if value is not None:
            steps.append(point.step)
            values.append(value if math.isfinite(value) else math.nan)
    return steps, values
