"""Figures of simulations as tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from .figures import Figures, Mean, mean_of
from .sweep import Axis, Cell, Ranking

TERA = 1e12


def mean_text(mean: Mean, scale: float = 1.0, digits: int = 1) -> str:
    """Return a mean with half its confidence interval, where there is one."""
    value = f"{mean.value * scale:,.{digits}f}"
    if mean.num < 2:
        return value
    return f"{value} ± {mean.half * scale:,.{digits}f}"


def figures_table(found: Sequence[Figures]) -> Table:
    """Return the figures of several seeds: means with 95 % confidence."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("what")
    table.add_column("value", justify="right", no_wrap=True)
    rows: list[tuple[str, str]] = [
        ("ETTR, %", _over([f.ettr_frac for f in found], 100.0, 2)),
        ("failures that hurt", _over([f.failures for f in found])),
        ("never seen", _over([f.unseen for f in found])),
        ("restarts", _over([f.restarts for f in found])),
        ("rollbacks for the numbers", _over([f.rollbacks for f in found])),
        ("times somebody had to look", _over([f.pages for f in found])),
        ("machines replaced", _over([f.replaced for f in found])),
        ("time to detect, s", _known([f.mttd_s for f in found])),
        ("time to recover, s", _known([f.mttr_s for f in found])),
        ("steps trained again", _over([f.steps_lost for f in found], 1.0, 0)),
    ]
    for cause in found[0].gpu_hours:
        hours = [f.gpu_hours[cause] for f in found]
        rows.append((f"GPU-hours {cause}", _over(hours, 1.0, 0)))
    for name, values in (
        ("saved, TB", [f.saved_bytes for f in found]),
        ("loaded, TB", [f.loaded_bytes for f in found]),
        ("copied to memory, TB", [f.memory_bytes for f in found]),
    ):
        rows.append((name, _over(values, 1 / TERA, 1)))
    for name, counts in (
        ("controller: turns", [f.ticks for f in found]),
        ("controller: journal records", [f.records for f in found]),
        ("controller: decisions", [f.decisions for f in found]),
    ):
        rows.append((name, _over(counts, 1.0, 0)))
    for row in rows:
        table.add_row(*row)
    return table


def sweep_table(axes: Sequence[Axis], cells: Sequence[Cell], ranking: Ranking) -> Table:
    """Return a row for each point of a sweep, the best and those as good as it marked."""
    table = Table(box=None, pad_edge=False)
    for axis in axes:
        table.add_column(axis.name, justify="right")
    titles = ("productive of paid, %", "ETTR, %", "had to look", "restarts", "waited, GPU-h")
    for title in (*titles, "saves, GPU-h", ""):
        table.add_column(title, justify="right", no_wrap=True)
    for cell in cells:
        waited = mean_of([f.gpu_hours["provision"] for f in cell.figures])
        saves = mean_of([f.gpu_hours["checkpoint"] for f in cell.figures])
        restarts = mean_of([float(f.restarts) for f in cell.figures])
        table.add_row(
            *(f"{value:g}" for value in cell.at),
            mean_text(cell.paid, 100.0, 2),
            mean_text(cell.ettr, 100.0, 2),
            mean_text(cell.pages),
            mean_text(restarts),
            mean_text(waited, 1.0, 0),
            mean_text(saves, 1.0, 0),
            _rank_text(cell, ranking),
        )
    return table


def _rank_text(cell: Cell, ranking: Ranking) -> str:
    if cell not in ranking.ties:
        return ""
    return "best" if ranking.is_clear else "as good"


def _over(values: Sequence[float], scale: float = 1.0, digits: int = 1) -> str:
    return mean_text(mean_of([float(value) for value in values]), scale, digits)


def _known(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return mean_text(mean_of(known)) if known else "-"
