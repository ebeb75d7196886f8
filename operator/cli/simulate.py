"""midwatch simulate: what a run of some size, or of a spec, would come to."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from msgspec.structs import replace

from ...logbook.errors import ConfigError
from ..runtime.names import node_names
from ..simulation.conditions import Times
from ..simulation.failure_models import (
    MODELS,
    FailureModel,
    exponential_model,
    model_named,
    read_model,
)
from ..simulation.from_journal import model_of, times_of
from ..simulation.opt_run import OPT_DAYS, OPT_LIVED_FRAC, opt_scenario
from ..simulation.people import Crew
from ..simulation.scenario import DAY_S, LARGE, Scenario, Size, sized_scenario, spec_scenario
from ..simulation.simulate import Outcome, simulate
from ..simulation.sweep import Axis, Ranking, parse_axes, plot_sweep, rank, sweep
from ..simulation.tables import figures_table, mean_text, sweep_table
from ..simulation.traces import read_trace
from ..spec_file import load_spec
from .output import Output, OutputOption, print_json, wide_console
from .runs import find_run, load_state

TRACE = "opt-trace"
"""In the place of a model: OPT-175B's recorded failures, as far as they are; 56 days, 992 GPUs."""
_FIXED = ("spec", "gpus", "interval", "step_s", "mtbf_hours", "from_journal", "trace")
"""What OPT-175B's run says itself."""
_INSTEAD = ("mtbf_hours", "from_journal")
SpecArgument = Annotated[
    Path | None, typer.Argument(help="A run spec; without one, a run of --gpus is made up.")
]


def simulate_command(
    context: typer.Context,
    spec: SpecArgument = None,
    gpus: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="GPUs that train, without a spec.")
    ] = 992,
    days: Annotated[float, typer.Option(min=0.01, max=3650, help="How long to watch.")] = 60.0,
    spares: Annotated[int, typer.Option(min=0, max=64, help="Spare nodes, without a spec.")] = 8,
    model: Annotated[
        str, typer.Option(help=f"What fails: {', '.join((*MODELS, TRACE))}, or a JSON file.")
    ] = "opt",
    trace: Annotated[
        Path | None, typer.Option(help="Instead: a CSV of failures: hours, effect, node, ...")
    ] = None,
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
    times = replace(LARGE, step_s=step_s, blocked_s=stall_s, save_s=save_s, load_s=load_s)
    times = times if memory else replace(times, memory_copy_s=None)
    crew = Crew(replace_s=replace_hours * 3600.0, respond_s=respond_minutes * 60.0)
    given = _given(context)
    if model == TRACE:
        _refuse(given, _FIXED, f"--model {TRACE}")
        scenario = opt_scenario(times, spares, crew, days if "days" in given else OPT_DAYS)
    else:
        _refuse(given, ("model", *_INSTEAD), "--trace" if trace is not None else "")
        size = Size(gpus, days, spares, interval)
        failing = _Failing("none" if trace is not None else model, mtbf_hours, from_journal, trace)
        scenario = _scenario(spec, size, failing, times, crew)
    _check_paths(plot, out, is_sweep=bool(sweep_over))
    if sweep_over:
        _sweep(scenario, parse_axes(sweep_over), (runs, seed), plot, output)
    else:
        _simulate(scenario, runs, seed, out, output)


def _given(context: typer.Context) -> set[str]:
    """Return the options that were written down, not taken from their defaults."""
    return {
        name
        for name in context.params
        if (source := context.get_parameter_source(name)) is not None and source.name != "DEFAULT"
    }


def _refuse(given: set[str], names: tuple[str, ...], by: str) -> None:
    """Refuse options that would be ignored beside another."""
    ignored = [f"--{name.replace('_', '-')}" for name in names if name in given]
    if by and ignored:
        raise ConfigError(
            "option-ignored",
            f"{by} says itself what {', '.join(ignored)} would.",
            remedy="Drop one of them.",
        )


class _Failing(msgspec.Struct, frozen=True):
    """What fails, as it was asked for: the last that is given counts."""

    model: str
    mtbf_hours: float | None
    from_journal: str | None
    trace: Path | None

    def model_for(self, gpus: int, times: Times) -> tuple[FailureModel, Times]:
        """Return the failure model, and the times with what a journal has shown."""
        if self.from_journal is not None:
            state = load_state(find_run(self.from_journal))
            return model_of(state, state.time_s), times_of(state, times)
        if self.mtbf_hours is not None:
            return exponential_model(self.mtbf_hours, gpus), times
        if self.model not in MODELS and Path(self.model).suffix == ".json":
            return read_model(Path(self.model)), times
        return model_named(self.model), times


def _scenario(
    path: Path | None, size: Size, failing: _Failing, times: Times, crew: Crew
) -> Scenario:
    spec = load_spec(path) if path is not None else None
    gpus = spec.world_size if spec is not None else size.gpus
    model, times = failing.model_for(gpus, times)
    if spec is not None:
        scenario = spec_scenario(spec, model, size.days * DAY_S, times, crew=crew)
    elif gpus > 8 and gpus % 8:
        raise ConfigError(
            "gpus-not-whole-nodes",
            f"--gpus {gpus} does not fill nodes of 8.",
            remedy=f"Take {gpus // 8 * 8}, or give a run spec.",
        )
    else:
        scenario = sized_scenario(size, model, times, crew)
    if failing.trace is None:
        return scenario
    nodes = scenario.spec.nodes
    trace = read_trace(failing.trace, node_names(scenario.spec.num_nodes, nodes.spares))
    named = replace(model, name=trace.name, source=trace.source)
    return replace(scenario, trace=trace, model=named)


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
    if scenario.model.name == TRACE:
        console.print(
            f"OPT-175B's own count over {OPT_DAYS:g} days is an ETTR of {OPT_LIVED_FRAC:.1%}: "
            "its ideal days over those it took, not a simulation of its crew"
        )


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
