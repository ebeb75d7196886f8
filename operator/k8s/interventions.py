"""Interventions, purely: from objects to requests, and back from what the run tells to statuses.

The object's uid is the request's id, so that laying it before the run twice is once. What the run
says of it is the truth; the object only shows it. The run's own limits are judged by the run;
here is what only Kubernetes knows: the policy of the TrainingRun, approvals, expiry, how many.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from ..policy.refusals import SAME_RATE_FRAC
from . import names
from .actions import Action, Ask, LabelIntervention, RemoveIntervention, SetInterventionStatus
from .bad_nodes import known_exclusions
from .conditions import FALSE, TRUE, UNKNOWN
from .intervention_status import StatusOf, is_laid, mirrored
from .model import InterventionPolicy
from .observed import Object, Observed, time_of

ACTIONS = {
    "SetLearningRate": "lr",
    "SetGradClip": "grad-clip",
    "SetScaler": "scaler",
    "SetOptimizer": "optimizer",
    "SkipData": "skip",
    "Checkpoint": "checkpoint",
    "Rollback": "rollback",
    "Pause": "pause",
    "Resume": "resume",
    "Stop": "stop",
    "QuarantineNode": "quarantine",
    "ReleaseNode": "release",
    "AcknowledgeIncident": "ack",
    "SetDetector": "detector",
    "PinCheckpoint": "pin",
    "UnpinCheckpoint": "unpin",
    "VerifyCheckpoint": "verify",
    "QuarantineCheckpoint": "quarantine-checkpoint",
    "ReleaseCheckpoint": "release-checkpoint",
    "PruneCheckpoints": "prune",
    "RevertIntervention": "revert",
}
_COMING = "BringingBack"
_RELEASING = "Releasing"
HOUR_S = 3600.0
BY_CHARS = 128
ORPHAN_S = 60.0
"""A request may be there before its run is."""
ORPHAN_RETENTION_S = 2_592_000.0
"""How long what was asked of a run that is gone is kept."""


def to_request(intervention: Object) -> dict[str, Any]:
    """Return the request that an Intervention amounts to; what it leaves open is left out.

    It is a function of the object alone: asked for again under its id, it must be the same.
    """
    spec = intervention["spec"]
    params, expect = spec.get("params") or {}, spec.get("expect") or {}
    multiplier = params.get("multiplier")
    request: dict[str, Any] = {
        "id": intervention["metadata"]["uid"],
        "action": "lr-factor" if multiplier is not None else ACTIONS[spec["action"]],
        "reason": spec["reason"],
        "by": spec["requestedBy"][:BY_CHARS],
    }
    number = multiplier if multiplier is not None else params.get("value")
    optional = {
        "value": float(number) if number is not None else None,
        "target": params.get("target") or None,
        "values": {name: float(value) for name, value in (params.get("values") or {}).items()},
        "expect_attempt": expect.get("attempt"),
        # Where it is the rate itself that is set; the rest is compared before it is laid there.
        "expect_value": float(expect["learningRate"]) if _names_the_rate(spec) else None,
        "seen_seq": expect.get("seq"),
        "at_step": spec.get("atStep"),
        "for_steps": spec.get("forSteps"),
    }
    return {**request, **{key: value for key, value in optional.items() if value not in (None, {})}}


def is_automatic(intervention: Object) -> bool:
    """Whether the operator recorded it of the controller's own accord."""
    labels = intervention["metadata"].get("labels") or {}
    return bool(labels.get(names.ORIGIN_LABEL) == names.AUTOMATIC)


def plan_interventions(observed: Observed, policy: InterventionPolicy) -> list[Action]:
    """Return what is next for every Intervention of people, oldest first."""
    planned: list[Action] = []
    for each in sorted(observed.interventions, key=_age):
        status = each.get("status") or {}
        settled_s = time_of(status.get("settledAt"))
        if settled_s is not None:
            if observed.now_s > settled_s + policy.retention_seconds:
                meta = each["metadata"]
                planned.append(RemoveIntervention(meta["name"], meta["uid"]))
        elif not is_automatic(each):
            planned += _labelled(observed, each)
            planned += _next(observed, policy, each)
    return planned


