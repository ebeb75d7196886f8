"""How commands ask a run for a change: a request is laid on its desk, and the controller acts.

By default a command waits until the request is settled and says what came of it.
"""

from __future__ import annotations

import getpass
import secrets
import sys
import time
from typing import Annotated, Any

import typer
from msgspec.structs import replace

from ...logbook.action_phrases import action_text
from ...logbook.decisions import Decision, RejectIntervention
from ...logbook.errors import ConfigError, MidwatchError, Retryable
from ...logbook.events import InterventionRequested
from ...logbook.phrases import request_text, touch_text
from ...logbook.state import Intervention
from .channel import Channel
from .channel import plan_request as plan_request
from .output import CONFLICT, Output, print_json

WAITS = "the run is not training, or at work on the same: the request stands until it can be done"
SETTLED = ("scheduled", "applied", "rejected", "failed", "reverted", "expired")

ReasonOption = Annotated[str, typer.Option("--reason", help="Why; it goes into the record.")]
ExpectOption = Annotated[
    int | None, typer.Option("--expect-attempt", help="Refuse unless this attempt is current.")
]
ExpectValueOption = Annotated[
    float | None, typer.Option("--expect", help="Refuse unless this is the value in force.")
]
AtStepOption = Annotated[
    int | None, typer.Option("--at-step", help="The first step under it; at once by default.")
]
AfterStepOption = Annotated[
    int | None, typer.Option("--at-step", help="When this step is completed; by default at once.")
]
ForStepsOption = Annotated[
    int | None, typer.Option("--for-steps", help="Takes itself back after so many steps.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show the decision, change nothing.")]
TimeoutOption = Annotated[float, typer.Option("--timeout-s", help="How long to wait; 0: do not.")]


def make_request(action: str, reason: str, **more: Any) -> InterventionRequested:
    """Return a request by whoever runs this; more: its other fields. Raises ConfigError[usage]."""
    if not reason.strip():
        raise ConfigError("usage", "every change needs --reason.", remedy="Say why in a few words.")
    return InterventionRequested(
        id=f"{action}-{secrets.token_hex(4)}",
        action=action,
        by=getpass.getuser(),
        reason=reason,
        **more,
    )


def submit(
    channel: Channel,
    request: InterventionRequested,
    dry_run: bool,
    timeout_s: float,
    output: Output,
) -> None:
    """Ask for a change, or try it out, and say what comes of it.

    The request names the newest event at this moment: what somebody else changes behind that is a
    conflict. Raises: MidwatchError[timed-out]; SystemExit with CONFLICT when it is refused, or
    would be.
    """
    if request.seen_seq is None:
        request = replace(request, seen_seq=channel.seq())
    if dry_run:
        decisions = channel.plan(request)
        _answer(decisions, plan_text(request, decisions), output)
        if any(isinstance(decision.action, RejectIntervention) for decision in decisions):
            raise SystemExit(CONFLICT)
        return
    waits = timeout_s > 0 and not channel.plan(request)
    for topic, touch in channel.post(request).items():
        print(f"just before, {touch_text(topic, touch)}", file=sys.stderr)
    if timeout_s <= 0:
        _answer({"id": request.id, "stage": "requested"}, f"requested as {request.id}", output)
        return
    if waits:
        print(f"{request.id}: {WAITS}; waiting {timeout_s:g} s for it", file=sys.stderr)
    known = wait_until_settled(channel, request.id, timeout_s)
    detail = f": {known.detail}" if known.detail else ""
    _answer(known, f"{request.id}: {known.stage}{_when(known)}{detail}{_values(known)}", output)
    if known.stage in ("rejected", "failed"):
        raise SystemExit(CONFLICT)


def wait_until_settled(channel: Channel, name: str, timeout_s: float) -> Intervention:
    """Return a request once it is settled. Raises: MidwatchError[timed-out]."""
    deadline_s = time.monotonic() + timeout_s
    where = "not yet seen by the controller"
    while True:
        known: Intervention | None = None
        try:
            known = channel.look(name)
            where = known.stage if known is not None else where
        except Retryable as error:
            # Who serves the run may come back within the time that there is.
            where = f"out of sight ({error.message})"
        if known is not None and known.stage in SETTLED:
            return known
        if time.monotonic() >= deadline_s:
            break
        time.sleep(channel.poll_s)
    raise MidwatchError(
        "timed-out", f"{name} is {where} after {timeout_s:.0f} s; it stands and may still apply."
    )


def _when(known: Intervention) -> str:
    at = f" at step {known.at_step}" if known.at_step is not None else ""
    return at + (f" up to step {known.until_step - 1}" if known.until_step is not None else "")


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


def plan_text(request: InterventionRequested, decisions: list[Decision]) -> str:
    """Return what a dry run of a request found, for a person."""
    lines = []
    for decision in decisions:
        lines.append(f"would {action_text(decision.action)}: {decision.reason}")
        lines += [f"    {what}: {value}" for what, value in decision.evidence]
    return "\n".join(lines) or f"would wait with {request_text(request)}: {WAITS}"


def _answer(value: object, text: str, output: Output) -> None:
    if output is Output.JSON:
        print_json(value)
    else:
        print(text)
