"""Commands that change a run: each lays a request on its desk; the controller acts.

By default a command waits until the request is settled and says what came of it.
"""

from __future__ import annotations

import getpass
import secrets
import time
from pathlib import Path
from typing import Annotated

import typer
from msgspec.structs import replace

from ...logbook.decisions import Decision
from ...logbook.errors import ConfigError, MidwatchError
from ...logbook.events import InterventionRequested
from ...logbook.state import Intervention, RunState
from ..aftermath import hand_in
from ..policy.decide import decide
from ..spec import RunSpec
from .output import CONFLICT, Output, OutputOption, RunArgument, print_json
from .runs import StateFollower, find_run

POLL_S = 0.1
SETTLED = ("applied", "rejected", "failed", "reverted")

ReasonOption = Annotated[str, typer.Option("--reason", help="Why; it goes into the record.")]
ExpectOption = Annotated[
    int | None, typer.Option("--expect-attempt", help="Refuse unless this attempt is current.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show the decision, change nothing.")]
TimeoutOption = Annotated[float, typer.Option("--timeout-s", help="How long to wait; 0: do not.")]


def lr(
    run: RunArgument = None,
    to: Annotated[float | None, typer.Option(help="New rate of the next step.")] = None,
    factor: Annotated[float | None, typer.Option(help="Factor on the remaining schedule.")] = None,
    reason: ReasonOption = "",
    expect_attempt: ExpectOption = None,
    dry_run: DryRunOption = False,
    timeout_s: TimeoutOption = 60.0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Change the learning rate from the next step on; it survives restarts."""
    if (to is None) == (factor is None):
        raise ConfigError("usage", "give exactly one of --to and --factor.")
    action, value = ("lr", to) if to is not None else ("lr-factor", factor)
    assert value is not None
    request = make_request(action, reason, value=value, expect_attempt=expect_attempt)
    submit(find_run(run), request, dry_run, timeout_s, output)


def stop(
    run: RunArgument = None,
    reason: ReasonOption = "",
    expect_attempt: ExpectOption = None,
    dry_run: DryRunOption = False,
    timeout_s: TimeoutOption = 120.0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Finish the current step, save, and end the run."""
    request = make_request("stop", reason, expect_attempt=expect_attempt)
    submit(find_run(run), request, dry_run, timeout_s, output)


def resume(
    run: RunArgument = None,
    reason: ReasonOption = "",
    dry_run: DryRunOption = False,
    timeout_s: TimeoutOption = 60.0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Set a paused run going again; spent budgets start anew."""
    submit(find_run(run), make_request("resume", reason), dry_run, timeout_s, output)


def release(
    node: Annotated[str, typer.Argument(help="Name of the node.")],
    run: RunArgument = None,
    reason: ReasonOption = "",
    dry_run: DryRunOption = False,
    timeout_s: TimeoutOption = 60.0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Use a quarantined node again."""
    request = make_request("release", reason, target=node)
    submit(find_run(run), request, dry_run, timeout_s, output)


def make_request(
    action: str,
    reason: str,
    *,
    value: float = 0.0,
    target: str = "",
    expect_attempt: int | None = None,
) -> InterventionRequested:
    if not reason:
        raise ConfigError("usage", "every change needs --reason.", remedy="Say why in a few words.")
    return InterventionRequested(
        id=f"{action}-{secrets.token_hex(4)}",
        action=action,
        by=getpass.getuser(),
        reason=reason,
        value=value,
        target=target,
        expect_attempt=expect_attempt,
    )


def submit(
    folder: Path, request: InterventionRequested, dry_run: bool, timeout_s: float, output: Output
) -> None:
    follower = StateFollower(folder)
    follower.poll()
    if dry_run:
        _show_dry_run(follower.state, request, output)
        return
    hand_in(folder, request, follower.state)
    if timeout_s <= 0:
        _answer({"id": request.id, "stage": "requested"}, f"requested as {request.id}", output)
        return
    known = _wait(follower, request.id, timeout_s)
    detail = f": {known.detail}" if known.detail else ""
    at = f" at step {known.at_step}" if known.at_step is not None else ""
    _answer(known, f"{request.id}: {known.stage}{at}{detail}{_values(known)}", output)
    if known.stage in ("rejected", "failed"):
        raise SystemExit(CONFLICT)


def _wait(follower: StateFollower, name: str, timeout_s: float) -> Intervention:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        follower.poll()
        known = follower.state.interventions.get(name)
        if known is not None and known.stage in SETTLED:
            return known
        time.sleep(POLL_S)
    known = follower.state.interventions.get(name)
    where = known.stage if known is not None else "not yet seen by the controller"
    raise MidwatchError(
        "timed-out", f"{name} is {where} after {timeout_s:.0f} s; it stands and may still apply."
    )


def _values(known: Intervention) -> str:
    changed = {
        name: (known.previous.get(name), value)
        for name, value in known.readback.items()
        if known.previous.get(name) != value
    }
    text = ", ".join(
        f"{name} {before:g} -> {after:g}"
        for name, (before, after) in changed.items()
        if before is not None
    )
    return f" ({text}; read back from {len(known.acks)} ranks)" if text else ""


def _show_dry_run(state: RunState, request: InterventionRequested, output: Output) -> None:
    decisions = plan_request(state, request, time.time())
    _answer(decisions, plan_text(decisions), output)


def plan_request(state: RunState, request: InterventionRequested, now_s: float) -> list[Decision]:
    """Return what would be decided about a request at now_s, [] when it would have to wait."""
    asked = Intervention(request=request, requested_s=now_s)
    # Everything else that waits is left out, so the answer is about this request alone.
    alone = replace(state, interventions={request.id: asked})
    return decide(alone, RunSpec.model_validate(state.spec), now_s)


def plan_text(decisions: list[Decision]) -> str:
    """Return what a dry run found, for a person."""
    text = "\n".join(
        f"would decide {d.action.__struct_config__.tag}: {d.reason}" for d in decisions
    )
    return text or "would wait: the run is not training now"


def _answer(value: object, text: str, output: Output) -> None:
    if output is Output.JSON:
        print_json(value)
    else:
        print(text)
