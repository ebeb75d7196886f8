"""midwatch doctor: try out this machine before it is trusted with a run."""

from __future__ import annotations

import enum
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ...checkpoints.objects import check_endpoint, check_url
from ...health.nodes.preflight_judge import PreflightVerdict
from ...logbook.errors import ConfigError
from ...logbook.preflight import LIMITS, CheckResult, Thoroughness
from ...logbook.tiers import Storage
from ..doctor import Examination, examine
from .output import FAILED, OK, Output, OutputOption, console, print_json

CPU_RANKS = 2
DEADLINES_S = {Thoroughness.QUICK: 180.0, Thoroughness.FULL: 1800.0}


class Device(enum.StrEnum):
    """What the ranks compute on; auto takes GPUs where there are any."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


def doctor(
    nodes: Annotated[int, typer.Option(min=1, max=124, help="Nodes to play on this machine.")] = 1,
    ranks_per_node: Annotated[
        int | None, typer.Option(min=1, max=16, help="Ranks a node; default one a GPU, else 2.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full/--quick", help="Minutes of load, or seconds.")
    ] = False,
    scratch: Annotated[
        Path | None, typer.Option(help="Folder on the disk to try; a temporary one by default.")
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(metavar="PATH|URL", help="Folder, or s3://BUCKET/PREFIX, to try."),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where the bucket is served, if not by AWS."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="A row for each passed check too.")] = False,
    device: Annotated[Device, typer.Option(help="What computes.")] = Device.AUTO,
    output: OutputOption = Output.TEXT,
) -> None:
    """Check arithmetic, memory, disk, clocks and collectives of this machine; 1 if any fails."""
    how = Thoroughness.FULL if full else Thoroughness.QUICK
    bucket = _bucket(store, endpoint)
    with tempfile.TemporaryDirectory(prefix="midwatch-doctor-") as folder:
        examination = Examination(
            num_nodes=nodes,
            ranks_per_node=ranks_per_node or _num_gpus() or CPU_RANKS,
            limits=LIMITS[how],
            deadline_s=DEADLINES_S[how],
            work_dir=folder,
            scratch_dir=str((scratch or Path(folder) / "scratch").absolute()),
            store_dir="" if not store or bucket else str(Path(store).absolute()),
            storage=bucket,
            device=device.value,
        )
        verdict = examine(examination)
    if output is Output.JSON:
        print_json({"ok": verdict.is_ok, "verdict": verdict})
    else:
        console.print(table_of(verdict, every=every))
        console.print(summary_of(verdict))
    raise typer.Exit(OK if verdict.is_ok else FAILED)


def _bucket(store: str | None, endpoint: str | None) -> Storage | None:
    """Return the bucket that store names, None where it is a folder. Raises: typer.BadParameter."""
    if store is None or "://" not in store:
        return None
    try:
        check_url(store)
        if endpoint is not None:
            check_endpoint(endpoint)
    except ConfigError as error:
        hint = "--endpoint" if error.code == "store-endpoint" else "--store"
        raise typer.BadParameter(str(error), param_hint=hint) from error
    return Storage(url=store, local_root="", endpoint_url=endpoint, path_style=endpoint is not None)


def table_of(verdict: PreflightVerdict, *, every: bool = False) -> Table:
    """Return the results in the order of checks; those that passed one check share a row.

    every: a row for each of them. A shared row shows the value that is nearest to its limit.
    """
    table = Table(box=None, pad_edge=False)
    for title in ("check", "where", "value", "limit", "verdict"):
        is_figure = title in ("value", "limit")
        table.add_column(title, justify="right" if is_figure else "left", no_wrap=True)
    table.add_column("what to do", overflow="fold")
    for name in dict.fromkeys(result.name for result in verdict.results):
        results = [result for result in verdict.results if result.name == name]
        passed = [result for result in results if result.ok]
        if len(passed) > 1 and not every:
            # Without failures it is simply all of them; with one, all others.
            where = f"{'all' if len(passed) == len(results) else 'the other'} {len(passed)}"
            table.add_row(*_cells(_nearest_to_limit(passed), where))
            results = [result for result in results if not result.ok]
        for result in results:
            where = result.node if result.rank is None else f"{result.node} rank {result.rank}"
            table.add_row(*_cells(result, where))
    return table


def _cells(result: CheckResult, where: str) -> tuple[str, ...]:
    return (
        result.name,
        where,
        figure(result.value, result.quantity),
        figure(result.limit, result.quantity),
        "[green]ok[/]" if result.ok else "[bold red]FAILED[/]",
        "" if result.ok else escape(_advice(result)),
    )


def _nearest_to_limit(passed: list[CheckResult]) -> CheckResult:
    return min(passed, key=lambda result: abs(result.value - result.limit))


def summary_of(verdict: PreflightVerdict) -> str:
    """Return the last line: is all well, and if not, who is to blame."""
    failed = sum(not result.ok for result in verdict.results)
    if not failed:
        return f"All {len(verdict.results)} checks passed."
    said = [f"{failed} of {len(verdict.results)} checks failed."]
    if verdict.bad_nodes:
        said.append(f"To blame: {', '.join(verdict.bad_nodes)}.")
    if verdict.suspect_nodes:
        said.append(f"Suspected: {', '.join(verdict.suspect_nodes)}.")
    return " ".join(said)


def figure(value: float, quantity: str) -> str:
    """Return a value in the unit that its quantity names."""
    if quantity.endswith("_bytes_per_s"):
        return f"{value / 1e6:.1f} MB/s"
    if quantity.endswith("_bytes"):
        return f"{value / 1e9:.1f} GB"
    if quantity.endswith("_s"):
        return f"{value:.4f} s"
    return f"{value:g}"


def _advice(result: CheckResult) -> str:
    return f"{result.message}. {result.remedy}" if result.message else result.remedy


def _num_gpus() -> int:
    return len(list(Path("/dev").glob("nvidia[0-9]*")))
