"""Commands about the run as a whole, its nodes and incidents, and about changes made before."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from ...logbook.clock import clock_text
from ...logbook.errors import ConfigError
from ...logbook.phrases import changes_text, request_text
from ...logbook.state import Intervention
from .channel import open_channel
from .output import Output, OutputOption, RunArgument, print_json, wide_console
from .places import TokenFileOption, UrlOption, place_of
from .steer import (
    AfterStepOption,
    DryRunOption,
    ExpectOption,
    ReasonOption,
    TimeoutOption,
    make_request,
    submit,
)


def checkpoint(
    run: RunArgument = None,
    reason: ReasonOption = "",
    at_step: AfterStepOption = None,
    expect_attempt: ExpectOption = None,
    dry_run: DryRunOption = False,
    timeout_s: TimeoutOption = 60.0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Save the state of the run, at once or when a step is completed."""
    _at_a_step("checkpoint", run, reason, at_step, expect_attempt, dry_run, timeout_s, output)


def pause(
    run: RunArgument = None,
    reason: ReasonOption = "",
    at_step: AfterStepOption = None,
    expect_attempt: ExpectOption = None,
    dry_run: DryRunOption = False,
    timeout_s: TimeoutOption = 120.0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Finish the step, save, and end the workers; `midwatch resume` goes on from there."""
    _at_a_step("pause", run, reason, at_step, expect_attempt, dry_run, timeout_s, output)


def stop(
    run: RunArgument = None,
    reason: ReasonOption = "",
    at_step: AfterStepOption = None,
    expect_attempt: ExpectOption = None,
    dry_run: DryRunOption = False,
    timeout_s: TimeoutOption = 120.0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Finish the current step, save, and end the run."""
    _at_a_step("stop", run, reason, at_step, expect_attempt, dry_run, timeout_s, output)


def resume(
    run: RunArgument = None,
    reason: ReasonOption = "",
    dry_run: DryRunOption = False,
    timeout_s: TimeoutOption = 60.0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Set a paused run going again; spent budgets start anew."""
    submit(open_channel(run), make_request("resume", reason), dry_run, timeout_s, output)


def rollback(
    run: RunArgument = None,
    to_step: Annotated[
        int | None, typer.Option(help="Goes to the newest sound checkpoint up to this step.")
    ] = None,
    to: Annotated[str, typer.Option(help="Goes to this checkpoint.")] = "",
    reason: ReasonOption = "",
    expect_attempt: ExpectOption = None,
    dry_run: DryRunOption = False,
    timeout_s: TimeoutOption = 300.0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Give up steps: go on from an earlier state, with every change still in force."""
    if (to_step is None) == (not to):
        raise ConfigError("usage", "give exactly one of --to-step and --to.")
    request = make_request(
        "rollback", reason, value=float(to_step or 0), target=to, expect_attempt=expect_attempt
    )
    submit(open_channel(run), request, dry_run, timeout_s, output)


def quarantine(
    node: Annotated[str, typer.Argument(help="Name of the node.")],
    run: RunArgument = None,
    reason: ReasonOption = "",
    dry_run: DryRunOption = False,
    timeout_s: TimeoutOption = 60.0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Place nothing on a node from the next attempt on, until it is released."""
    _about("quarantine", node, run, reason, dry_run, timeout_s, output)


def release(
    node: Annotated[str, typer.Argument(help="Name of the node.")],
    run: RunArgument = None,
    reason: ReasonOption = "",
    dry_run: DryRunOption = False,
    timeout_s: TimeoutOption = 60.0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Use a quarantined node again."""
    _about("release", node, run, reason, dry_run, timeout_s, output)


def ack(
    incident: Annotated[str, typer.Argument(help="Id of the incident, as in inc-0003.")],
    run: RunArgument = None,
    reason: ReasonOption = "",
    dry_run: DryRunOption = False,
    timeout_s: TimeoutOption = 60.0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Say that you have taken note of an incident; it stands in its note."""
    _about("ack", incident, run, reason, dry_run, timeout_s, output)


def revert(
    change: Annotated[str, typer.Argument(help="Id of the change, as `interventions` shows it.")],
    run: RunArgument = None,
    reason: ReasonOption = "",
    dry_run: DryRunOption = False,
    timeout_s: TimeoutOption = 60.0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Take back a change that waits, is scheduled or in force."""
    _about("revert", change, run, reason, dry_run, timeout_s, output)


def interventions(
    run: RunArgument = None,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """List every change that was asked for: who, why, when, what came of it, and the values."""
    found = list(place_of(run, url, token_file).state().interventions.values())
    if output is Output.JSON:
        print_json(found)
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("id", "when (UTC)", "who", "what", "why", "came to", "steps", "read back"):
        table.add_column(column, no_wrap=column in ("id", "when (UTC)", "who"))
    for known in found:
        table.add_row(*_cells(known))
    wide_console().print(table)


def _cells(known: Intervention) -> tuple[str, ...]:
    asked = known.request
    steps = "" if known.at_step is None else f"{known.at_step} .."
    if known.until_step is not None:
        steps += f" {known.until_step - 1}"
    return (
        asked.id,
        clock_text(known.requested_s)[:19],
        asked.by,
        request_text(asked),
        asked.reason,
        f"{known.stage}{': ' * bool(known.detail)}{known.detail}",
        steps,
        changes_text(known),
    )


def _at_a_step(
    action: str,
    run: str | None,
    reason: str,
    at_step: int | None,
    expect_attempt: int | None,
    dry_run: bool,
    timeout_s: float,
    output: Output,
) -> None:
    request = make_request(action, reason, at_step=at_step, expect_attempt=expect_attempt)
    submit(open_channel(run), request, dry_run, timeout_s, output)


def _about(
    action: str,
    target: str,
    run: str | None,
    reason: str,
    dry_run: bool,
    timeout_s: float,
    output: Output,
) -> None:
    request = make_request(action, reason, target=target)
    submit(open_channel(run), request, dry_run, timeout_s, output)
