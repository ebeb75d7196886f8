"""What the controller did by itself, as Intervention objects: one trail for people and machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from . import names
from .actions import Action, CreateIntervention, SetInterventionStatus
from .conditions import TRUE, UNKNOWN
from .intervention_status import StatusOf
from .interventions import is_automatic
from .model import InterventionPolicy
from .observed import Object, Observed

NEW_MAX = 20
"""Most objects made at one look, so that a storm of incidents is no storm of objects."""
_KINDS = {
    "quarantine-node": "QuarantineNode",
    "quarantine-checkpoint": "QuarantineCheckpoint",
    "pause-run": "Pause",
    "await-nodes": "AwaitNodes",
    "end-run": "End",
    "set-detector": "SetDetector",
}


def plan_automatic(observed: Observed, policy: InterventionPolicy) -> list[Action]:
    """Return the records yet to be made of decisions in incidents, and their statuses."""
    if observed.sight is None:
        return []
    there = {each["metadata"]["name"]: each for each in observed.interventions}
    planned: list[Action] = []
    num_new = 0
    for incident, decision in _decisions(observed.sight.state):
        kind = _kind(decision["action"])
        opened_s = float(incident.get("opened_s", 0.0))
        if not kind or observed.now_s > opened_s + policy.retention_seconds:
            continue
        name = _name(observed.name, str(decision["id"]))
        known = there.get(name)
        if known is None and num_new < NEW_MAX:
            num_new += 1
            planned.append(CreateIntervention(_body(observed, name, kind, incident, decision)))
        elif known is not None and is_automatic(known):
            planned += _status(observed, known, incident, decision)
    return planned


def _decisions(state: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    for incident in (state.get("incidents") or {}).values():
        for decision in incident.get("decisions") or ():
            yield incident, decision


def _kind(action: Mapping[str, Any]) -> str:
    if action.get("type") == "start-attempt":
        return "Rollback" if action.get("rollback_onset") is not None else "Restart"
    return _KINDS.get(str(action.get("type")), "")


def _name(run: str, decision: str) -> str:
    return f"{run}-auto-{decision.replace('/', '-')}".lower()


def _body(
    observed: Observed,
    name: str,
    kind: str,
    incident: Mapping[str, Any],
    decision: Mapping[str, Any],
) -> Object:
    action, draft = decision["action"], incident["draft"]
    params: Object = {}
    target = action.get("node") or action.get("checkpoint") or action.get("detector")
    checkpoints = list((action.get("plan") or {}).get("checkpoints") or ())
    if target or checkpoints:
        params["target"] = str(target or checkpoints[0])[:253]
    if action.get("lr_factor", 1.0) != 1.0:
        params["values"] = {"lr-factor": f"{action['lr_factor']:g}"}
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.INTERVENTION,
        "metadata": {
            "name": name,
            "namespace": observed.namespace,
            "labels": {
                names.RUN_LABEL: observed.name,
                names.RUN_UID_LABEL: observed.uid,
                names.ORIGIN_LABEL: names.AUTOMATIC,
            },
        },
        "spec": {
            "runRef": {"name": observed.name, "uid": observed.uid},
            "action": kind,
            "params": params,
            "reason": f"{draft['id']} ({draft['fault']}): {decision['reason']}"[:1024],
            "requestedBy": observed.user,
        },
    }


def _status(
    observed: Observed, known: Object, incident: Mapping[str, Any], decision: Mapping[str, Any]
) -> list[Action]:
    if (known.get("status") or {}).get("settledAt"):
        return []
    status = StatusOf(known, observed.now_s)
    status.conditions.set("Accepted", TRUE, "Automatic", str(decision["reason"])[:512])
    sight = observed.sight
    pending = (sight.state.get("pending") or {}) if sight is not None else {}
    written: SetInterventionStatus
    if decision["id"] in pending:
        status.conditions.set("Applied", UNKNOWN, "UnderWay", "")
        written = status.write("sent", "being done")
    else:
        outcome = str(incident.get("outcome") or "done")
        status.more["appliedAtStep"] = int(incident["draft"].get("step", 0))
        status.conditions.set("Applied", TRUE, "Done", outcome)
        written = status.settle("applied", outcome)
    return [written] if status.is_news(written) else []
