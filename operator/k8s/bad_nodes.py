"""Bad nodes, purely: who is out, which pods go, what others' signs lead to, who may come back.

Three parties judge nodes. The run's controller quarantines its own; that node of the cluster is
then excluded from placement, and its pod removed once it carries no rank, so that another takes its
place. Others (NVSentinel, node-problem-detector, people who cordon) leave signs; a table says what
each means. Kubernetes keeps the pods of a node that is gone; those are taken out of the way.

An exclusion ends by a release, with the cordon or preemption that asked for it, with its Node, or
when somebody uncordons what was cordoned for it. A cordon is ours as long as the exclusion is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ...health.nodes.evidence import DEFAULT_RULES, EvidenceRule, SignSource, weigh_signs
from ...health.nodes.verdicts import Action as Verdict
from ...logbook.decoding import prepared
from ...logbook.findings import Finding
from . import names
from .actions import Ask, Cordon, RemovePod
from .observed import NodeSight, Object, Observed, Pod, RayNode, time_text

LEAVING = ("cordon", "preemption")
"""Signs that ask for the node itself: the state is saved first, then the run leaves."""
LOST = ("node-lost",)
"""The run's own heartbeats know that sooner."""
SAVE_WAIT_S = 120.0
"""How long a save before leaving is waited for."""
BLIND_S = 300.0
"""How long a pod may stay past its deadline where nodes cannot be seen."""
_SETTLED = ("applied", "rejected", "failed", "reverted")


class Exclusions(msgspec.Struct, frozen=True):
    """rows: status.excludedNodes as it is to be. refused: nodes left in, for the bound is hit.

    returning: nodes whose exclusion has lost its reason, and how; those among rows wait until the
    run has let go of its quarantine.
    """

    rows: tuple[Object, ...]
    refused: tuple[str, ...] = ()
    returning: Mapping[str, str] = {}

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(row["node"] for row in self.rows)


def pod_of(observed: Observed, node: RayNode) -> Pod | None:
    """Return the live pod in which a node of the run is, None when there is none any more."""
    if not node.host:
        return None
    return next((p for p in observed.pods if p.ip == node.host and p.is_live), None)


def known_exclusions(observed: Observed) -> list[Object]:
    """Return the exclusions in force, as they stand on the cluster itself, else in the status.

    A pod is removed right after its node was excluded. Were that only in the status, which is
    written seldom, the next look would know nothing of it, and the node would take the pod back.
    """
    annotations = (observed.cluster or {}).get("metadata", {}).get("annotations") or {}
    noted = annotations.get(names.EXCLUDED)
    if noted is None:
        return list(observed.status.get("excludedNodes") or ())
    try:
        return msgspec.json.decode(noted, type=prepared(list[dict[str, str]]))
    except msgspec.MsgspecError:
        return list(observed.status.get("excludedNodes") or ())


def plan_exclusions(
    observed: Observed,
    released: Sequence[str],
    nodes_max: int,
    rules: Sequence[EvidenceRule] = DEFAULT_RULES,
) -> Exclusions:
    """Return which nodes of the cluster are out: those known to be, and those newly quarantined.

    released: nodes that people want back.
    """
    returning = _returning(observed, rules)
    held = {pod.node for _, pod in _quarantined(observed)}
    rows = [
        row
        for row in known_exclusions(observed)
        if row["node"] not in released and (row["node"] not in returning or row["node"] in held)
    ]
    refused: list[str] = []
    by_host = _by_host(observed)
    for node in observed.sight.nodes if observed.sight is not None else ():
        pod = pod_of(observed, node)
        if not node.quarantined or pod is None or not pod.node or pod.node in released:
            continue
        if not node.present and by_host[node.host].present:
            continue
        if any(row["node"] == pod.node for row in rows) or _is_gone(observed, pod.node):
            continue
        if len(rows) >= nodes_max:
            refused.append(pod.node)
            continue
        reason = f"{node.node}: {node.quarantined}"[:512]
        since = time_text(observed.now_s)
        row = {"node": pod.node, "reason": reason, "since": since}
        sign = _sign_behind(observed, pod)
        rows.append({**row, "sign": sign} if sign else row)
    return Exclusions(tuple(rows), tuple(refused), returning)


def _returning(observed: Observed, rules: Sequence[EvidenceRule]) -> dict[str, str]:
    """Return the excluded nodes whose exclusion has lost its reason, each with how."""
    found = {}
    for row in known_exclusions(observed):
        name, sign = row["node"], row.get("sign", "")
        sight = observed.nodes.get(name)
        if _is_gone(observed, name):
            found[name] = "its Node is gone"
        elif sight is not None and sight.cordoned_by == observed.cordoner and not sight.is_cordoned:
            found[name] = "somebody has uncordoned it"
        elif sight is not None and sign and not _has_sign(observed, sight, sign, rules):
            found[name] = f"the {sign} that asked for it is over"
    return found