def released_nodes(observed: Observed, policy: InterventionPolicy) -> tuple[str, ...]:
    """Return the cluster's nodes that people want used again, as far as that is not settled."""
    found = []
    for each in observed.interventions:
        is_over = (each.get("status") or {}).get("settledAt") or each["spec"].get("dryRun")
        if each["spec"]["action"] != "ReleaseNode" or is_automatic(each) or is_over:
            continue
        status = StatusOf(each, observed.now_s)
        is_held = not is_laid(each) and (
            _refusal(observed, policy, each) or _approval(observed, policy, each, status)
        )
        found += [] if is_held else [_target(each)]
    return tuple(found)


def plan_orphans(
    interventions: Sequence[Object], runs: Collection[str], now_s: float
) -> list[Action]:
    """Return what is due for Interventions whose run is not there, or is there no more.

    runs: names of the TrainingRuns in their namespace.
    """
    planned: list[Action] = []
    for each in interventions:
        meta, status = each["metadata"], each.get("status") or {}
        name = each["spec"]["runRef"]["name"]
        age_s = now_s - (time_of(meta.get("creationTimestamp")) or now_s)
        if name in runs or age_s < ORPHAN_S:
            continue
        settled_s = time_of(status.get("settledAt"))
        if settled_s is None and is_laid(each):
            planned.append(StatusOf(each, now_s).settle_as_told())
        elif settled_s is None:
            said = StatusOf(each, now_s)
            message = f"there is no TrainingRun {name!r} in this namespace"
            said.conditions.set("Accepted", FALSE, "NoSuchRun", message)
            planned.append(said.settle("rejected", message))
        elif now_s > settled_s + ORPHAN_RETENTION_S:
            planned.append(RemoveIntervention(meta["name"], meta["uid"]))
    return planned


def _next(observed: Observed, policy: InterventionPolicy, each: Object) -> list[Action]:
    status = StatusOf(each, observed.now_s)
    known = observed.sight.interventions.get(each["metadata"]["uid"]) if observed.sight else None
    is_resumption = each["spec"]["action"] == "Resume"
    if known is not None:
        # A run that has lost its controller has nobody who judges what lies before it.
        is_unheard = is_resumption and known.get("stage") == "requested"
        brought_back = _bring_back(observed, each, status) if is_unheard else None
        return _news(status, brought_back or mirrored(observed, each, status, known))
    if is_laid(each):
        # The run has it, and may have done it: what it told last stands until it is seen again.
        return []
    why = _refusal(observed, policy, each)
    if why is not None:
        status.conditions.set("Accepted", FALSE, *why)
        return [status.settle("rejected", why[1])]
    waiting = _approval(observed, policy, each, status)
    if waiting is not None:
        return _news(status, waiting)
    if is_resumption:
        brought_back = _bring_back(observed, each, status)
        if brought_back is not None:
            return _news(status, brought_back)
    request = _at_ray_node(observed, to_request(each))
    is_dry = bool(each["spec"].get("dryRun"))
    if each["spec"]["action"] == "ReleaseNode" and not is_dry:
        released = _release(observed, each, status, request)
        if released is not None:
            return _news(status, released)
    if observed.sight is None:
        return _news(status, _unreached(observed, status))
    return [Ask(request, is_dry, each["metadata"]["name"])]


def _release(
    observed: Observed, each: Object, status: StatusOf, request: dict[str, Any]
) -> SetInterventionStatus | None:
    """Return the status of the release of a node of the cluster, None where the run is to be asked.

    What it takes off the list is noted first: the next look finds nothing there any more.
    """
    target = _target(each)
    if any(target == row["node"] for row in known_exclusions(observed)):
        message = f"{target} is taken off the nodes that are left out"
        status.conditions.set("Accepted", TRUE, _RELEASING, message)
        return status.write("accepted", message)
    if request.get("target") != target:
        return None
    known = (each.get("status") or {}).get("conditions") or ()
    if target in observed.nodes or any(c["reason"] == _RELEASING for c in known):
        return _released(status, target)
    return None


