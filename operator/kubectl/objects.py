"""Commands that leave an object in the cluster: for those who may ask, but hold no token."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer

from ...logbook.errors import ConfigError, MidwatchError
from ..cli.output import CONFLICT, Output, OutputOption, print_json
from .cluster import GROUP, RUNS, Kubectl

VERSION = f"{GROUP}/v1alpha1"
INTERVENTIONS = f"interventions.{GROUP}"
APPROVALS = f"interventionapprovals.{GROUP}"
POLL_S = 1.0
ENDED = ("Applied", "Failed", "Reverted")

ReasonOption = Annotated[str, typer.Option("--reason", help="Why; it goes into the record.")]
WaitOption = Annotated[float, typer.Option("--timeout-s", help="How long to wait; 0: do not.")]


def intervene(
    ctx: typer.Context,
    run: Annotated[str, typer.Argument(help="Name of the TrainingRun.")],
    action: Annotated[str, typer.Argument(help="As in the CRD: SetLearningRate, Pause, ...")],
    reason: ReasonOption = "",
    value: Annotated[str | None, typer.Option(help="New value, a decimal number.")] = None,
    multiplier: Annotated[str | None, typer.Option(help="Factor, a decimal number.")] = None,
    values: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=NUMBER, of SetOptimizer and SetScaler.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Node, checkpoint, incident, ...")] = None,
    expect_attempt: Annotated[
        int | None, typer.Option(help="Refuse unless this attempt is current.")
    ] = None,
    expect_lr: Annotated[
        str | None, typer.Option(help="Refuse unless this is the learning rate.")
    ] = None,
    expect_seq: Annotated[
        int | None, typer.Option(help="Refuse if the same was changed after this record.")
    ] = None,
    at_step: Annotated[int | None, typer.Option(help="Not before this step.")] = None,
    for_steps: Annotated[int | None, typer.Option(help="Take it back after so many steps.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Decide, but do nothing.")] = False,
    timeout_s: WaitOption = 60.0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Create an Intervention: each action has a permission of its own in the cluster."""
    kubectl: Kubectl = ctx.obj
    _require(reason)
    uid = kubectl.get(RUNS, run)["metadata"]["uid"]
    params = {
        "value": value,
        "multiplier": multiplier,
        "values": _by_name(values or []),
        "target": target,
    }
    expect = {"attempt": expect_attempt, "learningRate": expect_lr, "seq": expect_seq}
    spec = {
        "runRef": {"name": run, "uid": uid},
        "action": action,
        "params": _given(params),
        "reason": reason,
        "requestedBy": kubectl.user(),
        "expect": _given(expect),
        "atStep": at_step,
        "forSteps": for_steps,
        "dryRun": dry_run or None,
    }
    made = _create(kubectl, "Intervention", f"{run}-{action.lower()}-"[:200], _given(spec))
    name = made["metadata"]["name"]
    if timeout_s > 0:
        made = _wait(kubectl, name, timeout_s)
    _tell(made, output)


def approve(
    ctx: typer.Context,
    intervention: Annotated[str, typer.Argument(help="Name of the Intervention.")],
    reason: ReasonOption = "",
    output: OutputOption = Output.TEXT,
) -> None:
    """Approve an Intervention of somebody else's, where two people are wanted."""
    _decide(ctx.obj, intervention, "Approve", reason, output)


def reject(
    ctx: typer.Context,
    intervention: Annotated[str, typer.Argument(help="Name of the Intervention.")],
    reason: ReasonOption = "",
    output: OutputOption = Output.TEXT,
) -> None:
    """Reject an Intervention that waits for a second person."""
    _decide(ctx.obj, intervention, "Reject", reason, output)


def _decide(kubectl: Kubectl, name: str, decision: str, reason: str, output: Output) -> None:
    _require(reason)
    uid = kubectl.get(INTERVENTIONS, name)["metadata"]["uid"]
    spec = {
        "interventionRef": {"name": name, "uid": uid},
        "decision": decision,
        "reason": reason,
        "approvedBy": kubectl.user(),
    }
    made = _create(kubectl, "InterventionApproval", f"{name}-"[:200], spec)
    if output is Output.JSON:
        print_json(made)
    else:
        print(f"interventionapproval.{GROUP}/{made['metadata']['name']} created")


def _require(reason: str) -> None:
    if not reason:
        raise ConfigError("usage", "every change needs --reason.", remedy="Say why in a few words.")


def _by_name(pairs: list[str]) -> dict[str, str]:
    """Values by the name before their equals sign. Raises: ConfigError[usage]."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise ConfigError("usage", f"--set {pair!r} is not NAME=NUMBER.")
        found[name] = value
    return found


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in (None, {})}


def _create(kubectl: Kubectl, kind: str, prefix: str, spec: dict[str, Any]) -> dict[str, Any]:
    body = {
        "apiVersion": VERSION,
        "kind": kind,
        "metadata": {"generateName": prefix},
        "spec": spec,
    }
    told = kubectl.call("create", "-f", "-", "-o", "json", given=json.dumps(body).encode())
    made = json.loads(told)
    assert isinstance(made, dict)
    return made


def _wait(kubectl: Kubectl, name: str, timeout_s: float) -> dict[str, Any]:
    deadline_s = time.monotonic() + timeout_s
    while True:
        found = kubectl.get(INTERVENTIONS, name)
        if _ended(found):
            return found
        if time.monotonic() > deadline_s:
            raise MidwatchError(
                "timed-out",
                f"{name} is undecided after {timeout_s:g} s; it stands and may still apply.",
                remedy=f"`kubectl describe intv {name}` tells what it waits for.",
            )
        time.sleep(POLL_S)


def _conditions(found: dict[str, Any]) -> dict[str, str]:
    listed = (found.get("status") or {}).get("conditions") or []
    return {c["type"]: c["status"] for c in listed}


def _ended(found: dict[str, Any]) -> bool:
    if (found.get("status") or {}).get("settledAt"):
        return True
    conditions = _conditions(found)
    refused = conditions.get("Accepted") == "False" or conditions.get("Approved") == "False"
    return refused or any(conditions.get(kind) == "True" for kind in ENDED)


def _tell(found: dict[str, Any], output: Output) -> None:
    if output is Output.JSON:
        print_json(found)
    else:
        status = found.get("status") or {}
        values = f" ({status['previous']} -> {status['current']})" if status.get("current") else ""
        stage = status.get("stage") or "created"
        at = f" at step {status['appliedAtStep']}" if status.get("appliedAtStep") else ""
        message = f": {status['message']}" if status.get("message") else ""
        print(f"intervention.{GROUP}/{found['metadata']['name']} {stage}{at}{values}{message}")
    conditions = _conditions(found)
    if "False" in (conditions.get("Accepted"), conditions.get("Approved")) or (
        conditions.get("Failed") == "True"
    ):
        raise SystemExit(CONFLICT)