def _is_gone(observed: Observed, node: str) -> bool:
    return bool(observed.nodes) and not observed.reach.nodes and node not in observed.nodes


def _has_sign(
    observed: Observed, sight: NodeSight, kind: str, rules: Sequence[EvidenceRule]
) -> bool:
    return any(found.kind == kind for found in _findings(observed, sight, rules, sight.name))


def _quarantined(observed: Observed) -> list[tuple[RayNode, Pod]]:
    """Return the run's nodes that are quarantined where they are."""
    nodes = observed.sight.nodes if observed.sight is not None else ()
    found = [(node, pod_of(observed, node)) for node in nodes if node.quarantined and node.present]
    return [(node, pod) for node, pod in found if pod is not None]


def _sign_behind(observed: Observed, pod: Pod) -> str:
    """Return the sign of others for which a node was quarantined, "" unless it ends with it."""
    asked = observed.sight.interventions if observed.sight is not None else {}
    for kind in LEAVING:
        known = asked.get(_request_id(observed, "sign", pod, kind))
        if known is not None and known.get("stage") not in ("rejected", "failed"):
            return kind
    return ""


def plan_homecomings(observed: Observed, exclusions: Exclusions) -> list[Ask]:
    """Return releases of the run's nodes whose exclusion has lost its reason before they left."""
    return [
        Ask(
            {
                **_request(
                    "release",
                    names.request_id("return", pod.uid, str(_num_returns(observed, pod) + 1)),
                    f"{pod.node}: {exclusions.returning[pod.node]}",
                ),
                "target": node.node,
            }
        )
        for node, pod in _quarantined(observed)
        if pod.node in exclusions.returning
    ]


def plan_cordons(observed: Observed, exclusions: Exclusions, *, is_wanted: bool) -> list[Cordon]:
    """Return the cordons to set, and those of the run to take back."""
    by = observed.cordoner
    planned = []
    for name, node in sorted(observed.nodes.items()):
        if is_wanted and name in exclusions.nodes:
            # Whoever uncordoned it wants it back.
            if not node.is_cordoned and name not in exclusions.returning:
                planned.append(Cordon(name, by))
        elif node.cordoned_by == by:
            planned.append(Cordon(name, by, is_on=False))
    return planned


def weigh(
    observed: Observed, rules: Sequence[EvidenceRule] = DEFAULT_RULES
) -> list[tuple[RayNode, Pod, Finding]]:
    """Return what others say of the nodes on which the run is, strongest rule first by node."""
    found = []
    for node in observed.sight.nodes if observed.sight is not None else ():
        pod = pod_of(observed, node)
        sight = observed.nodes.get(pod.node) if pod is not None else None
        if pod is None or sight is None or not node.present:
            continue
        found += [(node, pod, f) for f in _findings(observed, sight, rules, node.node)]
    return [each for each in found if each[2].kind not in LOST]


def _findings(
    observed: Observed, sight: NodeSight, rules: Sequence[EvidenceRule], node: str
) -> list[Finding]:
    # A cordon of the run's own is the echo of a quarantine, not news about the node.
    is_own = sight.cordoned_by == observed.cordoner
    signs = [s for s in sight.signs if not (is_own and s.source is SignSource.CORDON)]
    return list(weigh_signs(signs, rules, node=node))


def plan_evidence(
    observed: Observed, weighed: Sequence[tuple[RayNode, Pod, Finding]], excluded: Sequence[str]
) -> list[Ask | RemovePod]:
    """Return what follows from the signs: save first where the node is asked for, then leave it.

    The pod of a sick node goes only if the node is excluded: it would come back without end.
    """
    planned: list[Ask | RemovePod] = []
    handled: list[str] = []
    for node, pod, finding in sorted(weighed, key=lambda each: _urgency(each[2])):
        if node.node in handled or finding.action not in (Verdict.EVICT, Verdict.DRAIN):
            continue
        leaves = finding.kind in LEAVING
        if node.quarantined and not (leaves or pod.node in excluded):
            continue
        handled.append(node.node)
        if leaves and not node.quarantined:
            save = _saving(observed, pod, finding)
            if save is not None:
                planned += save
                continue
        if not node.quarantined:
            name = _request_id(observed, "sign", pod, finding.kind)
            request = _request("quarantine", name, finding.message)
            planned.append(Ask({**request, "target": node.node}))
        elif leaves or finding.action == Verdict.EVICT:
            planned.append(RemovePod(pod.name, pod.uid))
    return planned


