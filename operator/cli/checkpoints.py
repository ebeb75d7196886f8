"""midwatch checkpoints: what a run has saved, whether it is sound, and what is kept.

list, show, verify, export and prune --dry-run need the run's folder and nothing else; what changes
something is a request, which the controller carries out.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.table import Table

from ...checkpoints.fingerprint import take_fingerprint
from ...checkpoints.manifest import Manifest
from ...logbook.checkpoint_text import mark_text, trend_text, verified_text
from ...logbook.clock import clock_text, span_text
from ...logbook.errors import ConfigError, IntegrityError, MidwatchError
from ...logbook.state import CheckpointState
from ...logbook.words import bytes_text
from ..checkpoint_view import CheckpointRow, checkpoint_rows, compared_with
from ..policy.storage import retention_plan
from ..spec import RunSpec
from ..store import list_tiers, open_store
from .channel import open_channel
from .output import (
    FAILED,
    Output,
    OutputOption,
    RunArgument,
    err_console,
    print_json,
    wide_console,
)
from .places import folder_of, place_of
from .runs import NotFoundError, load_state
from .steer import DryRunOption, ReasonOption, TimeoutOption, make_request, submit

app = typer.Typer(help="The checkpoints of a run.", no_args_is_help=True)

IdArgument = Annotated[str, typer.Argument(help="Id of a checkpoint, as `list` shows it.")]
_CALL = (
    "import importlib, sys; module, _, name = sys.argv[1].partition(':'); "
    "sys.exit(getattr(importlib.import_module(module), name)(sys.argv[2:]))"
)


@app.command(name="list")
def list_(run: RunArgument = None, output: OutputOption = Output.TEXT) -> None:
    """List every checkpoint: where it lies, whether it is sound and healthy, why it is kept."""
    rows = _rows(folder_of(run))
    if output is Output.JSON:
        print_json(rows)
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("checkpoint", "age", "size", "where", "verified", "health", "outcome", "kept"):
        table.add_column(column, no_wrap=column in ("checkpoint", "age", "size"))
    for row in rows:
        table.add_row(*_cells(row))
    wide_console().print(table)


@app.command()
def show(
    checkpoint: IdArgument, run: RunArgument = None, output: OutputOption = Output.TEXT
) -> None:
    """Show everything about one checkpoint: tags, trends, outcome, files, environment."""
    folder = folder_of(run)
    state = load_state(folder)
    spec = RunSpec.model_validate(state.spec)
    row = _row(folder, checkpoint)
    known = state.checkpoints.get(checkpoint)
    try:
        manifest = open_store(spec, folder).manifest(checkpoint)
    except IntegrityError as error:
        manifest, unread = None, str(error)
    else:
        unread = ""
    here = take_fingerprint(spec.trainer)
    differs = compared_with(manifest.fingerprint, here) if manifest is not None else ()
    if output is Output.JSON:
        found = {"row": row, "known": known, "manifest": manifest, "unreadable": unread}
        print_json({**found, "differs": differs})
        return
    table = Table.grid(padding=(0, 3))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    rows = [*_facts(row), *(_tags(known) if known is not None else [])]
    rows += _contents(manifest, differs) if manifest is not None else [("manifest", unread)]
    for name, value in rows:
        table.add_row(name, value)
    wide_console().print(table)


@app.command()
def verify(
    checkpoint: IdArgument,
    run: RunArgument = None,
    by_controller: Annotated[
        bool,
        typer.Option(
            "--by-controller", help="Have the run read it, so that its journal knows the result."
        ),
    ] = False,
    reason: ReasonOption = "",
    timeout_s: TimeoutOption = 600.0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Read every byte of a checkpoint back, here; exit status 1 when it is not what was saved."""
    if by_controller:
        submit(
            open_channel(run),
            make_request("verify", reason, target=checkpoint),
            False,
            timeout_s,
            output,
        )
        known = place_of(run, None, None).state().checkpoints.get(checkpoint)
        if timeout_s > 0 and known is not None and known.verified is False:
            raise SystemExit(FAILED)
        return
    folder = folder_of(run)
    _row(folder, checkpoint)
    spec = RunSpec.model_validate(load_state(folder).spec)
    begun_s = time.monotonic()
    manifest = open_store(spec, folder).verify(checkpoint)
    took_s = time.monotonic() - begun_s
    if output is Output.JSON:
        print_json({"id": manifest.id, "bytes": manifest.total_bytes, "read_s": took_s})
        return
    print(
        f"{manifest.id} is sound: {len(manifest.files)} files, {bytes_text(manifest.total_bytes)} "
        f"read back in {span_text(took_s)}"
    )


