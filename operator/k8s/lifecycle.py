"""The life of a run on Kubernetes, purely: when its cluster is wanted, started, stopped, removed.

A run is resumable by design, since its folder holds everything. So to suspend a run, or to delete
it, is to have it save and stop, and then to take its pods away. To put a controller on a cluster
is to have a run that rests go on; one that is over leaves its controller behind, so a run that is
to go on after it has stopped gets its pods anew. What a person has paused or stopped waits for a
person.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import yaml

from ..spec import RunSpec
from . import names
from .actions import Action, Ask, RemoveCluster, SetFinalizer, StartController, StopController
from .conditions import is_true
from .model import TrainingRunSpec
from .observed import Observed, time_of

STARTS_MAX = 10
START_WAIT_S, START_WAIT_MAX_S = 15.0, 600.0
SPARES_WAIT_S = 120.0
"""How long a run that could train waits for its spares, from when a pod became ready last."""
TEARDOWN_S = 180.0
"""How long a deleted cluster may take to go before the run goes without it."""
_SPEC_PATH = "/tmp/midwatch-spec.yaml"
_OWN_STOPS = ("k8s-suspend-", "k8s-delete-")


class Want(msgspec.Struct, frozen=True):
    """What is wanted of a run now. stop: id of the stop to ask for, "" when it is to run.

    finished_s: when it ended, None while it may go on. recycles: the cluster goes, to come anew.
    """

    cluster: bool
    stop: str = ""
    finished_s: float | None = None
    recycles: bool = False


def judge_want(observed: Observed, spec: TrainingRunSpec) -> Want:
    """Return whether the run is to have its pods, to stop, or has ended."""
    if spec.suspend:
        may_rest = _is_stopped(observed) or _is_unstarted(observed)
        keep = observed.cluster is not None and not may_rest
        stop = names.request_id("suspend", observed.uid, str(observed.generation))
        deadline_s = stopping_since(observed, stop) + spec.deletion.timeout_seconds
        return Want(keep and observed.now_s < deadline_s, stop=stop)
    finished_s = finished_at(observed)
    if finished_s is None:
        recycles = spec.owns_cluster and _is_left_behind(observed, "SUCCEEDED")
        return Want(cluster=not recycles, recycles=recycles)
    is_due = observed.now_s >= finished_s + spec.deletion.ttl_seconds_after_finished
    # Only what is seen to be over is taken away: it may have been resumed behind our back.
    keep = not is_due or (observed.sight is None and has_head(observed))
    return Want(keep, finished_s=finished_s)


def finished_at(observed: Observed) -> float | None:
    """Return when the run ended for good, None while it goes on or is wanted to."""
    if is_resumption_asked(observed):
        return None
    known_s = time_of(observed.status.get("finishedAt"))
    sight = observed.sight
    if sight is None:
        return known_s
    if not sight.is_over or own_stop(observed):
        return None
    if sight.status == "stopped":
        if known_s is None and _is_new_here(observed):
            # It was stopped before this object was made: making one is asking for it to go on.
            return None
        if _is_set_going(observed):
            return None
    return known_s if known_s is not None else observed.now_s


def own_stop(observed: Observed) -> str:
    """Return the id of the stop by which the operator itself ended the run, "" if none did.

    One that was asked for after the end has ended nothing: it is not applied, nor will it be.
    """
    sight = observed.sight
    if sight is None or sight.status != "stopped":
        return ""
    stops = [
        (float(known.get("requested_s", 0.0)), str(name))
        for name, known in sight.interventions.items()
        if (known.get("request") or {}).get("action") == "stop" and known.get("stage") == "applied"
    ]
    last = max(stops, default=(0.0, ""))[1]
    return last if last.startswith(_OWN_STOPS) else ""


def plan_stop(observed: Observed, want: Want) -> list[Action]:
    """Return the stop that is due."""
    sight = observed.sight
    if sight is None or not want.stop or sight.is_over or want.stop in sight.interventions:
        return []
    return [_ask("stop", want.stop, "suspended by its spec")]


def plan_start(observed: Observed, spec: TrainingRunSpec, run: RunSpec, want: Want) -> list[Action]:
    """Return the start of the controller when everything it needs is there and none was made.

    A job that succeeded has put the controller there; from then on Ray keeps it alive. One that
    failed is followed by another, later each time, and by none once the budget is spent. One that
    serves a stopped run, as on a cluster that is not the run's own, is ended first.
    """
    may_start = not (want.stop or want.finished_s is not None or _is_held(observed))
    if observed.reach.jobs or not may_start or not pods_ready(observed, spec, run):
        return []
    last = last_job(observed)
    number = 1 if last is None else last.number + 1
    if last is not None:
        if not spec.owns_cluster and _is_left_behind(observed, "RUNNING"):
            return [StopController(last.id)]
        tries = _num_tries(observed)
        due_s = last.ended_s + min(START_WAIT_S * 2.0 ** max(tries - 1, 0), START_WAIT_MAX_S)
        failed = last.status in ("FAILED", "STOPPED")
        if not failed or tries >= STARTS_MAX or observed.now_s < due_s:
            return []
    job_id = f"{names.job_prefix(observed.uid)}{number}"
    env, entrypoint = _job_env(spec, run), _entrypoint(observed, spec)
    brings_tokens = not spec.owns_cluster
    return [StartController(job_id, entrypoint, env, brings_tokens, digest_of(run))]


def digest_of(run: RunSpec) -> str:
    """Return a digest of what a run spec says, but for what is as it would be anyhow."""
    said = run.model_dump(mode="json", exclude_defaults=True)
    return hashlib.sha256(msgspec.json.encode(said, order="deterministic")).hexdigest()[:16]


def is_spec_in_force(observed: Observed, run: RunSpec) -> bool | None:
    """Whether the controller was started with this run spec; None where that cannot be told."""
    last = last_job(observed)
    known = observed.status.get("job") or {}
    told = last.spec if last is not None else known.get("specDigest", "")
    status = last.status if last is not None else known.get("status", "")
    return None if not told or status in ("FAILED", "STOPPED") else bool(told == digest_of(run))


def holds_older_run(observed: Observed) -> bool:
    """Whether the run folder holds a run that was completed before this object was made."""
    sight = observed.sight
    return sight is not None and sight.status == "completed" and _is_new_here(observed)


def pods_ready(observed: Observed, spec: TrainingRunSpec, run: RunSpec) -> bool:
    """Whether the head and every node are there, or all but spares that were waited for.

    A spare that is missing must not keep the run from training; one that is only a little late
    would be missed for as long as this controller lives.
    """
    if not spec.owns_cluster:
        return observed.cluster is not None
    if not has_head(observed) or num_ready(observed) < run.num_nodes:
        return False
    newest_s = max(p.ready_s for p in observed.pods if p.is_ready and p.is_live)
    is_late = observed.now_s >= newest_s + SPARES_WAIT_S
    return is_late or num_ready(observed) >= wanted_pods(run)


def has_head(observed: Observed) -> bool:
    """Whether the head is there and ready."""
    return any(p.is_head and p.is_ready and p.is_live for p in observed.pods)


def num_ready(observed: Observed) -> int:
    """Return how many pods of nodes are ready."""
    return sum(1 for p in observed.pods if p.is_ready and p.is_live and not p.is_head)


def wanted_pods(run: RunSpec) -> int:
    """Return how many pods of nodes the run wants, spares included."""
    return run.num_nodes + run.nodes.spares


def last_job(observed: Observed) -> Any:
    """Return the newest job that was to start the controller, None when there was none."""
    return max(observed.jobs, key=lambda job: job.number, default=None)


def is_start_spent(observed: Observed) -> bool:
    """Whether the controller could not be started as often as is tried."""
    last = last_job(observed)
    return last is not None and last.status == "FAILED" and _num_tries(observed) >= STARTS_MAX


def _num_tries(observed: Observed) -> int:
    """Return how often a start was tried; a job that somebody ended was no failure to start."""
    last = last_job(observed)
    num_ended = sum(job.status == "STOPPED" for job in observed.jobs)
    return 0 if last is None else int(last.number) - num_ended


def plan_removal(observed: Observed, timeout_s: float, owns_cluster: bool) -> list[Action]:
    """Return what is next for a deleted run: save and stop, its pods, at last the object.

    Checkpoints and logbook stay where they are. The object goes last, for nothing but it tells
    of the cluster.
    """
    cluster, name = observed.cluster, removal_id(observed)
    if observed.deleting_s is None or not observed.has_finalizer:
        return []
    is_late = observed.now_s >= stopping_since(observed, name) + timeout_s
    if cluster is None or (owns_cluster and not observed.is_own_cluster):
        # What cannot be listed may be there all the same.
        waits = bool(observed.reach.kuberay) and not is_late
        return [] if waits else [SetFinalizer(present=False)]
    if owns_cluster and (gone_s := time_of(cluster["metadata"].get("deletionTimestamp"))):
        is_stuck = observed.now_s >= gone_s + TEARDOWN_S
        return [SetFinalizer(present=False)] if is_stuck else []
    if not (is_late or _is_stopped(observed) or _is_unstarted(observed)):
        sight = observed.sight
        if sight is None or name in sight.interventions:
            return []
        return [_ask("stop", name, "its TrainingRun is deleted")]
    if not owns_cluster:
        job = last_job(observed)
        stop = [] if job is None or job.is_over else [StopController(job.id)]
        return [*stop, SetFinalizer(present=False)]
    return [RemoveCluster(cluster["metadata"]["name"], cluster["metadata"]["uid"])]


def _is_stopped(observed: Observed) -> bool:
    return observed.sight is not None and observed.sight.is_over


def _is_unstarted(observed: Observed) -> bool:
    """Whether no controller was ever put there; where that cannot be told, it may have been."""
    if observed.reach.jobs and has_head(observed):
        return False
    told = (observed.status.get("run") or {}).get("seq", 0)
    started = (observed.status.get("job") or {}).get("id", "")
    return observed.sight is None and not observed.jobs and not told and not started


def _is_new_here(observed: Observed) -> bool:
    """Whether no controller was put there for this object yet."""
    return not observed.jobs and not (observed.status.get("job") or {}).get("id")


def _is_left_behind(observed: Observed, at_work: str) -> bool:
    """Whether a run that is to go on has only the controller that saw it end.

    at_work: the status of a job whose controller is there.
    """
    sight, last = observed.sight, last_job(observed)
    is_over = sight is not None and sight.status == "stopped"
    has_started = last is not None and last.status == at_work
    return is_over and has_started and not _is_set_going(observed)


def _is_set_going(observed: Observed) -> bool:
    """Whether a controller was put there after the run had stopped: it is about to go on."""
    sight, last = observed.sight, last_job(observed)
    ended_s = sight.state.get("ended_s") if sight is not None else None
    if last is None or ended_s is None or last.status in ("FAILED", "STOPPED"):
        return False
    return bool(last.begun_s >= float(ended_s))


def _is_held(observed: Observed) -> bool:
    """Whether a paused run has lost its controller: another one would set it going by itself."""
    known = observed.status.get("run") or {}
    # After the head was lost, Ray may answer before the run's API does.
    status = observed.sight.status if observed.sight is not None else known.get("status")
    return status == "paused" and not is_resumption_asked(observed)


def is_resumption_asked(observed: Observed) -> bool:
    """Whether a person wants the run to go on, and it has not yet."""
    return any(
        each["spec"].get("action") == "Resume"
        and not each["spec"].get("dryRun")
        and not (each.get("status") or {}).get("settledAt")
        and is_true((each.get("status") or {}).get("conditions"), "Accepted")
        for each in observed.interventions
    )


def removal_id(observed: Observed) -> str:
    """Return the id of the stop that a deleted run is asked for."""
    return names.request_id("delete", observed.uid)


def stopping_since(observed: Observed, stop: str) -> float:
    """Return from when on a run has its time to save and stop.

    That is when the stop was asked for; before, when an operator first wanted to. So a run that was
    deleted while no operator was there is not taken away unasked.
    """
    sight = observed.sight
    known = sight.interventions.get(stop) if sight is not None else None
    if known is not None:
        return float(known.get("requested_s", observed.now_s))
    return time_of(observed.status.get("stoppingSince")) or observed.now_s


def _ask(action: str, name: str, reason: str) -> Ask:
    return Ask({"id": name, "action": action, "reason": reason, "by": "midwatch-operator"})


def _entrypoint(observed: Observed, spec: TrainingRunSpec) -> str:
    start = f'printf "%s" "$MIDWATCH_SPEC" > {_SPEC_PATH} && midwatch run {_SPEC_PATH} --detach'
    if spec.owns_cluster:
        return start
    # Nobody but this job is ours on such a cluster: it serves the API as long as it lives.
    folder = names.run_dir(spec.storage.mount_path, observed.namespace, observed.name)
    serve = f"exec midwatch serve {folder} --host 0.0.0.0 --port {names.API_PORT}"
    return f"{start} && {serve}"


def _job_env(spec: TrainingRunSpec, run: RunSpec) -> dict[str, str]:
    data = {**spec.run, "name": run.name, "run_dir": run.run_dir}
    tokens = {
        role: {"file": f"{names.TOKEN_DIR}/{role}"}
        if spec.owns_cluster
        else {"env": names.token_variable(role)}
        for role in (names.VIEWER, names.OPERATOR)
    }
    data["api"] = {**(data.get("api") or {}), "tokens": tokens}
    if spec.owns_cluster:
        # Not even while the head is the only node that Ray knows may a rank be placed there.
        data["nodes"] = {**(data.get("nodes") or {}), "spread": "strict"}
    return {"MIDWATCH_SPEC": yaml.safe_dump(data, sort_keys=False)}