def _unreached(observed: Observed, status: StatusOf) -> SetInterventionStatus:
    """Return the status of a request to a run that is not there: for now, or for good."""
    if observed.status.get("finishedAt") and observed.cluster is None:
        told = (observed.status.get("run") or {}).get("status") or "over"
        message = f"the run is {told}, and its pods are gone"
        status.conditions.set("Accepted", FALSE, "RunFinished", message)
        return status.settle("rejected", message)
    if (observed.run.get("spec") or {}).get("suspend"):
        message = "the run is suspended: this waits until it goes on"
        status.conditions.set("Accepted", UNKNOWN, "Suspended", message)
        return status.write("pending", message)
    status.conditions.set("Accepted", UNKNOWN, "RunAway", "the run cannot be reached just now")
    return status.write("pending", "waiting for the run")


def _bring_back(observed: Observed, each: Object, status: StatusOf) -> SetInterventionStatus | None:
    """Return the status of a resumption of a run that has stopped: its pods come anew.

    None where the run is there to be asked. That it is accepted is what the pods come for.
    """
    is_coming = any(
        c["reason"] == _COMING for c in (each.get("status") or {}).get("conditions") or ()
    )
    sight = observed.sight
    known = (observed.status.get("run") or {}).get("status") if sight is None else sight.status
    if known == "completed":
        status.conditions.set("Accepted", FALSE, "Completed", "the run is completed")
        return status.settle("rejected", "the run is completed")
    is_orphaned = not (observed.jobs or observed.reach.jobs)
    rests = sight is not None and (
        sight.status == "stopped" or (sight.status == "paused" and is_orphaned)
    )
    if not (rests or is_coming or observed.status.get("finishedAt")):
        return None
    if is_coming and sight is not None and sight.status not in ("stopped", "paused"):
        status.conditions.set("Accepted", TRUE, "Accepted", "")
        status.conditions.set("Applied", TRUE, "Resumed", sight.doing)
        return status.settle("applied", "the run goes on")
    status.conditions.set("Accepted", TRUE, _COMING, "the run gets its pods anew")
    return status.write("accepted", "the run gets its pods anew")


def _target(each: Object) -> str:
    return str((each["spec"].get("params") or {}).get("target", ""))


def _at_ray_node(observed: Observed, request: dict[str, Any]) -> dict[str, Any]:
    """Name the node of the run where a node of the cluster is named; people see both."""
    if request["action"] not in ("quarantine", "release") or observed.sight is None:
        return request
    hosts = {pod.ip for pod in observed.pods if pod.is_live and pod.node == request.get("target")}
    inside = [node.node for node in observed.sight.nodes if node.host in hosts]
    return {**request, "target": inside[0]} if inside else request


def _released(status: StatusOf, node: str) -> SetInterventionStatus:
    status.conditions.set("Accepted", TRUE, "Accepted", "")
    message = f"{node} is excluded no longer"
    status.conditions.set("Applied", TRUE, "Released", message)
    return status.settle("applied", message)


def _refusal(
    observed: Observed, policy: InterventionPolicy, each: Object
) -> tuple[str, str] | None:
    """Return (reason, message) of a request that is not laid before the run at all."""
    spec, meta = each["spec"], each["metadata"]
    uid, action = spec["runRef"].get("uid") or observed.uid, spec["action"]
    if uid != observed.uid:
        return "OtherRun", f"it is for the run with uid {uid}; this one has {observed.uid}"
    if action not in ACTIONS or (policy.allowed and action not in policy.allowed):
        allowed = ", ".join(policy.allowed or tuple(ACTIONS))
        return "NotAllowed", f"{action} is not allowed here; allowed: {allowed}"
    expires_s = time_of(spec.get("expiresAt"))
    if expires_s is not None and observed.now_s >= expires_s:
        return "Expired", f"it was to be done by {spec['expiresAt']}"
    made_s = time_of(meta.get("creationTimestamp")) or observed.now_s
    before = [
        other
        for other in observed.interventions
        if not is_automatic(other)
        and other["metadata"]["uid"] != meta["uid"]
        and _age(other) < _age(each)
        and (time_of(other["metadata"].get("creationTimestamp")) or 0.0) > made_s - HOUR_S
    ]
    if len(before) >= policy.max_per_hour:
        return "TooMany", f"{len(before)} in the hour before; allowed: {policy.max_per_hour}"
    return _rate_refusal(observed, policy, spec)


