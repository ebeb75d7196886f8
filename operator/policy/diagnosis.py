"""From the signs of trouble an attempt has shown to one fault, and whom to blame for it.

One fault has many signs: when a worker is killed, its peers die of broken connections within
milliseconds, and when a node goes, its neighbours often report first. Causes are therefore looked
for in order of weight, and signs that can only be consequences wait settle_s for their cause.
"""

from __future__ import annotations

import signal
from itertools import islice

import msgspec

from ...health.nodes.liveness import GONE_STATES, STOPPED_STATES, RankProgress, blame
from ...logbook.events import HangRow, HangSuspected, WorkerExited
from ...logbook.state import AttemptState, RunState
from ...logbook.wire import PEER_CODES, Phase
from ..spec import RunSpec
from .node_marks import node_marks

DEAD_STATES = STOPPED_STATES + GONE_STATES
SILENCE_MULTIPLE = 2.0
EVIDENCE_MAX = 32


class Diagnosis(msgspec.Struct, frozen=True):
    """A fault of the current attempt. fault is one of

    node-lost, worker-killed, worker-failed, peers-lost, hang, start-failed, start-timeout, or the
    kind of the finding that calls for a rollback.
    """

    fault: str
    title: str
    reason: str
    seen_s: float
    node: str | None = None
    rank: int | None = None
    evidence: tuple[tuple[str, str], ...] = ()
    is_numeric: bool = False


def diagnose(state: RunState, spec: RunSpec, now_s: float) -> Diagnosis | None:
    """Return what is wrong with the current attempt; None while all is well or causes unsettled."""
    attempt = state.attempt
    if attempt is None:
        return None
    if attempt.is_well_ended:
        # It only waits for its last checkpoint to reach the store, and that dies with a node alone.
        return _lost_node(attempt, spec, now_s)
    for look in _CAUSES:
        found = look(attempt, spec, now_s)
        if found is not None:
            return found
    return _sick_node(state, attempt, now_s)


def _sick_node(state: RunState, attempt: AttemptState, now_s: float) -> Diagnosis | None:
    """A node taken out for what a finding said of it still carries ranks."""
    evicted = [n.node for n in node_marks(state.nodes).evicted if n.quarantined]
    placed = [name for name in evicted if name in attempt.plan.nodes]
    for name in sorted(placed, key=attempt.plan.nodes.index):
        node = state.nodes[name]
        if node.evict is None:
            continue
        finding = node.evict.finding
        return Diagnosis(
            fault=finding.kind,
            title=f"{finding.kind} on {name}",
            reason=f"{name} is sick: {finding.message}",
            seen_s=_seen(attempt, now_s),
            node=name,
            rank=finding.rank,
            evidence=(("finding", node.evict.id), ("detector", finding.detector)),
        )
    return None


def _lost_node(attempt: AttemptState, spec: RunSpec, now_s: float) -> Diagnosis | None:
    if not attempt.lost_nodes:
        return None
    node, reason = attempt.lost_nodes[0]
    return Diagnosis(
        fault="node-lost",
        title=f"node {node} was lost",
        reason=f"the agent of {node} is gone: {reason}",
        seen_s=_seen(attempt, now_s),
        node=node,
        evidence=tuple((f"node {n}", why) for n, why in attempt.lost_nodes),
    )


def _killed(attempt: AttemptState, spec: RunSpec, now_s: float) -> Diagnosis | None:
    dead = next((e for e in attempt.exits if e.signal is not None), None)
    if dead is None:
        return None
    name = _signal_name(dead.signal or 0)
    return Diagnosis(
        fault="worker-killed",
        title=f"rank {dead.rank} on {dead.node} died of {name}",
        reason=f"the worker process of rank {dead.rank} ended by {name} at step {dead.step}",
        seen_s=_seen(attempt, now_s),
        node=dead.node,
        rank=dead.rank,
        evidence=_exits_evidence(attempt),
    )


def diagnose_numbers(attempt: AttemptState, spec: RunSpec, now_s: float) -> Diagnosis | None:
    """Return the numeric trouble that the current attempt's alarm tells of, if there is one."""
    if attempt.alarm is None:
        return None
    finding = attempt.alarm.finding
    return Diagnosis(
        fault=finding.kind,
        title=f"{finding.kind} at step {finding.step}, onset at step {finding.onset_step}",
        reason=finding.message,
        seen_s=_seen(attempt, now_s),
        node=finding.node,
        rank=finding.rank,
        evidence=(
            ("finding", attempt.alarm.id),
            ("detector", finding.detector),
            ("onset step", str(finding.onset_step)),
            ("observed", f"{finding.value:.6g}"),
            ("reference", f"{finding.reference:.6g}"),
        ),
        is_numeric=True,
    )


def _failed(attempt: AttemptState, spec: RunSpec, now_s: float) -> Diagnosis | None:
    own = next((e for e in attempt.exits if e.signal is None and not _is_consequence(e)), None)
    if own is None:
        return None
    said = f"{own.code}: {own.message}" if own.code else f"exit status {own.exit_code}"
    return Diagnosis(
        fault="worker-failed",
        title=f"rank {own.rank} on {own.node} failed",
        reason=f"rank {own.rank} ended by itself at step {own.step}: {said}",
        seen_s=_seen(attempt, now_s),
        node=own.node,
        rank=own.rank,
        evidence=_exits_evidence(attempt),
    )


