"""reconcile(observed) -> actions: everything the operator decides, in order, purely.

It reads no clock and keeps nothing: what it must remember stands in the cluster's own objects, so
that an operator that dies between any two actions is followed by one that decides the same again.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ...health.nodes.evidence import DEFAULT_RULES, EvidenceRule
from ...logbook.errors import ConfigError
from ..spec import RunSpec
from . import bad_nodes, lifecycle, names, run_status
from .actions import Action, ApplyObject, MakeToken, RemoveCluster, SetFinalizer
from .automatic import plan_automatic
from .interventions import plan_interventions, released_nodes
from .model import DeletionSpec, TrainingRunSpec, read_spec
from .observed import Observed
from .queueing import keep_injected
from .raycluster import Owner, build_cluster, build_service, build_token_secret


def reconcile(observed: Observed, rules: Sequence[EvidenceRule] = DEFAULT_RULES) -> list[Action]:
    """Return what is to be done now, the status last; nothing of it waits for another of it."""
    if observed.deleting_s is not None:
        return _remove(observed)
    if not observed.has_finalizer:
        # Before any effect: what is made must be taken away again.
        return [SetFinalizer(present=True), run_status.first_status(observed)]
    try:
        spec, run = read_spec(observed.run["spec"], observed.name, observed.namespace)
    except ConfigError as error:
        return [run_status.invalid_status(observed, error.message)]
    if spec.owns_cluster and observed.cluster is not None and not observed.is_own_cluster:
        return [run_status.taken_status(observed)]
    want = lifecycle.judge_want(observed, spec)
    policy = spec.intervention_policy
    released = released_nodes(observed, policy)
    exclusions = bad_nodes.plan_exclusions(
        observed, released, spec.placement.max_excluded_nodes, rules
    )
    weighed = bad_nodes.weigh(observed, rules)
    actions = _objects(observed, spec, run, want, exclusions)
    if want.cluster:
        actions += lifecycle.plan_start(observed, spec, run, want)
        actions += lifecycle.plan_stop(observed, want)
        if spec.owns_cluster and want.finished_s is None:
            actions += bad_nodes.plan_evidence(observed, weighed, exclusions.nodes)
            actions += bad_nodes.plan_returns(observed, exclusions.nodes)
            actions += bad_nodes.plan_homecomings(observed, exclusions)
            actions += bad_nodes.plan_removals(observed, exclusions.nodes)
    is_to_cordon = spec.owns_cluster and spec.placement.cordon == "Quarantined"
    is_to_cordon = is_to_cordon and want.finished_s is None
    actions += bad_nodes.plan_cordons(observed, exclusions, is_wanted=is_to_cordon)
    actions += plan_interventions(observed, policy)
    actions += plan_automatic(observed, policy)
    findings = [finding for _, _, finding in weighed]
    judged = run_status.Judged(spec, run, want, exclusions, findings)
    return [*actions, run_status.run_status(observed, judged)]


def _remove(observed: Observed) -> list[Action]:
    raw = observed.run.get("spec") or {}
    owns_cluster = not raw.get("clusterSelector")
    timeout_s = (raw.get("deletion") or {}).get("timeoutSeconds", DeletionSpec().timeout_seconds)
    nothing = bad_nodes.Exclusions(())
    actions: list[Action] = [*bad_nodes.plan_cordons(observed, nothing, is_wanted=False)]
    actions += lifecycle.plan_removal(observed, float(timeout_s), owns_cluster)
    if any(isinstance(each, SetFinalizer) for each in actions):
        return actions
    return [*actions, run_status.removal_status(observed)] if observed.has_finalizer else actions


def _objects(
    observed: Observed,
    spec: TrainingRunSpec,
    run: RunSpec,
    want: lifecycle.Want,
    exclusions: bad_nodes.Exclusions,
) -> list[Action]:
    """Return the objects that are to be there, or the removal of the cluster that is not."""
    cluster = observed.cluster
    if not want.cluster:
        if cluster is None or not spec.owns_cluster:
            return []
        return [RemoveCluster(cluster["metadata"]["name"], cluster["metadata"]["uid"])]
    owner = Owner(observed.run)
    actions: list[Action] = []
    for role in (names.VIEWER, names.OPERATOR):
        is_there = names.token_secret_name(observed.name, role) in observed.secrets
        if not (is_there or observed.reach.secrets):
            actions.append(MakeToken(build_token_secret(owner, role)))
    if not spec.owns_cluster:
        if cluster is not None:
            service = build_service(owner, cluster["metadata"]["name"])
            actions.append(ApplyObject(service, is_there=observed.has_service))
        return actions
    if observed.reach.kuberay:
        return actions
    service = build_service(owner, observed.name)
    actions.append(ApplyObject(service, is_there=observed.has_service))
    if cluster is None and any(isinstance(each, MakeToken) for each in actions):
        # Its head mounts the tokens, and would keep those of an older run of this name.
        return actions
    hosts = bad_nodes.hostnames(exclusions.nodes, observed.nodes)
    is_going = cluster is not None and cluster["metadata"].get("deletionTimestamp")
    if not is_going:
        desired = build_cluster(owner, spec, run, hosts)
        if spec.scheduling.is_kueue:
            desired = keep_injected(desired, cluster)
        noted = msgspec.json.encode(exclusions.rows).decode()
        desired["metadata"]["annotations"] = {names.EXCLUDED: noted}
        actions.append(ApplyObject(desired, is_there=cluster is not None))
    return actions
