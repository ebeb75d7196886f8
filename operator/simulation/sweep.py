"""Sweeps: one scenario with other numbers of spares, other intervals, other crews."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import msgspec
from msgspec.structs import replace

from ...logbook.errors import ConfigError
from ...logbook.plots import AMBER, BLUE, GREEN, RED, VIOLET
from ...logbook.svg import Line, Panel, draw
from .figures import Figures, Mean, mean_of
from .scenario import Scenario, with_interval, with_spares
from .simulate import simulate

MAX_POINTS = 400
_COLOURS = (BLUE, RED, GREEN, AMBER, VIOLET)


class Axis(msgspec.Struct, frozen=True):
    """One thing that is varied, and its values in order."""

    name: str
    values: tuple[float, ...]


class Cell(msgspec.Struct, frozen=True):
    """One point of a sweep. at: the value on each axis."""

    at: tuple[float, ...]
    ettr: Mean
    pages: Mean
    figures: tuple[Figures, ...]


def _spares(scenario: Scenario, value: float) -> Scenario:
    return with_spares(scenario, int(value))


def _interval(scenario: Scenario, value: float) -> Scenario:
    return with_interval(scenario, max(int(value), 1))


def _replace_hours(scenario: Scenario, value: float) -> Scenario:
    return replace(scenario, crew=replace(scenario.crew, replace_s=value * 3600.0))


def _respond_minutes(scenario: Scenario, value: float) -> Scenario:
    return replace(scenario, crew=replace(scenario.crew, respond_s=value * 60.0))


AXES: dict[str, Callable[[Scenario, float], Scenario]] = {
    "spares": _spares,
    "interval": _interval,
    "replace-hours": _replace_hours,
    "respond-minutes": _respond_minutes,
}


def parse_axis(text: str) -> Axis:
    """Return the axis written as NAME=FROM..TO, NAME=FROM..TO..BY or NAME=VALUE,VALUE.

    Raises: ConfigError[bad-sweep].
    """
    name, _, values = text.partition("=")
    try:
        found = _values(values)
    except ValueError:
        found = ()
    if name not in AXES or not found:
        raise ConfigError(
            "bad-sweep",
            f"{text!r} is no axis of a sweep.",
            remedy=f"Write NAME=FROM..TO, NAME=FROM..TO..BY or NAME=V,V with one of "
            f"{', '.join(AXES)}.",
        )
    return Axis(name, found)


def _values(text: str) -> tuple[float, ...]:
    if ".." not in text:
        return tuple(float(word) for word in text.split(","))
    first, last, *by = (float(word) for word in text.split(".."))
    step = by[0] if by else 1.0
    count = int((last - first) / step + 1e-9) + 1 if step > 0 else 0
    return tuple(first + index * step for index in range(min(count, MAX_POINTS + 1)))


def sweep(
    scenario: Scenario,
    axes: Sequence[Axis],
    runs: int,
    seed: int = 0,
    told: Callable[[Cell], None] = lambda cell: None,
) -> list[Cell]:
    """Return every combination of the axes' values, each over the same seeds.

    Raises: ConfigError[bad-sweep] when that would be more than MAX_POINTS.
    """
    combinations = list(itertools.product(*(axis.values for axis in axes)))
    if len(combinations) > MAX_POINTS:
        raise ConfigError(
            "bad-sweep",
            f"the sweep has {len(combinations)} points, allowed are {MAX_POINTS}.",
            remedy="Take fewer values on an axis.",
        )
    cells = []
    for values in combinations:
        varied = scenario
        for axis, value in zip(axes, values, strict=True):
            varied = AXES[axis.name](varied, value)
        figures = tuple(outcome.figures for outcome in simulate(varied, runs, seed))
        ettr = mean_of([found.ettr_frac for found in figures])
        pages = mean_of([float(found.pages) for found in figures])
        cells.append(Cell(values, ettr, pages, figures))
        told(cells[-1])
    return cells


def best_of(cells: Sequence[Cell]) -> Cell:
    """Return the point with the highest ETTR; the first of equals."""
    return max(cells, key=lambda cell: cell.ettr.value)


def plot_sweep(axes: Sequence[Axis], cells: Sequence[Cell], title: str) -> str:
    """Return an SVG: ETTR and pages over the last axis, a curve for each value of those before."""
    curves: dict[tuple[float, ...], list[Cell]] = {}
    for cell in cells:
        curves.setdefault(cell.at[:-1], []).append(cell)
    ettr: list[Line] = []
    pages: list[Line] = []
    for index, (key, found) in enumerate(curves.items()):
        pairs = zip(axes, key, strict=False)
        label = ", ".join(f"{axis.name} {value:g}" for axis, value in pairs)
        colour = _COLOURS[index % len(_COLOURS)]
        xs = [cell.at[-1] for cell in found]
        ettr.append(Line(xs, [100 * cell.ettr.value for cell in found], colour, label))
        for bound in ("low", "high"):
            ys = [100 * getattr(cell.ettr, bound) for cell in found]
            ettr.append(Line(xs, ys, colour, width=0.5, is_aside=True))
        pages.append(Line(xs, [cell.pages.value for cell in found], colour, label))
    panels = [
        Panel("ETTR, % (thin: 95 % confidence)", ettr, height=220),
        Panel("times somebody had to look", pages, height=120),
    ]
    return draw(panels, title, axes[-1].name)