def _hang(attempt: AttemptState, spec: RunSpec, now_s: float) -> Diagnosis | None:
    if not attempt.hangs:
        return None
    # Every node sees the same stall within one deadline; wait for all of them to name the laggard.
    heard = frozenset(hang.node for hang in attempt.hangs)
    reported = [node for node in attempt.plan.nodes if node in heard]
    is_whole = len(reported) == len(attempt.plan.nodes)
    if not is_whole and not _settled(attempt, spec, now_s):
        return None
    rows = [_progress(row) for hang in attempt.hangs for row in hang.rows]
    rank, why = blame(rows)
    if not is_whole and not any(row.rank == rank and row.state in DEAD_STATES for row in rows):
        # Whoever waits looks late among those that wait; the one waited for has not been heard.
        rank, why = None, f"only {', '.join(reported)} reported, so nobody can be blamed"
    deadline_s = max(hang.deadline_s for hang in attempt.hangs)
    return Diagnosis(
        fault="hang",
        title=f"no progress for {deadline_s:.1f} s"
        + (f"; rank {rank} is to blame" if rank is not None else ""),
        reason=f"no rank completed a step within {deadline_s:.1f} s: {why}",
        seen_s=_seen(attempt, now_s),
        node=attempt.plan.node_of(rank) if rank is not None else None,
        rank=rank,
        evidence=_hang_evidence(attempt.hangs),
    )


def _progress(row: HangRow) -> RankProgress:
    return RankProgress(
        row.rank,
        row.step,
        Phase[row.phase],
        row.age_s,
        row.process_state,
        row.waits,
        row.marks,
        row.rounds,
    )


def _start_failed(attempt: AttemptState, spec: RunSpec, now_s: float) -> Diagnosis | None:
    if not attempt.start_failures:
        return None
    first = attempt.start_failures[0]
    return Diagnosis(
        fault="start-failed",
        title=f"workers could not be started on {first.node}",
        reason=f"{first.code}: {first.message}",
        seen_s=_seen(attempt, now_s),
        node=first.node,
        evidence=tuple(
            (f"node {f.node}", f"{f.code}: {f.message}") for f in attempt.start_failures
        ),
    )


def _peers(attempt: AttemptState, spec: RunSpec, now_s: float) -> Diagnosis | None:
    if not attempt.exits or not _settled(attempt, spec, now_s):
        return None
    first = attempt.exits[0]
    return Diagnosis(
        fault="peers-lost",
        title=f"rank {first.rank} on {first.node} lost its peers",
        reason=f"collectives broke and no cause showed within {spec.restart.settle_s} s",
        seen_s=_seen(attempt, now_s),
        evidence=_exits_evidence(attempt),
    )


def _too_slow(attempt: AttemptState, spec: RunSpec, now_s: float) -> Diagnosis | None:
    deadline_s = spec.restart.start_deadline_s
    if attempt.first_step_s is not None or now_s - attempt.heard_s < deadline_s:
        return None
    where = "state loaded" if attempt.resumed_s is not None else "state not loaded"
    return Diagnosis(
        fault="start-timeout",
        title=f"attempt {attempt.number} did not complete a step within {deadline_s:.0f} s",
        reason=f"the first step did not come within restart.start_deadline_s ({where})",
        seen_s=now_s,
        evidence=(("nodes with workers", ", ".join(attempt.pids) or "none"),),
    )


def _silent(attempt: AttemptState, spec: RunSpec, now_s: float) -> Diagnosis | None:
    # The agents' own watch speaks long before this; it is for the stall that they cannot see.
    deadline_s = SILENCE_MULTIPLE * spec.restart.hang_max_s
    if attempt.first_step_s is None or now_s - attempt.heard_s < deadline_s:
        return None
    return Diagnosis(
        fault="hang",
        title=f"no step for {deadline_s:.0f} s, and no agent says why",
        reason=f"no step came within {SILENCE_MULTIPLE:g} times restart.hang_max_s",
        seen_s=now_s,
        evidence=(("ranks that finished", ", ".join(map(str, attempt.finished)) or "none"),),
    )


def _seen(attempt: AttemptState, now_s: float) -> float:
    return attempt.signal_s if attempt.signal_s is not None else now_s


def _settled(attempt: AttemptState, spec: RunSpec, now_s: float) -> bool:
    """Whether whatever there is to tell of the cause must have been told.

    An agent keeps what a dead controller did not take, and tells its successor soon after it has
    been heard of again.
    """
    if attempt.unheard and now_s - attempt.listening_s < spec.restart.heartbeat_deadline_s:
        return False
    return now_s - max(_seen(attempt, now_s), attempt.listening_s) >= spec.restart.settle_s


def _is_consequence(e: WorkerExited) -> bool:
    return e.code in PEER_CODES


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _exits_evidence(attempt: AttemptState) -> tuple[tuple[str, str], ...]:
    def how(e: WorkerExited) -> str:
        end = _signal_name(e.signal) if e.signal is not None else f"exit {e.exit_code}"
        said = f", {e.code}: {e.message[:200]}" if e.code else ""
        said += f"; reads like {e.label}" if e.label else ""
        return f"{end} at step {e.step} in {e.phase or 'start-up'}{said}"

    return tuple((f"rank {e.rank} on {e.node}", how(e)) for e in attempt.exits[:16])


def _hang_evidence(hangs: tuple[HangSuspected, ...]) -> tuple[tuple[str, str], ...]:
    rows = (
        (
            f"rank {row.rank} on {hang.node}",
            f"step {row.step}, {row.phase} for {row.age_s:.1f} s, process {row.process_state}",
        )
        for hang in hangs
        for row in hang.rows
    )
    stacks = ((f"stacks of {hang.node}", hang.stacks) for hang in hangs if hang.stacks)
    return (*islice(rows, EVIDENCE_MAX), *islice(stacks, EVIDENCE_MAX))


_CAUSES = (
    _lost_node,
    _killed,
    diagnose_numbers,
    _failed,
    _hang,
    _start_failed,
    _peers,
    _too_slow,
    _silent,
)
