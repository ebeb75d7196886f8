"""midwatch simulate: what a run of some size, or of a spec, would come to."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated

import typer
from msgspec.structs import replace

from ...logbook.errors import ConfigError
from ..simulation.conditions import Times
from ..simulation.failure_models import MODELS, FailureModel, exponential_model, model_named
from ..simulation.from_journal import model_of, times_of
from ..simulation.people import Crew
from ..simulation.scenario import DAY_S, LARGE, Scenario, Size, sized_scenario, spec_scenario
from ..simulation.simulate import Outcome, simulate
from ..simulation.sweep import Axis, Ranking, parse_axes, plot_sweep, rank, sweep
from ..simulation.tables import figures_table, mean_text, sweep_table
from ..simulation.trace import compare_opt
from ..spec import RunSpec
from ..spec_file import load_spec
from .output import Output, OutputOption, print_json, wide_console
from .runs import find_run, load_state

TRACE = "opt-trace"
"""In the place of a model: OPT-175B's own restart times and counts, 56 days on 992 GPUs."""
SpecArgument = Annotated[
    Path | None, typer.Argument(help="A run spec; without one, a run of --gpus is made up.")
]


def simulate_command(
    spec: SpecArgument = None,
    gpus: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="GPUs that train, without a spec.")
    ] = 992,
    days: Annotated[float, typer.Option(min=0.01, max=3650, help="How long to watch.")] = 60.0,
    spares: Annotated[int, typer.Option(min=0, max=64, help="Spare nodes, without a spec.")] = 8,
    model: Annotated[str, typer.Option(help=f"What fails: {', '.join((*MODELS, TRACE))}.")] = "opt",
    mtbf_hours: Annotated[
        float | None,
        typer.Option(min=0.001, help="Instead: one kind of failure, this often in the whole run."),
    ] = None,
    from_journal: Annotated[
        str | None, typer.Option(help="Instead: rates and times that this run has shown.")
    ] = None,
    interval: Annotated[
        int, typer.Option(min=1, help="Steps between saves, without a spec.")
    ] = 150,
    step_s: Annotated[float, typer.Option(min=0.001, help="Seconds a step.")] = 20.0,
    stall_s: Annotated[float, typer.Option(min=0, help="Seconds a save holds training up.")] = 1.0,
    save_s: Annotated[float, typer.Option(min=0, help="Seconds until a save is committed.")] = 60.0,
    load_s: Annotated[float, typer.Option(min=0, help="Seconds to load a checkpoint.")] = 60.0,
    memory: Annotated[bool, typer.Option(help="Keep copies of the state in memory.")] = True,
    replace_hours: Annotated[
        float, typer.Option(min=0, help="Hours until a bad machine is replaced, median.")
    ] = 4.0,
    respond_minutes: Annotated[
        float, typer.Option(min=0, help="Minutes until somebody looks, median.")
    ] = 30.0,
    runs: Annotated[int, typer.Option(min=1, max=1000, help="Seeds.")] = 1,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    sweep_over: Annotated[
        list[str] | None,
        typer.Option("--sweep", help="spares=0..8, interval=50..500..50, ...; may be repeated."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the sweep here, as SVG.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the first seed's run folder here: journal, notes.")
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Simulate a run in virtual time: the real controller decides, and the journal is ordinary."""
    _check_finite(days, mtbf_hours, step_s, stall_s, save_s, load_s, replace_hours, respond_minutes)
    times = replace(
        LARGE,
        step_s=step_s,
        blocked_s=stall_s,
        save_s=save_s,
        load_s=load_s,
        memory_copy_s=LARGE.memory_copy_s if memory else None,
    )
    if model == TRACE:
        _trace(seed, output)
        return
    found = load_spec(spec) if spec is not None else None
    size = Size(found.world_size if found is not None else gpus, days, spares, interval)
    failing, times = _failing(model, mtbf_hours, from_journal, size.gpus, times)
    crew = Crew(replace_s=replace_hours * 3600.0, respond_s=respond_minutes * 60.0)
    scenario = _scenario(found, size, failing, times, crew)
    _check_paths(plot, out, is_sweep=bool(sweep_over))
    if sweep_over:
        _sweep(scenario, parse_axes(sweep_over), (runs, seed), plot, output)
    else:
        _simulate(scenario, runs, seed, out, output)


def _trace(seed: int, output: Output) -> None:
    """OPT-175B's own failures, as they were lived and under Midwatch."""
    compared = compare_opt(seed)
    figures = compared.outcome.figures
    if output is Output.JSON:
        print_json({"lived_ettr_frac": compared.lived_ettr_frac, "run": figures})
        return
    console = wide_console()
    console.print(figures_table([figures]))
    console.print(
        f"OPT-175B lived through these failures with an ETTR of {compared.lived_ettr_frac:.1%}; "
        f"under Midwatch it is {figures.ettr_frac:.1%}, {compared.gpu_hours_saved:,.0f} GPU-hours "
        "less lost"
    )


def _failing(
    model: str, mtbf_hours: float | None, from_journal: str | None, gpus: int, times: Times
) -> tuple[FailureModel, Times]:
    if from_journal is not None:
        state = load_state(find_run(from_journal))
        return model_of(state, state.time_s), times_of(state, times)
    if mtbf_hours is not None:
        return exponential_model(mtbf_hours, gpus), times
    return model_named(model), times


def _scenario(
    spec: RunSpec | None, size: Size, model: FailureModel, times: Times, crew: Crew
) -> Scenario:
    if spec is not None:
        return spec_scenario(spec, model, size.days * DAY_S, times, crew=crew)
    if size.gpus > 8 and size.gpus % 8:
        raise ConfigError(
            "gpus-not-whole-nodes",
            f"--gpus {size.gpus} does not fill nodes of 8.",
            remedy=f"Take {size.gpus // 8 * 8}, or give a run spec.",
        )
    return sized_scenario(size, model, times, crew)


def _check_finite(*values: float | None) -> None:
    # A range that only has a lower end takes infinity.
    if not all(value is None or math.isfinite(value) for value in values):
        raise ConfigError(
            "not-finite",
            "an option of the simulation is infinite.",
            remedy="Give every time, rate and length as a finite number.",
        )


def _check_paths(plot: Path | None, out: Path | None, *, is_sweep: bool) -> None:
    """Refuse before hours of simulation what could not be written after them."""
    if plot is not None and not is_sweep:
        raise ConfigError("nothing-to-plot", "--plot draws a sweep.", remedy="Add --sweep.")
    if out is not None and is_sweep:
        raise ConfigError(
            "out-of-sweep",
            "a sweep plays many runs; --out writes down one.",
            remedy="Drop --out, or name one point's values without --sweep.",
        )
    if plot is not None and (plot.is_dir() or not plot.absolute().parent.is_dir()):
        raise ConfigError(
            "plot-unwritable",
            f"{plot} cannot be written: no folder {plot.absolute().parent}, or one of that name.",
            remedy="Name a file in a folder that exists.",
        )
    if out is not None and (out / "journal").exists():
        raise ConfigError(
            "folder-in-use",
            f"{out} holds the journal of a run already.",
            remedy="Name a folder that does not exist yet.",
        )


def _simulate(scenario: Scenario, runs: int, seed: int, out: Path | None, output: Output) -> None:
    def told(outcome: Outcome) -> None:
        figures = outcome.figures
        line = f"seed {figures.seed}: ETTR {figures.ettr_frac:.2%}, {figures.restarts} restarts"
        print(f"{line}, {figures.pages} pages, in {outcome.took_s:.1f} s", file=sys.stderr)

    found = [outcome.figures for outcome in simulate(scenario, runs, seed, out, told)]
    if output is Output.JSON:
        print_json({"model": scenario.model, "runs": found})
        return
    days = scenario.horizon_s / DAY_S
    console = wide_console()
    console.print(
        f"{scenario.spec.world_size} GPUs and {scenario.spec.nodes.spares} spares, {days:g} days, "
        f"{runs} seeds; {scenario.model.name}: {scenario.model.source}"
    )
    console.print(figures_table(found))


def _sweep(
    scenario: Scenario,
    axes: list[Axis],
    seeds: tuple[int, int],
    plot: Path | None,
    output: Output,
) -> None:
    cells = sweep(scenario, axes, *seeds, told=lambda cell: print(f"{cell.at}", file=sys.stderr))
    ranking = rank(cells)
    if output is Output.JSON:
        ties = [cell.at for cell in ranking.ties]
        print_json({"axes": axes, "cells": cells, "best": ranking.best.at, "ties": ties})
    else:
        console = wide_console()
        console.print(sweep_table(axes, cells, ranking))
        console.print(_best_text(axes, ranking, seeds[0]))
    if plot is not None:
        title = f"{scenario.spec.world_size} GPUs, {scenario.model.name}"
        plot.write_text(plot_sweep(axes, cells, title), encoding="utf-8")


def _best_text(axes: list[Axis], ranking: Ranking, runs: int) -> str:
    best, of_paid = ranking.best, "% of paid GPU-hours productive"
    pairs = zip(axes, best.at, strict=True)
    at = ", ".join(f"{axis.name} {value:g}" for axis, value in pairs)
    value = f"{mean_text(best.paid, 100.0, 2)} {of_paid}"
    if ranking.is_clear:
        return f"best: {at}, {value}"
    why = "one seed tells no points apart" if runs == 1 else f"{runs} seeds tell them not apart"
    return f"highest: {at}, {value}, as good: {len(ranking.ties)} points ({why}; --runs takes more)"
