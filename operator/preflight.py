"""A preflight of a run's nodes: what their ranks are told to do, and what their answers amount to.

Pure. The controller asks after every turn whether the preflight under way is over; what it then
proves becomes findings, which are answered like those of any other detector.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..health.nodes.grouping import plan_groups
from ..health.nodes.preflight_judge import DETECTOR, PreflightVerdict, Silence, judge_preflight
from ..health.nodes.verdicts import Action, strongest
from ..logbook.events import PreflightJudged
from ..logbook.findings import Finding, Severity
from ..logbook.plan import PreflightPlan
from ..logbook.preflight import (
    LIMITS,
    REACH_CHECK,
    SCRATCH_CHECK,
    CheckResult,
    PreflightLimits,
    PreflightOrder,
    Thoroughness,
)
from ..logbook.state import PreflightState, RunState
from ..logbook.tiers import Storage
from .spec import RunSpec
from .storage import storage_of

DEADLINE_S = {Thoroughness.QUICK: 180.0, Thoroughness.FULL: 1800.0}
"""Longer than healthy ranks wait for one that hangs, so that they can still say who it was."""
FAILED_MAX = 32
# What a failed check asks for; where nothing stands here a person is told and nothing is done.
_ACTIONS = {
    "matmul-repeat": Action.EVICT,
    "matmul-exact": Action.EVICT,
    "matmul-agreement": Action.EVICT,
    "memory": Action.EVICT,
    "collectives": Action.EVICT,
    "collectives-alone": Action.EVICT,
    "answer": Action.EVICT,
    "disk-write": Action.EVICT,
    "store-write": Action.EVICT,
    "disk-free": Action.DRAIN,
    REACH_CHECK: Action.DRAIN,
    "all-gather-bandwidth": Action.DRAIN,
    "all-reduce-bandwidth": Action.DRAIN,
    "all-gather-bandwidth-alone": Action.DRAIN,
    "all-reduce-bandwidth-alone": Action.DRAIN,
}


def plan_order(
    num_nodes: int,
    ranks_per_node: int,
    limits: PreflightLimits,
    scratch_dir: str,
    store_dir: str,
    storage: Storage | None = None,
) -> PreflightOrder:
    """Return the order for the workers: groups of nodes, or of ranks where there is one node."""
    world_size = num_nodes * ranks_per_node
    per_unit = ranks_per_node if num_nodes > 1 else 1
    return PreflightOrder(
        limits=limits,
        ranks_per_unit=per_unit,
        rounds=plan_groups(world_size // per_unit, per_unit),
        clock_ranks=tuple(range(ranks_per_node, world_size, ranks_per_node)),
        scratch_dir=scratch_dir,
        store_dir=store_dir,
        storage=storage,
    )


def order_of(plan: PreflightPlan, spec: RunSpec, run_dir: str) -> PreflightOrder:
    """Return the order for the workers of one preflight of a run."""
    return plan_order(
        len(plan.nodes),
        plan.ranks_per_node,
        LIMITS[plan.thoroughness],
        spec.nodes.preflight_scratch,
        str(Path(run_dir) / "preflight"),
        storage_of(spec, run_dir, "", ""),
    )


def judge_when_over(state: RunState, now_s: float) -> tuple[list[Finding], PreflightJudged] | None:
    """Return what the preflight under way proves, None while there is anything to wait for.

    A preflight that could not be run proves nothing about any node and stops nobody: one warning.
    """
    current = state.preflight
    if current is None or current.judged is not None:
        return None
    plan = current.plan
    late = now_s - current.heard_s >= DEADLINE_S[plan.thoroughness]
    if current.lost_nodes:
        why = f"{', '.join(current.lost_nodes)} was lost meanwhile"
        return [], PreflightJudged(plan.number, 0, error=why, is_cut=True)
    if not late and current.num_answered < plan.world_size:
        return None
    error = _why_nothing_is_proved(current)
    if error:
        finding = _finding(state, "preflight-not-run", f"the preflight could not be run: {error}")
        return [finding], PreflightJudged(plan.number, 0, error=error)
    return _judge(state, current)


def _why_nothing_is_proved(current: PreflightState) -> str:
    """Where most nodes are silent it is the preflight that does not work, not the nodes."""
    plan = current.plan
    answered = frozenset(done.rank for done in current.done)
    whole = [
        node
        for index, node in enumerate(plan.nodes)
        if answered.issuperset(
            range(index * plan.ranks_per_node, (index + 1) * plan.ranks_per_node)
        )
    ]
    if 2 * len(whole) > len(plan.nodes) or (len(plan.nodes) == 1 and current.silent and answered):
        return ""
    first = min(current.silent, key=lambda s: s.rank, default=None)
    if first is not None:
        return f"rank {first.rank} on {plan.rank_nodes[first.rank]} {first.message}"
    deadline_s = DEADLINE_S[plan.thoroughness]
    return f"{len(whole)} of {len(plan.nodes)} nodes answered within {deadline_s:.0f} s"


def _judge(state: RunState, current: PreflightState) -> tuple[list[Finding], PreflightJudged]:
    plan = current.plan
    order = plan_order(len(plan.nodes), plan.ranks_per_node, LIMITS[plan.thoroughness], "", "")
    silent = {s.rank: Silence(s.message, s.is_own) for s in current.silent}
    reports = {done.rank: done for done in current.done}
    verdict = judge_preflight(order, plan.rank_nodes, reports, silent)
    shared = _share_a_host(state, plan)
    failed = [r for r in verdict.results if not r.ok and not (shared and _is_speed(r))]
    misnamed = [r for r in failed if r.name == SCRATCH_CHECK]
    blaming = [r for r in failed if r.name != SCRATCH_CHECK]
    certain = [r for r in blaming if r not in verdict.doubtful]
    bad = tuple(n for n in verdict.bad_nodes if any(r.node == n for r in certain))
    findings = [_about_node(state, node, certain) for node in bad]
    if len(bad) == len(plan.nodes) > 1:
        # What fails everywhere is what all have in common, and leaving all out helps nobody.
        findings = [_in_doubt(state, "every node", blaming)]
    elif len(bad) < len({r.node for r in blaming}):
        rest = [r for r in blaming if r.node not in bad]
        findings.append(_in_doubt(state, _names(rest), rest))
    if misnamed:
        text = f"{misnamed[0].message} ({_names(misnamed)}). {misnamed[0].remedy}"
        findings.append(_finding(state, "preflight-scratch-unusable", text, worst=misnamed[0]))
    judged = PreflightJudged(
        preflight=plan.number,
        checks_total=len(verdict.results),
        failed=tuple(failed[:FAILED_MAX]),
        bad_nodes=bad,
        suspect_nodes=_suspects(verdict, failed),
    )
    return findings, judged


def _suspects(verdict: PreflightVerdict, failed: list[CheckResult]) -> tuple[str, ...]:
    return tuple(n for n in verdict.suspect_nodes if any(r.node == n for r in failed))


def _share_a_host(state: RunState, plan: PreflightPlan) -> bool:
    """Whether nodes share a machine: how fast each is then says something about its neighbours."""
    hosts = [state.nodes[node].host for node in plan.nodes if node in state.nodes]
    return len(dict.fromkeys(hosts)) < len(hosts)


def _is_speed(result: CheckResult) -> bool:
    is_slow_file = result.quantity == "written_bytes_per_s" and result.value > 0.0
    return is_slow_file or result.quantity == "bandwidth_bytes_per_s"


def _about_node(state: RunState, node: str, failed: Iterable[CheckResult]) -> Finding:
    rows = [r for r in failed if r.node == node]
    action = strongest(_action(r) for r in rows)
    worst = next(r for r in rows if _action(r) is action)
    said = "; ".join(f"{r.name}: {r.message}" for r in rows[:4])
    text = f"{node} failed {len(rows)} checks of its preflight: {said}"
    takes_node = action in (Action.DRAIN, Action.EVICT)
    severity = Severity.WARN if takes_node else Severity.OBSERVE
    kind = f"preflight-{worst.name}"
    return _finding(state, kind, text, severity, node=node, worst=worst, action=action)


def _action(result: CheckResult) -> Action:
    if _is_speed(result):
        return Action.DRAIN
    return _ACTIONS.get(result.name, Action.WATCH)


def _in_doubt(state: RunState, who: str, failed: list[CheckResult]) -> Finding:
    said = "; ".join(f"{r.name} on {r.node}: {r.message}" for r in failed[:4])
    text = f"{who} failed checks of a preflight that single nobody out: {said}"
    return _finding(state, "preflight-in-doubt", text, worst=failed[0])


def _names(failed: list[CheckResult]) -> str:
    names = list(dict.fromkeys(r.node for r in failed))
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _finding(
    state: RunState,
    kind: str,
    message: str,
    severity: Severity = Severity.WARN,
    *,
    node: str | None = None,
    worst: CheckResult | None = None,
    action: Action | None = None,
) -> Finding:
    return Finding(
        detector=DETECTOR,
        kind=kind,
        severity=severity,
        step=state.step,
        onset_step=state.step,
        value=worst.value if worst is not None else 0.0,
        reference=worst.limit if worst is not None else 0.0,
        message=message[:1024],
        node=node,
        rank=None,
        action=action.value if action is not None else "",
    )
