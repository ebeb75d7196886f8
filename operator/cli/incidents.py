"""midwatch replay --incidents: recorded incidents, what people did and what Midwatch decides."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from ...logbook.words import steps_text
from ..simulation.incidents import Row, play_incidents, read_incidents
from ..simulation.recorded_curves import read_panels, usual_gap_hours
from .output import Output, print_json, wide_console

TITLES = (
    "id", "run", "step", "what", "played as", "assumed", "people did", "LR x", "back",
    "came of it", "Midwatch decides", "after", "LR x", "back", "ends", "on its curve",
    "GPU-h saved",
)  # fmt: skip


def replay_incidents(
    incidents: Path, curve: Path | None, gaps: Path | None, output: Output
) -> None:
    """Print a row for each recorded incident, and what it amounts to."""
    recorded = read_incidents(incidents)
    panels = read_panels(curve) if curve is not None else None
    hours = usual_gap_hours(gaps) if gaps is not None else None
    rows = play_incidents(recorded, panels, hours)
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
    console.print(total_text(rows))


def total_text(rows: list[Row]) -> str:
    """Return what the rows amount to, and how far that can be trusted."""
    well = [row for row in rows if row.recovered]
    assumed = sum(row.is_assumed for row in well)
    saved = [row.saved_gpu_hours for row in rows if row.saved_gpu_hours is not None]
    return (
        f"{len(rows)} incidents: {len(well)} recovered in the simulation, {assumed} of them only "
        "if a lower rate cures, which no row says; "
        f"{len(rows) - len(well)} did not recover. {sum(saved):,.0f} GPU-hours saved in the "
        f"{len(saved)} whose run's GPUs, step and usual gap are known. Played on a few nodes by "
        "what each row says: it shows what is decided, not what would have come of it."
    )


def _cells(row: Row) -> tuple[str, ...]:
    incident = row.incident
    return (
        incident.id,
        incident.run,
        _text(incident.step),
        incident.kind,
        row.stage.text,
        ", ".join(row.stage.assumed) or "-",
        incident.action[:32],
        incident.lr_factor[:20] or "-",
        _text(incident.rollback_steps),
        incident.outcome,
        row.decided,
        steps_text(row.lag_steps) if row.lag_steps is not None else "-",
        f"{row.lr_factor:.3g}",
        str(row.rolled_back_steps),
        "well" if row.recovered else "not well",
        _curve_text(row),
        f"{row.saved_gpu_hours:,.0f}" if row.saved_gpu_hours is not None else "-",
    )


def _curve_text(row: Row) -> str:
    if row.curve_call is None:
        return "-"
    if row.curve_lag_steps is None:
        return row.curve_call
    return f"{row.curve_lag_steps:+d} steps, {row.curve_call}"


def _text(value: int | None) -> str:
    return "-" if value is None else str(value)
