"""Commands that change what the run trains with: rate, clip, loss scaler, optimizer, data."""

from __future__ import annotations

from typing import Annotated

import typer

from ...logbook.errors import ConfigError
from ...logbook.parameters import parse_range
from .channel import open_channel
from .output import Output, OutputOption, RunArgument
from .steer import (
    AtStepOption,
    DryRunOption,
    ExpectOption,
    ExpectValueOption,
    ForStepsOption,
    ReasonOption,
    TimeoutOption,
    make_request,
    submit,
)


def lr(
    run: RunArgument = None,
    to: Annotated[float | None, typer.Option(help="New rate of that step.")] = None,
    factor: Annotated[float | None, typer.Option(help="Factor on the remaining schedule.")] = None,
    reason: ReasonOption = "",
    at_step: AtStepOption = None,
    for_steps: ForStepsOption = None,
    expect: ExpectValueOption = None,
    expect_attempt: ExpectOption = None,
    dry_run: DryRunOption = False,
    timeout_s: TimeoutOption = 60.0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Change the learning rate from one step on; it survives restarts."""
    if (to is None) == (factor is None):
        raise ConfigError("usage", "give exactly one of --to and --factor.")
    action, value = ("lr", to) if to is not None else ("lr-factor", factor)
    request = make_request(
        action,
        reason,
        value=value,
        at_step=at_step,
        for_steps=for_steps,
        expect_value=expect,
        expect_attempt=expect_attempt,
    )
    submit(open_channel(run), request, dry_run, timeout_s, output)


def clip(
    run: RunArgument = None,
    to: Annotated[float | None, typer.Option(help="Largest gradient norm let through.")] = None,
    reason: ReasonOption = "",
    at_step: AtStepOption = None,
    for_steps: ForStepsOption = None,
    expect: ExpectValueOption = None,
    expect_attempt: ExpectOption = None,
    dry_run: DryRunOption = False,
    timeout_s: TimeoutOption = 60.0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Change the gradient clip from one step on; it survives restarts."""
    if to is None:
        raise ConfigError("usage", "give the new clip with --to.")
    request = make_request(
        "grad-clip",
        reason,
        value=to,
        at_step=at_step,
        for_steps=for_steps,
        expect_value=expect,
        expect_attempt=expect_attempt,
    )
    submit(open_channel(run), request, dry_run, timeout_s, output)


def scaler(
    run: RunArgument = None,
    reset: Annotated[
        float | None, typer.Option(help="Sets the loss scale; then it moves by itself.")
    ] = None,
    floor: Annotated[float | None, typer.Option(help="The scale never goes below it.")] = None,
    reason: ReasonOption = "",
    at_step: AtStepOption = None,
    for_steps: ForStepsOption = None,
    expect: ExpectValueOption = None,
    expect_attempt: ExpectOption = None,
    dry_run: DryRunOption = False,
    timeout_s: TimeoutOption = 60.0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Reset the loss scale of fp16 training, or change its floor, from one step on."""
    request = make_request(
        "scaler",
        reason,
        values=_given({"loss-scale": reset, "loss-scale-floor": floor}),
        at_step=at_step,
        for_steps=for_steps,
        expect_value=expect,
        expect_attempt=expect_attempt,
    )
    submit(open_channel(run), request, dry_run, timeout_s, output)


def optimizer(
    run: RunArgument = None,
    beta1: Annotated[float | None, typer.Option(help="Decay of the first moment.")] = None,
    beta2: Annotated[float | None, typer.Option(help="Decay of the second moment.")] = None,
    eps: Annotated[float | None, typer.Option(help="Added to the root of it.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Decay of matrices.")] = None,
    reason: ReasonOption = "",
    at_step: AtStepOption = None,
    for_steps: ForStepsOption = None,
    expect: ExpectValueOption = None,
    expect_attempt: ExpectOption = None,
    dry_run: DryRunOption = False,
    timeout_s: TimeoutOption = 60.0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Change Adam's own values from one step on; they survive restarts."""
    given = {"beta1": beta1, "beta2": beta2, "eps": eps, "weight-decay": weight_decay}
    request = make_request(
        "optimizer",
        reason,
        values=_given(given),
        at_step=at_step,
        for_steps=for_steps,
        expect_value=expect,
        expect_attempt=expect_attempt,
    )
    submit(open_channel(run), request, dry_run, timeout_s, output)


def skip(
    run: RunArgument = None,
    data_steps: Annotated[
        str, typer.Option(help="FIRST:LAST, LAST not included; data_step of the journal.")
    ] = "",
    samples: Annotated[
        str, typer.Option(help="The same in samples; every data step with one of them goes.")
    ] = "",
    reason: ReasonOption = "",
    expect_attempt: ExpectOption = None,
    dry_run: DryRunOption = False,
    timeout_s: TimeoutOption = 60.0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Leave out data that is still to come."""
    target = data_steps or f"samples {samples}"
    if bool(data_steps) == bool(samples) or parse_range(target) is None:
        raise ConfigError(
            "usage", "give exactly one of --data-steps and --samples, as FIRST:LAST in numbers."
        )
    request = make_request("skip", reason, target=target, expect_attempt=expect_attempt)
    submit(open_channel(run), request, dry_run, timeout_s, output)


def _given(values: dict[str, float | None]) -> dict[str, float]:
    found = {name: value for name, value in values.items() if value is not None}
    if not found:
        options = ", ".join(f"--{name}" for name in values).replace("--loss-scale-floor", "--floor")
        raise ConfigError("usage", f"give one of {options}.".replace("--loss-scale", "--reset"))
    return found
