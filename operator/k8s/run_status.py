"""The status of a TrainingRun: figures and conditions, purely from what was observed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ...health.nodes.verdicts import Action as Verdict
from ...logbook.findings import Finding
from ..spec import RunSpec
from . import lifecycle, names
from .actions import SetRunStatus, Tell
from .bad_nodes import Exclusions
from .conditions import FALSE, TRUE, UNKNOWN, Conditions
from .model import TrainingRunSpec
from .observed import Object, Observed, time_text
from .refusals import BLOCKING, refusals

TYPES = (
    "Admitted",
    "Ready",
    "Progressing",
    "Degraded",
    "Stalled",
    "Succeeded",
    "CheckpointFresh",
    "SpecApplied",
)
_TOLD = ("Admitted", "Ready", "Degraded", "Stalled", "Succeeded", "SpecApplied")
_ALARMS = {
    ("Ready", FALSE),
    ("Degraded", TRUE),
    ("Stalled", TRUE),
    ("Admitted", FALSE),
    ("SpecApplied", FALSE),
}
_QUIET = frozenset(
    {"Starting", "ClusterStarting", "Suspending", "Suspended", "Completed", "Stopped"}
)
_READY_REASONS = {
    "new": "Starting",
    "waiting": "WaitingForNodes",
    "starting": "Starting",
    "recovering": "Recovering",
    "stopping": "Stopping",
    "paused": "Paused",
    "completed": "Completed",
    "stopped": "Stopped",
}
QUEUED = "RayClusterSuspended"
OLDER_RUN = "FolderHoldsCompletedRun"


class Judged(NamedTuple):
    """What reconcile() has found out besides what was observed."""

    spec: TrainingRunSpec
    run: RunSpec
    want: lifecycle.Want
    exclusions: Exclusions
    findings: Sequence[Finding]


def first_status(observed: Observed) -> SetRunStatus:
    """Return the status at first sight: every condition Unknown."""
    return _finish(observed, _conditions(observed), {})


def invalid_status(observed: Observed, message: str) -> SetRunStatus:
    """Return the status of a run whose spec cannot work. What runs already is left as it is."""
    conditions = _conditions(observed)
    conditions.set("Admitted", FALSE, "InvalidSpec", message)
    conditions.set("Ready", FALSE, "InvalidSpec", message)
    conditions.set("Stalled", TRUE, "InvalidSpec", message)
    return _finish(observed, conditions, _kept(observed))


def taken_status(observed: Observed) -> SetRunStatus:
    """Return the status of a run whose RayCluster cannot be made: another one has its name."""
    assert observed.cluster is not None
    meta = observed.cluster["metadata"]
    whose = (meta.get("labels") or {}).get(names.RUN_UID_LABEL)
    of_whom = f"was made for the TrainingRun with uid {whose}" if whose else "is somebody else's"
    message = f"RayCluster {meta['name']} {of_whom}: rename this run, or delete that RayCluster"
    conditions = _conditions(observed)
    conditions.set("Admitted", FALSE, "NameTaken", message)
    conditions.set("Ready", FALSE, "NameTaken", message)
    conditions.set("Stalled", TRUE, "NameTaken", message)
    return _finish(observed, conditions, _kept(observed))


def removal_status(observed: Observed) -> SetRunStatus:
    """Return the status of a run that is being deleted."""
    conditions = _conditions(observed)
    is_stopped = observed.sight is not None and observed.sight.is_over
    what = "its pods are taken away" if is_stopped else "it saves and stops"
    conditions.set("Ready", FALSE, "Deleting", what)
    conditions.set("Progressing", TRUE, "Deleting", what)
    refused = refusals(observed)
    if refused:
        conditions.set("Stalled", TRUE, *refused[0])
    since = lifecycle.stopping_since(observed, lifecycle.removal_id(observed))
    return _finish(observed, conditions, {**_kept(observed), "stoppingSince": time_text(since)})


def run_status(observed: Observed, judged: Judged) -> SetRunStatus:
    """Return the status of a run in its ordinary life."""
    conditions = _conditions(observed)
    _judge_admitted(observed, judged, conditions)
    reason, message = _judge_ready(observed, judged, conditions)
    _judge_course(observed, judged, conditions, reason, message)
    _judge_degraded(observed, judged, conditions)
    _judge_checkpoints(observed, conditions)
    _judge_spec(observed, judged, conditions)
    more = {
        **_kept(observed),
        **_figures(observed, judged),
        "excludedNodes": list(judged.exclusions.rows),
    }
    more.pop("finishedAt", None)
    more.pop("stoppingSince", None)
    if judged.want.stop and observed.cluster is not None:
        more["stoppingSince"] = time_text(lifecycle.stopping_since(observed, judged.want.stop))
    if judged.want.finished_s is not None:
        more["finishedAt"] = time_text(judged.want.finished_s)
    return _finish(observed, conditions, more)


def _conditions(observed: Observed) -> Conditions:
    known = observed.status.get("conditions") or ()
    return Conditions(TYPES, known, observed.generation, observed.now_s)


def _finish(observed: Observed, conditions: Conditions, more: Object) -> SetRunStatus:
    status = {
        "conditions": conditions.render(),
        "observedGeneration": observed.generation,
        **more,
    }
    news = [each for each in conditions.changed() if _is_news(each, observed)]
    # What several conditions say in the same words is told once.
    told = {(each["reason"], each["message"]): each for each in reversed(news)}
    return SetRunStatus(status, tuple(_tell(each) for each in reversed(told.values())))


def _is_news(condition: Object, observed: Observed) -> bool:
    """Whether people want to be told: not that all is as it was expected to be from the start."""
    kind, status = condition["type"], condition["status"]
    if kind not in _TOLD or status == UNKNOWN:
        return False
    known = {c["type"]: c["status"] for c in observed.status.get("conditions") or ()}
    is_first = known.get(kind, UNKNOWN) == UNKNOWN
    is_expected = is_first and kind in ("Admitted", "Degraded", "Stalled", "SpecApplied")
    return not is_expected or (kind, status) in _ALARMS


def _tell(condition: Object) -> Tell:
    about = condition["type"], condition["status"]
    is_alarm = about in _ALARMS and condition["reason"] not in _QUIET
    message = f"{about[0]}={about[1]}: {condition['message'] or condition['reason']}"
    return Tell(condition["reason"], message, type="Warning" if is_alarm else "Normal")


def _kept(observed: Observed) -> Object:
    """What stays in the status although it is not seen just now."""
    kept = ("run", "cluster", "job", "api", "excludedNodes", "finishedAt", "stoppingSince")
    return {key: observed.status[key] for key in kept if key in observed.status}


def _judge_admitted(observed: Observed, judged: Judged, conditions: Conditions) -> None:
    if observed.reach.kuberay:
        conditions.set("Admitted", FALSE, "KubeRayMissing", observed.reach.kuberay)
    elif judged.spec.scheduling.is_kueue and _cluster_says(observed, QUEUED):
        queue = judged.spec.scheduling.queue_name
        conditions.set("Admitted", FALSE, "Queued", f"queue {queue} has not admitted it yet")
    else:
        conditions.set("Admitted", TRUE, "Valid", "")


def _judge_ready(observed: Observed, judged: Judged, conditions: Conditions) -> tuple[str, str]:
    sight = observed.sight
    if judged.want.stop:
        gone = observed.cluster is None
        reason = "Suspended" if gone else "Suspending"
        message = "its pods are released" if gone else "it saves and stops"
    elif judged.want.recycles:
        reason, message = "ClusterStarting", "it gets its pods anew"
    elif judged.want.finished_s is not None and sight is None:
        # Its pods are gone: what it came to stands in the status already.
        known = [c for c in observed.status.get("conditions") or () if c["type"] == "Ready"]
        reason = known[0]["reason"] if known else "Completed"
        message = known[0]["message"] if known else ""
    elif lifecycle.holds_older_run(observed):
        folder = judged.run.run_dir
        reason = OLDER_RUN
        message = f"{folder} holds a completed run: rename this one, or move that folder away"
    elif sight is not None:
        reason = _READY_REASONS.get(sight.status, "Training")
        message = sight.doing
    else:
        reason, message = _why_unseen(observed, judged)
    is_ready = sight is not None and reason == "Training"
    conditions.set("Ready", TRUE if is_ready else FALSE, reason, message)
    return reason, message


def _why_unseen(observed: Observed, judged: Judged) -> tuple[str, str]:
    if observed.reach.kuberay:
        return "KubeRayMissing", observed.reach.kuberay
    refused = refusals(observed)
    if refused and refused[0][0] in BLOCKING:
        return refused[0]
    if observed.cluster is None:
        return "ClusterStarting", "its RayCluster is being made"
    wanted = lifecycle.wanted_pods(judged.run)
    if not lifecycle.pods_ready(observed, judged.spec, judged.run):
        ready = lifecycle.num_ready(observed)
        head = any(p.is_head and p.is_ready for p in observed.pods)
        at_head = "the head is ready" if head else "the head is not ready"
        return "PodsNotReady", f"{ready} of {wanted} pods of nodes are ready; {at_head}"
    job = lifecycle.last_job(observed)
    if lifecycle.is_start_spent(observed):
        return "ControllerNotStarted", f"{job.id} failed: {job.message}"[:900]
    if observed.reach.jobs:
        return "RayUnreachable", observed.reach.jobs
    if job is None or not job.is_over:
        return "ControllerStarting", "the controller is being put on the cluster"
    if job.status == "FAILED":
        return "ControllerFailed", f"{job.id} failed, another try follows: {job.message}"[:900]
    return "ApiUnreachable", observed.reach.api or "the run's API does not answer yet"


def _judge_course(
    observed: Observed, judged: Judged, conditions: Conditions, reason: str, message: str
) -> None:
    sight = observed.sight
    stuck = ("Paused", "ControllerNotStarted", "KubeRayMissing", OLDER_RUN)
    is_stuck = reason in (*stuck, *BLOCKING)
    conditions.set("Stalled", TRUE if is_stuck else FALSE, reason, message if is_stuck else "")
    at_rest = is_stuck or reason in ("Suspended", "Completed", "Stopped")
    conditions.set("Progressing", FALSE if at_rest else TRUE, reason, message)
    if reason == OLDER_RUN:
        conditions.set("Succeeded", FALSE, OLDER_RUN, message)
    elif sight is not None and sight.status == "completed":
        conditions.set("Succeeded", TRUE, "Completed", message)
    elif judged.want.finished_s is not None and sight is not None:
        conditions.set("Succeeded", FALSE, "Stopped", message)
    elif judged.want.finished_s is None:
        conditions.set("Succeeded", UNKNOWN, "NotFinished", "")


def _judge_degraded(observed: Observed, judged: Judged, conditions: Conditions) -> None:
    problems = refusals(observed)
    sight = observed.sight
    if judged.exclusions.refused:
        nodes = ", ".join(judged.exclusions.refused)
        limit = judged.spec.placement.max_excluded_nodes
        problems.append(("TooManyExcluded", f"{nodes} would be excluded, beyond {limit}"))
    incidents = tuple(sight.state.get("open_incidents") or ()) if sight is not None else ()
    if incidents:
        problems.append(("OpenIncidents", ", ".join(incidents)))
    if not judged.want.stop and judged.want.finished_s is None:
        problems += _missing_nodes(observed, judged)
    told = [f for f in judged.findings if f.action != Verdict.IGNORE]
    if told:
        problems.append(("NodeSigns", "; ".join(f"{f.node}: {f.message}" for f in told[:4])))
    is_to_run = judged.want.cluster and not judged.want.stop and judged.want.finished_s is None
    was_seen = bool((observed.status.get("run") or {}).get("seq"))
    if is_to_run and was_seen and sight is None and observed.reach.api:
        problems.append(("ApiUnreachable", observed.reach.api))
    if problems:
        reason = problems[0][0]
        conditions.set("Degraded", TRUE, reason, "; ".join(text for _, text in problems))
    else:
        conditions.set("Degraded", FALSE, "AsExpected", "")


def _missing_nodes(observed: Observed, judged: Judged) -> list[tuple[str, str]]:
    ready, wanted = lifecycle.num_ready(observed), lifecycle.wanted_pods(judged.run)
    if ready >= wanted or not judged.spec.owns_cluster:
        return []
    message = f"{ready} of {wanted} pods of nodes are ready"
    if ready >= judged.run.num_nodes and (observed.sight is not None or observed.jobs):
        return [("SparesMissing", f"{message}; the run needs {judged.run.num_nodes}")]
    return [("NodesMissing", message)] if judged.exclusions.rows else []


def _judge_checkpoints(observed: Observed, conditions: Conditions) -> None:
    if observed.sight is None:
        return
    state = observed.sight.state
    trouble = state.get("upload_trouble") or {}
    saves = state.get("save_trouble") or {}
    if trouble:
        nodes = ", ".join(sorted(trouble))
        conditions.set("CheckpointFresh", FALSE, "UploadsFail", f"uploads of {nodes} fail")
    elif saves and saves.get("over_s") is None:
        which = f"{saves['num']} in a row, the last of step {saves['step']}"
        message = f"saves fail, {which}: {saves['error']}"[:1024]
        conditions.set("CheckpointFresh", FALSE, "SavesFail", message)
    elif state.get("checkpoints"):
        conditions.set("CheckpointFresh", TRUE, "Saved", "")
    else:
        conditions.set("CheckpointFresh", UNKNOWN, "NoCheckpointYet", "")


def _judge_spec(observed: Observed, judged: Judged, conditions: Conditions) -> None:
    """What the controller was started with stays in force until it is started anew."""
    if judged.want.stop or judged.want.finished_s is not None:
        return
    is_in_force = lifecycle.is_spec_in_force(observed, judged.run)
    if is_in_force is False:
        message = "spec.run was changed after the controller began: suspend and resume to apply it"
        conditions.set("SpecApplied", FALSE, "SpecNotApplied", message)
    elif is_in_force:
        conditions.set("SpecApplied", TRUE, "InForce", "")


def _figures(observed: Observed, judged: Judged) -> Object:
    found: Object = {
        "api": {
            "service": names.api_name(observed.name),
            "port": names.API_PORT,
            "viewerSecret": names.token_secret_name(observed.name, names.VIEWER),
            "operatorSecret": names.token_secret_name(observed.name, names.OPERATOR),
        }
    }
    if observed.cluster is not None:
        meta = observed.cluster["metadata"]
        found["cluster"] = {
            "name": meta["name"],
            "uid": meta.get("uid", ""),
            "headPod": next((p.name for p in observed.pods if p.is_head and p.is_live), ""),
            "readyPods": lifecycle.num_ready(observed),
            "wantedPods": lifecycle.wanted_pods(judged.run),
        }
    job = lifecycle.last_job(observed)
    if job is not None:
        found["job"] = {"id": job.id, "status": job.status, "specDigest": job.spec}
    if observed.sight is not None:
        found["run"] = _run_figures(observed)
    return found


def _run_figures(observed: Observed) -> Object:
    sight = observed.sight
    assert sight is not None
    summary, state = sight.summary, sight.state
    last = state.get("last") or {}
    attempts = int(summary.get("attempts") or 0)
    usable = [n for n in sight.nodes if n.present and not n.quarantined]
    return {
        "status": sight.status,
        "doing": sight.doing[:1024],
        "step": int(summary.get("step") or 0),
        "attempt": attempts,
        "loss": _number(summary.get("loss"), ".4f"),
        "learningRate": _number(last.get("lr"), ".4g"),
        "lossScale": _number(last.get("loss_scale"), "g"),
        "gradNorm": _number(last.get("grad_norm"), ".3g"),
        "goodput": _number(summary.get("ettr_frac"), ".1%"),
        "restarts": max(attempts - 1, 0),
        "lastGood": _newest_verified(state),
        "openIncidents": list(state.get("open_incidents") or ()),
        "nodes": len(usable),
        "seq": sight.seq,
        "updatedAt": time_text(observed.now_s),
    }


def _newest_verified(state: Any) -> str:
    """Return the newest checkpoint that was read back whole and is not quarantined."""
    sound = [
        known
        for known in (state.get("checkpoints") or {}).values()
        if known.get("verified") and not known.get("quarantined") and not known.get("abandoned")
    ]
    newest = max(sound, key=lambda known: int(known.get("step", 0)), default=None)
    return str(newest["checkpoint"]) if newest is not None else ""


def _number(value: Any, form: str) -> str:
    return "" if value is None else format(float(value), form)


def _cluster_says(observed: Observed, condition: str) -> bool:
    status = (observed.cluster or {}).get("status") or {}
    return any(
        c["type"] == condition and c["status"] == TRUE for c in status.get("conditions") or ()
    )