def _rate_refusal(
    observed: Observed, policy: InterventionPolicy, spec: Object
) -> tuple[str, str] | None:
    last = observed.sight.state.get("last") if observed.sight is not None else None
    rate = float(last["lr"]) if last else None
    expected = (spec.get("expect") or {}).get("learningRate")
    if rate is not None and not _names_the_rate(spec) and not _is_near(rate, expected):
        return "Conflict", f"learning rate {expected} was expected; it is {rate:g}"
    if spec["action"] != "SetLearningRate":
        return None
    params = spec.get("params") or {}
    if params.get("value") is not None:
        wanted = float(params["value"])
    elif rate is not None and params.get("multiplier") is not None:
        wanted = rate * float(params["multiplier"])
    else:
        return None
    low = float(policy.learning_rate_min or "0")
    high = float(policy.learning_rate_max or "inf")
    if not low <= wanted <= high:
        return "OutOfBounds", f"learning rate {wanted:g} is outside [{low:g}, {high:g}]"
    return None


def _names_the_rate(spec: Object) -> bool:
    """Whether the run itself can hold the request to the learning rate that is expected."""
    has_value = (spec.get("params") or {}).get("multiplier") is None
    is_expected = (spec.get("expect") or {}).get("learningRate") is not None
    return spec["action"] == "SetLearningRate" and has_value and is_expected


def _is_near(rate: float, expected: str | None) -> bool:
    return expected is None or math.isclose(rate, float(expected), rel_tol=SAME_RATE_FRAC)


def _approval(
    observed: Observed, policy: InterventionPolicy, each: Object, status: StatusOf
) -> SetInterventionStatus | None:
    """Return the status of a request that a second person has yet to approve, or has rejected."""
    spec, uid = each["spec"], each["metadata"]["uid"]
    if spec["action"] not in policy.require_approval or spec.get("dryRun"):
        return None
    given = [a for a in observed.approvals if a["spec"]["interventionRef"].get("uid") == uid]
    by_others = [a for a in given if a["spec"]["approvedBy"] != spec["requestedBy"]]
    for approval in sorted(by_others, key=_age):
        said = approval["spec"]
        who = f"{said['approvedBy']}: {said.get('reason', '')}".rstrip(": ")
        if said["decision"] == "Reject":
            status.conditions.set("Approved", FALSE, "Rejected", who)
            status.conditions.set("Accepted", FALSE, "NotApproved", who)
            return status.settle("rejected", f"rejected by {who}")
        status.conditions.set("Approved", TRUE, "Approved", who)
        return None
    own = "; its own author's word does not count" if given else ""
    message = f"waiting for an InterventionApproval by another person{own}"
    status.conditions.set("Approved", UNKNOWN, "Awaiting", message)
    return status.write("pending", message)


def _labelled(observed: Observed, each: Object) -> list[Action]:
    wanted = {
        names.RUN_LABEL: observed.name,
        names.RUN_UID_LABEL: observed.uid,
        names.ORIGIN_LABEL: names.PERSON,
    }
    labels = each["metadata"].get("labels") or {}
    if all(labels.get(key) == value for key, value in wanted.items()):
        return []
    return [LabelIntervention(each["metadata"]["name"], wanted)]


def _news(status: StatusOf, written: SetInterventionStatus) -> list[Action]:
    return [written] if status.is_news(written) else []


def _age(each: Object) -> tuple[str, str]:
    meta = each["metadata"]
    return str(meta.get("creationTimestamp", "")), str(meta["name"])