@app.command()
def pin(
    checkpoint: IdArgument,
    run: RunArgument = None,
    reason: ReasonOption = "",
    dry_run: DryRunOption = False,
    timeout_s: TimeoutOption = 60.0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Keep a checkpoint, whatever retention says."""
    _ask("pin", checkpoint, run, reason, dry_run, timeout_s, output)


@app.command()
def unpin(
    checkpoint: IdArgument,
    run: RunArgument = None,
    reason: ReasonOption = "",
    dry_run: DryRunOption = False,
    timeout_s: TimeoutOption = 60.0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Leave a pinned checkpoint to retention again."""
    _ask("unpin", checkpoint, run, reason, dry_run, timeout_s, output)


@app.command()
def quarantine(
    checkpoint: IdArgument,
    run: RunArgument = None,
    reason: ReasonOption = "",
    dry_run: DryRunOption = False,
    timeout_s: TimeoutOption = 60.0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Resume from a checkpoint no more."""
    _ask("quarantine-checkpoint", checkpoint, run, reason, dry_run, timeout_s, output)


@app.command()
def release(
    checkpoint: IdArgument,
    run: RunArgument = None,
    reason: ReasonOption = "",
    dry_run: DryRunOption = False,
    timeout_s: TimeoutOption = 60.0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Let a quarantined checkpoint be resumed from again."""
    _ask("release-checkpoint", checkpoint, run, reason, dry_run, timeout_s, output)


@app.command()
def prune(
    run: RunArgument = None,
    reason: ReasonOption = "",
    dry_run: DryRunOption = False,
    timeout_s: TimeoutOption = 60.0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Delete now what retention no longer keeps; --dry-run says what would go, and why."""
    if not dry_run:
        submit(open_channel(run), make_request("prune", reason), False, timeout_s, output)
        return
    state = place_of(run, None, None).state()
    plan = retention_plan(state, RunSpec.model_validate(state.spec), time.time())
    if output is Output.JSON:
        print_json({"delete": plan.delete, "keep": plan.keep})
        return
    for verb, entries in (("would delete", plan.delete), ("would keep", plan.keep)):
        for name, why in entries:
            print(f"{verb:12}  {name}  {why}")


@app.command()
def export(
    checkpoint: IdArgument,
    out: Annotated[Path, typer.Argument(help="Folder to write; it must not exist, or be empty.")],
    run: RunArgument = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Write the weights of a checkpoint as the run's trainer exports them."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            "out-not-empty", f"{out} exists already.", remedy="Name a folder that does not."
        )
    folder = folder_of(run)
    _row(folder, checkpoint)
    state = load_state(folder)
    spec = RunSpec.model_validate(state.spec)
    if not spec.entry_points.export:
        raise ConfigError(
            "no-exporter", "this run's trainer names none in entry_points.export.", remedy=""
        )
    with (
        open_store(spec, folder).at_hand(checkpoint, out.absolute()) as path,
        tempfile.NamedTemporaryFile(suffix=".yaml") as written,
    ):
        written.write(msgspec.json.encode(state.spec))
        written.flush()
        words = [spec.entry_points.export, written.name, str(path), str(out)]
        # A process of its own: an exporter imports torch, which this command must not.
        done = subprocess.run([sys.executable, "-c", _CALL, *words], check=False, stdout=sys.stderr)
    if done.returncode:
        raise MidwatchError(
            "export-failed",
            f"{spec.entry_points.export} ended with status {done.returncode} for {checkpoint}.",
            remedy="Its own words stand above.",
        )
    if output is Output.JSON:
        print_json({"id": checkpoint, "out": str(out)})
    else:
        print(f"{checkpoint} exported to {out}")


def _ask(
    action: str,
    checkpoint: str,
    run: str | None,
    reason: str,
    dry_run: bool,
    timeout_s: float,
    output: Output,
) -> None:
    request = make_request(action, reason, target=checkpoint)
    submit(open_channel(run), request, dry_run, timeout_s, output)


def _rows(folder: Path) -> list[CheckpointRow]:
    state = load_state(folder)
    spec = RunSpec.model_validate(state.spec)
    tiers, trouble = list_tiers(spec, folder)
    if trouble:
        err_console.print(f"the store is not shown: {trouble}", markup=False, highlight=False)
    return checkpoint_rows(state, spec, tiers, time.time())


def _row(folder: Path, checkpoint: str) -> CheckpointRow:
    rows = _rows(folder)
    found = next((row for row in rows if row.id == checkpoint), None)
    if found is None:
        newest = ", ".join(row.id for row in rows[-4:]) or "none"
        raise NotFoundError(
            "no-such-checkpoint",
            f"{folder} has no checkpoint {checkpoint!r}.",
            remedy=f"The newest there are: {newest}.",
        )
    return found


def _cells(row: CheckpointRow) -> tuple[str, ...]:
    kept = row.kept or f"goes: {row.goes}"
    return (
        row.id,
        span_text(row.age_s),
        bytes_text(row.bytes),
        "+".join(row.tiers) or "gone",
        verified_text(row.verified),
        row.health,
        row.outcome,
        f"pinned: {row.pin}" if row.pin else kept,
    )


def _facts(row: CheckpointRow) -> list[tuple[str, str]]:
    names = ("checkpoint", "age", "size", "where", "verified", "health", "outcome", "kept")
    facts = list(zip(names, _cells(row), strict=True))
    facts.insert(1, ("taken", f"at step {row.step}, by attempt {row.attempt}"))
    facts += [("what is wrong", row.error)] if row.error else []
    return facts + ([("quarantined", row.quarantined)] if row.quarantined else [])


def _tags(known: CheckpointState) -> list[tuple[str, str]]:
    tags = known.tags
    rows = [("saved in", f"{span_text(known.save_s)}, loop held up {span_text(known.blocked_s)}")]
    if tags is not None:
        scale = "none (not fp16)" if tags.loss_scale is None else f"{tags.loss_scale:g}"
        rows += [
            ("loss", f"{tags.loss:.6g} nats/token"),
            ("loss scale", scale),
            ("grad norm", f"{tags.grad_norm:.6g}"),
            ("activation norm", f"{tags.activation_norm:.6g}"),
            ("learning rate", f"{tags.lr:.6g}"),
        ]
    for name, trend in (("activation", known.activation_trend), ("grad", known.grad_trend)):
        text = f"{trend_text(trend)} over the {trend.num_points} steps after it"
        rows.append((f"{name} norm trend", text))
    before, after = known.before, known.after
    rows.append(("trouble before", mark_text(before, "before") if before else "none on record"))
    rows.append(("trouble after", mark_text(after, "later") if after else "none so far"))
    return rows


def _contents(manifest: Manifest, differs: tuple[str, ...]) -> list[tuple[str, str]]:
    saved, header = manifest.fingerprint, manifest.header
    packages = {"python": saved.python, "torch": saved.torch, "midwatch": saved.midwatch}
    versions = ", ".join(f"{name} {v}" for name, v in {**packages, **saved.packages}.items())
    rows = [
        ("committed", clock_text(manifest.created_s)),
        ("mesh", f"{manifest.mesh.dp_shard} x {manifest.mesh.tp}"),
        ("data position", f"next batch is of data step {header.data_step}"),
        ("random state", header.rng),
        ("environment", f"{versions}; {saved.platform}; GPU {saved.gpu or 'none'}"),
    ]
    rows += [("differs from here", line) for line in differs or ("nothing",)]
    rows += [
        ("file", f"{entry.name}  {bytes_text(entry.bytes)}  sha256 {entry.sha256}")
        for entry in manifest.files
    ]
    return rows
