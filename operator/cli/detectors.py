"""midwatch detectors: how every detector of a run is switched, how right it has been, and more."""

from __future__ import annotations

from typing import Annotated

import typer

from ...health.numerics.shadow import Tally
from ...logbook import events as ev
from ...logbook.errors import ConfigError
from ...logbook.reader import read
from ..detector_score import score_shadows
from ..policy.detectors import modes_now, refuse_switch
from ..spec import RunSpec
from .channel import open_channel
from .output import Output, OutputOption, RunArgument, print_json
from .places import folder_of
from .runs import load_state
from .steer import DryRunOption, ExpectOption, ReasonOption, TimeoutOption, make_request, submit


def detectors(
    run: RunArgument = None,
    change: Annotated[
        str | None, typer.Option("--set", help="NAME=MODE; modes: act, shadow, off.")
    ] = None,
    reason: ReasonOption = "",
    expect_attempt: ExpectOption = None,
    dry_run: DryRunOption = False,
    timeout_s: TimeoutOption = 60.0,
    output: OutputOption = Output.TEXT,
) -> None:
    """List the detectors of a run, or switch one between act, shadow and off mid-flight."""
    if change is not None:
        refusal = refuse_switch(change)
        if refusal:
            raise ConfigError("usage", f"--set {change}: {refusal}.")
        request = make_request("detector", reason, target=change, expect_attempt=expect_attempt)
        submit(open_channel(run), request, dry_run, timeout_s, output)
        return
    folder = folder_of(run)
    state = load_state(folder)
    spec = RunSpec.model_validate(state.spec)
    tallies = score_shadows(
        read(folder / "journal", ev.Event), spec.detectors.shadow_horizon_points
    )
    rows = [
        _row(name, mode, name in state.detectors, tallies.get(name, Tally()))
        for name, mode in modes_now(state, spec).items()
    ]
    if output is Output.JSON:
        print_json(rows)
        return
    print(f"{'detector':18} {'mode':8} {'raised':>7} {'right':>7} {'wrong':>7}  precision")
    for row in rows:
        precision = "-" if row["precision"] is None else f"{row['precision']:.2f}"
        mode = f"{row['mode']}{'*' if row['is_changed'] else ''}"
        print(
            f"{row['detector']:18} {mode:8} {row['raised']:>7} {row['confirmed']:>7} "
            f"{row['refuted']:>7}  {precision}"
        )
    print("counted while in shadow: warnings and rollbacks it would have called. *: switched since")


def _row(
    name: str, mode: str, is_changed: bool, tally: Tally
) -> dict[str, str | int | float | None]:
    return {
        "detector": name,
        "mode": mode,
        "is_changed": is_changed,
        "raised": tally.raised,
        "confirmed": tally.confirmed,
        "refuted": tally.refuted,
        "precision": tally.precision,
    }
