"""Sweeps: one scenario with other numbers of spares, other intervals, other crews."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import msgspec
from msgspec.structs import replace

from ...logbook.errors import ConfigError
from ...logbook.plots import AMBER, BLUE, GREEN, RED, VIOLET
from ...logbook.svg import Line, Panel, draw
from .figures import Figures, Mean, mean_of, paid_frac
from .scenario import Scenario, with_interval, with_spares
from .simulate import simulate

MAX_POINTS = 400
_COLOURS = (BLUE, RED, GREEN, AMBER, VIOLET)


class Axis(msgspec.Struct, frozen=True):
    """One thing that is varied, and its values in order."""

    name: str
    values: tuple[float, ...]


class Cell(msgspec.Struct, frozen=True):
    """One point of a sweep. at: the value on each axis.

    paid: productive over all GPU-hours paid for, those of idle spares among them.
    """

    at: tuple[float, ...]
    ettr: Mean
    paid: Mean
    pages: Mean
    figures: tuple[Figures, ...]


class Ranking(msgspec.Struct, frozen=True):
    """The point with the highest share of productive paid GPU-hours, and its equals.

    ties: the points, best among them, that the seeds do not tell from it at 95 %.
    """

    best: Cell
    ties: tuple[Cell, ...]

    @property
    def is_clear(self) -> bool:
        """Whether one point is better than every other."""
        return len(self.ties) == 1


class Knob(msgspec.Struct, frozen=True):
    """What an axis turns, and the values that it takes."""

    turn: Callable[[Scenario, float], Scenario]
    lowest: float
    highest: float
    is_whole: bool = False

    def takes(self, value: float) -> bool:
        """Return whether a value makes sense here; neither NaN nor infinity does."""
        if not self.lowest <= value <= self.highest:
            return False
        return not self.is_whole or value == math.floor(value)

    @property
    def wants(self) -> str:
        kind = "whole numbers" if self.is_whole else "numbers"
        return f"{kind} from {self.lowest:g} to {self.highest:g}"


def _spares(scenario: Scenario, value: float) -> Scenario:
    return with_spares(scenario, int(value))


def _interval(scenario: Scenario, value: float) -> Scenario:
    return with_interval(scenario, int(value))


def _replace_hours(scenario: Scenario, value: float) -> Scenario:
    return replace(scenario, crew=replace(scenario.crew, replace_s=value * 3600.0))


def _respond_minutes(scenario: Scenario, value: float) -> Scenario:
    return replace(scenario, crew=replace(scenario.crew, respond_s=value * 60.0))


AXES: dict[str, Knob] = {
    "spares": Knob(_spares, 0, 64, is_whole=True),
    "interval": Knob(_interval, 1, 1e6, is_whole=True),
    "replace-hours": Knob(_replace_hours, 0, 8760),
    "respond-minutes": Knob(_respond_minutes, 0, 525_600),
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
    knob = AXES[name]
    refused = next((value for value in found if not knob.takes(value)), None)
    if refused is not None:
        raise ConfigError(
            "bad-sweep",
            f"{text!r} asks for {name} {refused:g}.",
            remedy=f"Take {knob.wants}.",
        )
    return Axis(name, found)


def parse_axes(texts: Sequence[str]) -> list[Axis]:
    """Return the axes of a sweep, each thing on one of them.

    Raises: ConfigError[bad-sweep].
    """
    axes = [parse_axis(text) for text in texts]
    names = [axis.name for axis in axes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(
            "bad-sweep",
            f"{twice} is on {names.count(twice)} axes.",
            remedy="Put all its values on one.",
        )
    num_points = math.prod(len(axis.values) for axis in axes)
    if num_points > MAX_POINTS:
        raise ConfigError(
            "bad-sweep",
            f"the sweep has {num_points} points, allowed are {MAX_POINTS}.",
            remedy="Take fewer values on an axis.",
        )
    return axes


def _values(text: str) -> tuple[float, ...]:
    if ".." not in text:
        return tuple(float(word) for word in text.split(","))
    first, last, *by = (float(word) for word in text.split(".."))
    step = by[0] if by else 1.0
    if not all(map(math.isfinite, (first, last, step))) or step <= 0 or len(by) > 1:
        return ()
    count = int(min((last - first) / step + 1e-9, MAX_POINTS)) + 1
    return tuple(first + index * step for index in range(count))


def sweep(
    scenario: Scenario,
    axes: Sequence[Axis],
    runs: int,
    seed: int = 0,
    told: Callable[[Cell], None] = lambda cell: None,
) -> list[Cell]:
    """Return every combination of the axes' values, each over the same seeds."""
    cells = []
    for values in itertools.product(*(axis.values for axis in axes)):
        varied = scenario
        for axis, value in zip(axes, values, strict=True):
            varied = AXES[axis.name].turn(varied, value)
        figures = tuple(outcome.figures for outcome in simulate(varied, runs, seed))
        cells.append(cell_of(values, figures))
        told(cells[-1])
    return cells


def cell_of(at: tuple[float, ...], figures: tuple[Figures, ...]) -> Cell:
    """Return the point of a sweep that some seeds make."""
    return Cell(
        at,
        ettr=mean_of([found.ettr_frac for found in figures]),
        paid=mean_of([paid_frac(found) for found in figures]),
        pages=mean_of([float(found.pages) for found in figures]),
        figures=figures,
    )


def rank(cells: Sequence[Cell]) -> Ranking:
    """Return the best point, the first of equals, and those that the seeds do not tell from it.

    Every point is played over the same seeds, so what counts is the difference seed by seed.
    """
    best = max(cells, key=lambda cell: cell.paid.value)
    return Ranking(best, tuple(cell for cell in cells if cell is best or _ties(best, cell)))


def _ties(best: Cell, cell: Cell) -> bool:
    pairs = zip(best.figures, cell.figures, strict=True)
    return mean_of([paid_frac(one) - paid_frac(other) for one, other in pairs]).low <= 0.0


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
