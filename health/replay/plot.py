"""A picture of a replayed curve with its findings marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ...logbook.errors import ConfigError
from ..numerics.point import Point
from .replay import ReplayRow

_COLOURS = {"observe": "tab:gray", "warn": "tab:orange", "rollback": "tab:red"}
_PANELS = ("loss", "grad_norm", "loss_scale", "activation_norm")
_LOG_PANELS = ("grad_norm", "loss_scale")


def save_plot(points: Sequence[Point], rows: Sequence[ReplayRow], path: Path) -> None:
    """Write a picture of every series that points have, findings as vertical lines.

    A line stands where the finding was made; for a rollback the stretch since its onset is shaded.
    Raises: ConfigError[plot-unavailable] without matplotlib, [plot-failed] when path cannot be
        written or has an unknown suffix.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "plot-unavailable",
            "a picture needs matplotlib, which is not installed.",
            remedy="pip install matplotlib",
        ) from error
    shown = [name for name in _PANELS if any(getattr(p, name) is not None for p in points)]
    figure = Figure(figsize=(12, 1 + 3 * max(1, len(shown))), layout="constrained")
    axes = figure.subplots(max(1, len(shown)), 1, sharex=True, squeeze=False)[:, 0]
    for axis, name in zip(axes, shown, strict=False):
        _draw(axis, points, rows, name)
    axes[-1].set_xlabel("step")
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise ConfigError("plot-failed", f"cannot write {path}: {error}.") from error


def _draw(axis: object, points: Sequence[Point], rows: Sequence[ReplayRow], name: str) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axis, Axes)
    steps, values = [], []
    for point in points:
        value = getattr(point, name)
        if value is not None:
            steps.append(point.step)
            values.append(value if math.isfinite(value) else math.nan)
    axis.plot(steps, values, linewidth=0.8, color="tab:blue")
    axis.set_ylabel(name)
    if name in _LOG_PANELS and any(value > 0 for value in values):
        axis.set_yscale("log")
    named: set[str] = set()
    for row in rows:
        label = row.severity if row.severity not in named else None
        named.add(row.severity)
        axis.axvline(row.step, color=_COLOURS[row.severity], linewidth=0.9, label=label)
        if row.severity == "rollback":
            axis.axvspan(row.onset_step, row.step, color=_COLOURS[row.severity], alpha=0.15)
    if named:
        axis.legend(loc="upper right", fontsize="small")