def _urgency(finding: Finding) -> tuple[bool, bool]:
    # A node that is sick is not asked to save first only because it is cordoned as well.
    return finding.action != Verdict.EVICT or finding.kind in LEAVING, finding.kind in LEAVING


def _saving(observed: Observed, pod: Pod, finding: Finding) -> list[Ask | RemovePod] | None:
    """Return what is asked of a run that has yet to save, None once it has, or cannot."""
    sight = observed.sight
    if sight is None or sight.status != "training":
        return None
    name = _request_id(observed, "save", pod, finding.kind)
    known = sight.interventions.get(name)
    if known is None:
        return [Ask(_request("checkpoint", name, f"before leaving {pod.node}: {finding.message}"))]
    waited_s = observed.now_s - float(known.get("requested_s", 0.0))
    return [] if known.get("stage") not in _SETTLED and waited_s < SAVE_WAIT_S else None


def plan_removals(observed: Observed, excluded: Sequence[str]) -> list[RemovePod]:
    """Return the pods to take away: without ranks on excluded nodes, and of nodes that are gone."""
    by_host = _by_host(observed)
    placed = observed.sight.placed if observed.sight is not None else ()
    planned = []
    for pod in observed.pods:
        node = by_host.get(pod.ip)
        if pod.deleting_s is not None:
            if _is_stuck(observed, pod, node):
                planned.append(RemovePod(pod.name, pod.uid, is_forced=True))
        elif pod.node in excluded and not pod.is_head and node is not None:
            carries_ranks = node.present and node.node in placed
            planned += [] if carries_ranks else [RemovePod(pod.name, pod.uid)]
    return planned


def _by_host(observed: Observed) -> dict[str, RayNode]:
    nodes = observed.sight.nodes if observed.sight is not None else ()
    # An address that a node has left may be another's by now.
    known = sorted(nodes, key=lambda node: node.present)
    return {node.host: node for node in known if node.host}


def _is_stuck(observed: Observed, pod: Pod, node: RayNode | None) -> bool:
    """Whether a pod will never end by itself: its deadline is over and nobody is there to end it.

    What it may still do is fenced by its attempt's number, and by the journal's lease. One whose
    node the run still hears of is left alone.
    """
    if pod.deleting_s is None or observed.now_s <= pod.deleting_s:
        return False
    if node is not None and node.present:
        return False
    if observed.reach.nodes:
        return observed.now_s > pod.deleting_s + BLIND_S
    sight = observed.nodes.get(pod.node)
    return bool(pod.node) and (sight is None or sight.is_unreachable)


def plan_returns(observed: Observed, excluded: Sequence[str]) -> list[Ask]:
    """Return releases of quarantined nodes whose place another pod has taken.

    A node of the run is a place, not a machine: once its pod is elsewhere, what it was quarantined
    for is left behind. As many come back as there are pods for them, whatever else is missing.
    """
    nodes = observed.sight.nodes if observed.sight is not None else ()
    taken = {node.host for node in nodes if node.present}
    free = [
        pod
        for pod in observed.pods
        if pod.is_live and pod.is_ready and not pod.is_head
        if pod.ip not in taken and pod.node not in excluded
    ]
    asks = [
        Ask(
            {
                **_request(
                    "release",
                    names.request_id("release", node.node, node.incarnation),
                    "its pod is gone, and another one has taken its place",
                ),
                "target": node.node,
            }
        )
        for node in nodes
        if node.quarantined and not node.present and pod_of(observed, node) is None
    ]
    return asks[: len(free)]


def hostnames(nodes: Sequence[str], sights: Mapping[str, Any]) -> list[str]:
    """Return the hostname labels of nodes, by which pods are kept off them."""
    return [getattr(sights.get(node), "hostname", "") or node for node in nodes]


def _request_id(observed: Observed, what: str, pod: Pod, kind: str) -> str:
    """Return the id of a request about a pod's node: another one after the node has come back."""
    returns = _num_returns(observed, pod)
    return names.request_id(what, pod.uid, kind, *([str(returns)] if returns else []))


def _num_returns(observed: Observed, pod: Pod) -> int:
    asked = observed.sight.interventions if observed.sight is not None else {}
    prefix = names.request_id("return", pod.uid, "")
    return sum(n.startswith(prefix) and k.get("stage") == "applied" for n, k in asked.items())


def _request(action: str, name: str, reason: str) -> dict[str, Any]:
    return {"id": name, "action": action, "reason": reason[:512], "by": "midwatch-operator"}
