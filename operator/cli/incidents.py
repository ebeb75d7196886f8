"""midwatch replay --incidents: recorded incidents, what people did and what Midwatch decides."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from ...logbook.words import steps_text
from ..simulation.incidents import (
    GPUS,
    Row,
    play_incidents,
    read_incidents,
    read_panels,
    usual_gap_hours,
)
from .output import Output, print_json, wide_console

USUAL_HOURS = 12.0
"""What a stop cost where nothing is said of it: the median gap of OPT-175B is 12.1 hours."""
TITLES = (
    "id", "run", "step", "what", "people did", "LR x", "back", "came of it", "Midwatch decides",
    "after", "LR x", "back", "on its curve", "GPU-h saved",
)  # fmt: skip


def replay_incidents(
    incidents: Path, curve: Path | None, gaps: Path | None, output: Output
) -> None:
    """Print a row for each recorded incident, and what it amounts to."""
    recorded = read_incidents(incidents)
    points = read_panels(curve) if curve is not None else []
    hours = usual_gap_hours(gaps) if gaps is not None else USUAL_HOURS
    rows = play_incidents(recorded, points, hours)
    if output is Output.JSON:
        print_json([{"saved_gpu_hours": row.saved_gpu_hours, "row": row} for row in rows])
        return
    table = Table(box=None, pad_edge=False)
    for title in TITLES:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*_cells(row))
    console = wide_console()
    console.print(table)
    saved = sum(row.saved_gpu_hours for row in rows)
    console.print(
        f"{len(rows)} incidents on {GPUS} GPUs: {sum(row.recovered for row in rows)} recovered in "
        f"the simulation, {saved:,.0f} GPU-hours saved where a stop cost people {hours:g} hours"
    )


def _cells(row: Row) -> tuple[str, ...]:
    incident = row.incident
    return (
        incident.id,
        incident.run,
        _text(incident.step),
        incident.kind,
        incident.action[:32],
        incident.lr_factor[:20] or "-",
        _text(incident.rollback_steps),
        incident.outcome,
        row.decided,
        steps_text(row.lag_steps) if row.lag_steps is not None else "-",
        f"{row.lr_factor:g}",
        str(row.rolled_back_steps),
        f"{row.curve_lag_steps:+d} steps" if row.curve_lag_steps is not None else "-",
        f"{row.saved_gpu_hours:,.0f}",
    )


def _text(value: int | None) -> str:
    return "-" if value is None else str(value)
