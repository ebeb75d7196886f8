"""How preflights change the state: what nodes answered, and which have been tried out."""

from __future__ import annotations

from msgspec.structs import replace

from . import events as ev
from .decisions import EndPreflight, RunPreflight
from .state import AttemptState, NodeAnswers, NodeState, PreflightState, RunState

SDC_DETECTOR = "cross-rank"
SLOW_DETECTOR = "straggler"
_CALLS_FOR_IT = {SDC_DETECTOR: ("watch", "drain", "evict"), SLOW_DETECTOR: ("drain", "evict")}
MAX_CUT_PREFLIGHTS = 3
"""So many in a row may come to nothing because nodes were lost; after that they prove enough."""


# --- events --------------------------------------------------------------------------------------


def preflight_begun(state: RunState, e: ev.PreflightBegun, time_s: float) -> RunState:
    """A node has obeyed its order."""
    current = _running(state, e.preflight)
    if current is None or e.node in current.begun:
        return state
    return replace(state, preflight=replace(current, begun=(*current.begun, e.node)))


def preflight_answered(state: RunState, e: ev.PreflightAnswered, time_s: float) -> RunState:
    """Ranks of one node have answered, or ended without doing so; the first word of each counts."""
    current = _running(state, e.preflight)
    if current is None or current.judged is not None:
        return state
    before = current.answers.get(e.node, NodeAnswers())
    known = {d.rank for d in before.done} | {s.rank for s in before.silent}
    done = tuple(d for d in e.done if d.rank not in known)
    silent = tuple(s for s in e.silent if s.rank not in known)
    after = NodeAnswers((*before.done, *done), (*before.silent, *silent))
    current = replace(
        current,
        answers={**current.answers, e.node: after},
        num_answered=current.num_answered + len(done) + len(silent),
    )
    return replace(state, preflight=current)


def preflight_judged(state: RunState, e: ev.PreflightJudged, time_s: float) -> RunState:
    """The outcome is known; what the ranks said stands in the journal and is not kept."""
    current = _running(state, e.preflight)
    if current is None:
        return state
    cut = state.cut_preflights + 1 if e.is_cut else 0
    judged = replace(current, judged=e, answers={})
    return replace(state, preflight=judged, cut_preflights=cut)


def without_lost_node(state: RunState, node: str) -> RunState:
    """Return the state in which the preflight under way knows that a node of its own is lost."""
    current = state.preflight
    if current is None or node not in current.plan.nodes or node in current.lost_nodes:
        return state
    return replace(state, preflight=replace(current, lost_nodes=(*current.lost_nodes, node)))


def heard_anew(state: RunState, time_s: float) -> RunState:
    """Return the state in which nobody's silence counts yet: a new controller listens."""
    if state.preflight is None:
        return state
    return replace(state, preflight=replace(state.preflight, heard_s=time_s))


def with_suspicion(node: NodeState, e: ev.FindingSeen) -> NodeState:
    """Return the node to be tried out again, if the finding is of the kind that calls for it.

    A straggler that keeps pace again is neither suspected nor left out any more, for that.
    """
    finding, slow = e.finding, _slow_mark(node)
    is_for_pace = slow is not None and node.suspicion == _suspicion_of(slow)
    if finding.detector == SLOW_DETECTOR and finding.action == "ignore":
        if slow is None or slow.finding.rank != finding.rank:
            return node
        return replace(node, drain=None, suspicion="" if is_for_pace else node.suspicion)
    if finding.action not in _CALLS_FOR_IT.get(finding.detector, ()):
        return node
    is_graver = is_for_pace and finding.detector != SLOW_DETECTOR
    return node if node.suspicion and not is_graver else replace(node, suspicion=_suspicion_of(e))


def with_drain(node: NodeState, e: ev.FindingSeen) -> NodeState:
    """Return the node to be left out at the next restart; the first to want it is remembered.

    What does not pass takes the place of a straggler's mark, which goes when it keeps pace again.
    """
    slow = _slow_mark(node)
    is_graver = slow is not None and e.finding.detector != SLOW_DETECTOR
    return replace(node, drain=e) if node.drain is None or is_graver else node


def _slow_mark(node: NodeState) -> ev.FindingSeen | None:
    drain = node.drain
    return drain if drain is not None and drain.finding.detector == SLOW_DETECTOR else None


def _suspicion_of(seen: ev.FindingSeen) -> str:
    return f"{seen.finding.kind} ({seen.id}): {seen.finding.message}"


def tried_by_training(state: RunState, attempt: AttemptState) -> RunState:
    """Return the state in which the nodes of an attempt need no preflight: they have trained."""
    nodes = dict(state.nodes)
    for name in attempt.plan.nodes:
        known = nodes.get(name)
        if known is not None and known.examined != known.incarnation:
            nodes[name] = replace(known, examined=known.incarnation)
    return replace(state, nodes=nodes)


# --- decisions -----------------------------------------------------------------------------------


def run_preflight(state: RunState, action: RunPreflight, time_s: float) -> RunState:
    """A preflight is under way; what an older one still says is ignored from now on."""
    plan = action.plan
    return replace(
        state, preflight=PreflightState(plan, heard_s=time_s), num_preflights=plan.number
    )


def end_preflight(state: RunState, action: EndPreflight, time_s: float) -> RunState:
    """The preflight is over, and its nodes have been tried out, unless a lost node cut it short."""
    current = _running(state, action.preflight)
    if current is None:
        return state
    state = replace(state, preflight=None)
    judged = current.judged
    if judged is not None and judged.is_cut and state.cut_preflights < MAX_CUT_PREFLIGHTS:
        return state
    nodes = dict(state.nodes)
    for name in current.plan.nodes:
        if name in nodes and name not in current.lost_nodes:
            nodes[name] = replace(nodes[name], examined=nodes[name].incarnation, suspicion="")
    return replace(state, nodes=nodes)


def cut_by_attempt(state: RunState, nodes: tuple[str, ...]) -> RunState:
    """Return the state without a preflight on nodes that are to train now."""
    current = state.preflight
    if current is None or not any(node in current.plan.nodes for node in nodes):
        return state
    return replace(state, preflight=None)


def _running(state: RunState, number: int) -> PreflightState | None:
    current = state.preflight
    return current if current is not None and current.plan.number == number else None
