"""evolve: one event in, the next state out. Pure and deterministic; the only way state changes.

Handlers for what a decision does to the state stand in fold_decisions.py. An event of an attempt
that is no longer current changes nothing but the record: the attempt number is the fencing token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from . import events as ev
from . import fold_checkpoints as cp
from . import fold_interventions as iv
from . import fold_preflight as pf
from . import fold_training as tr
from .energy import AttemptEnergy
from .findings import Severity
from .fold_decisions import apply_decision, fold_incident
from .state import (
    MAX_REMARKS,
    RECENT_FINDINGS,
    RECENT_STEPS,
    TREND_STEPS,
    AttemptState,
    NodeState,
    Remark,
    RunState,
)

NO_USABLE_CHECKPOINT = "no-usable-checkpoint"
"""Last words of a worker that could load none of the candidates it was given."""
MAX_EXITS_KEPT = 64
"""Beyond so many only an end of another kind is remembered in the state; the journal has all."""


def evolve(state: RunState, event: ev.Event, *, seq: int, time_s: float) -> RunState:
    """Return the state after event, which has sequence number seq and happened at time_s."""
    state = _HANDLERS[type(event)](state, event, time_s)
    return replace(state, seq=seq, time_s=time_s)


# --- run and nodes -------------------------------------------------------------------------------


def _run_submitted(state: RunState, e: ev.RunSubmitted, time_s: float) -> RunState:
    # A run submitted again with another spec is the same run: its clock goes on.
    first_s = state.submitted_s or time_s
    return replace(
        cp.without_misfits(state),
        run=e.run,
        spec=e.spec,
        policy_version=e.policy_version,
        submitted_s=first_s,
        idle_s=time_s,
    )


def _controller_started(state: RunState, e: ev.ControllerStarted, time_s: float) -> RunState:
    state = pf.heard_anew(replace(state, epoch=e.epoch, controller_pid=e.pid), time_s)
    if state.attempt is None:
        return state
    # What was said while nobody listened comes now: the silence until here proves nothing.
    nodes = state.attempt.plan.nodes
    anew = replace(state.attempt, heard_s=time_s, unheard=nodes, listening_s=time_s)
    return replace(state, attempt=anew)


def _fault_injected(state: RunState, e: ev.FaultInjected, time_s: float) -> RunState:
    return state if e in state.faults else replace(state, faults=(*state.faults, e))


def _node_joined(state: RunState, e: ev.NodeJoined, time_s: float) -> RunState:
    known = state.nodes.get(e.node)
    if known is not None and known.present and known.incarnation != e.incarnation:
        # The old agent ended while nobody looked, and its workers with it.
        state = _without_node(state, known, "a new agent took its place", time_s)
        known = state.nodes[e.node]
    fresh = NodeState(e.node, e.incarnation, e.host, e.slots, e.pid)
    if known is not None:
        fresh = replace(
            known,
            incarnation=e.incarnation,
            host=e.host,
            slots=e.slots,
            pid=e.pid,
            present=True,
        )
    fresh = replace(fresh, machine=e.machine, gpus=e.gpus, lemon=e.lemon, joined_s=time_s)
    state = replace(state, nodes={**state.nodes, e.node: fresh})
    attempt = state.attempt
    if attempt is None or e.node not in attempt.unheard:
        return state
    unheard = tuple(node for node in attempt.unheard if node != e.node)
    return replace(state, attempt=replace(attempt, unheard=unheard, listening_s=time_s))


def _node_identified(state: RunState, e: ev.NodeIdentified, time_s: float) -> RunState:
    known = state.nodes.get(e.node)
    if known is None or known.incarnation != e.incarnation:
        return state
    told = replace(known, machine=e.machine, gpus=e.gpus, lemon=e.lemon)
    return replace(state, nodes={**state.nodes, e.node: told})


def _node_lost(state: RunState, e: ev.NodeLost, time_s: float) -> RunState:
    known = state.nodes.get(e.node)
    if known is None or known.incarnation != e.incarnation or not known.present:
        return state
    return _without_node(state, known, e.reason, time_s)


def _without_node(state: RunState, known: NodeState, reason: str, time_s: float) -> RunState:
    gone = replace(known, present=False, num_losses=known.num_losses + 1)
    state = replace(state, nodes={**state.nodes, known.node: gone})
    state = pf.without_lost_node(state, known.node)
    running = state.attempt
    if running is None or known.node not in running.plan.nodes:
        return state
    lost = (*running.lost_nodes, (known.node, reason))
    return _with_signal(state, replace(running, lost_nodes=lost), time_s)


def _energy_used(state: RunState, e: ev.EnergyUsed, time_s: float) -> RunState:
    # Whatever attempt it was used for, it was used.
    more = AttemptEnergy(measured_j=e.joules)
    return replace(state, energy=state.energy.add(max(e.attempt, 0), more, e.node))


# --- attempts ------------------------------------------------------------------------------------


def _with_signal(state: RunState, attempt: AttemptState, time_s: float) -> RunState:
    if attempt.signal_s is None:
        attempt = replace(attempt, signal_s=time_s)
    return replace(state, attempt=attempt)


def _workers_started(state: RunState, e: ev.WorkersStarted, time_s: float) -> RunState:
    running = state.running(e.attempt)
    if running is None:
        return state
    return replace(state, attempt=replace(running, pids={**running.pids, e.node: e.pids}))


def _attempt_resumed(state: RunState, e: ev.AttemptResumed, time_s: float) -> RunState:
    running = state.running(e.attempt)
    if running is None or running.resumed_s is not None:
        return state
    running = replace(
        running,
        resumed_s=time_s,
        resumed_step=e.step,
        resumed_from=e.checkpoint,
        load_s=e.load_s,
        passed_over=e.passed_over,
        tier=e.tier,
        repaired=e.repaired,
        differs=e.differs,
    )
    samples = tuple(sample for sample in state.samples if sample.step <= e.step)
    checkpoints = cp.after_resume(state, e, samples, time_s)
    rollbacks = state.rollbacks
    if rollbacks and rollbacks[-1].attempt == e.attempt:
        # Where it really went back to: a load may have passed the first choice over.
        went = replace(rollbacks[-1], checkpoint=e.checkpoint, resume_step=e.step)
        rollbacks = (*rollbacks[:-1], went)
    earlier = tuple(entry for entry in state.lineage if entry[1] < e.step)
    validations = tuple(known for known in state.validations if known.step <= e.step)
    return replace(
        iv.rewound(state, e.step),
        attempt=running,
        checkpoints=checkpoints,
        trending=tuple(
            n for n, c in checkpoints.items() if not c.abandoned and c.step + TREND_STEPS > e.step
        ),
        lineage=(*earlier, (e.attempt, e.step)),
        num_setbacks=state.num_setbacks + _is_setback(state, e),
        rollbacks=rollbacks,
        recent_before=(),
        recent=samples[-RECENT_STEPS:],
        last=samples[-1] if samples else None,
        step=e.step,
        steps_lost=state.steps_lost + max(0, state.step - e.step),
        validations=validations,
        validating=None,
    )


def _is_setback(state: RunState, e: ev.AttemptResumed) -> bool:
    """Whether training that had gone on since the last resume is taken up from a checkpoint.

    What the nodes' memory gives back costs nothing that saving more often would spare.
    """
    had_trained = bool(state.lineage) and state.step > state.lineage[-1][1]
    answers = any(state.incidents[n].attempt_after == e.attempt for n in state.open_incidents)
    return had_trained and answers and e.tier != "memory"


def _worker_exited(state: RunState, e: ev.WorkerExited, time_s: float) -> RunState:
    running = state.running(e.attempt)
    if running is None or e.rank in running.finished:
        # Its final state is committed: how the process ends after that harms nothing.
        return state
    if any(known.rank == e.rank for known in running.exits):
        return state
    if len(running.exits) >= MAX_EXITS_KEPT and any(_same_end(e, k) for k in running.exits):
        # A death in a large run has thousands of echoes, and one more says nothing new.
        return state
    if e.code == NO_USABLE_CHECKPOINT:
        # All ranks have agreed that none of their candidates is sound.
        state = cp.doubted(state, running.plan.checkpoints, e.message, time_s)
    return _with_signal(state, replace(running, exits=(*running.exits, e)), time_s)


def _same_end(e: ev.WorkerExited, known: ev.WorkerExited) -> bool:
    return (e.signal is None, e.code) == (known.signal is None, known.code)


def _workers_exited(state: RunState, e: ev.WorkersExited, time_s: float) -> RunState:
    for each in e.exits:
        state = _worker_exited(state, each, time_s)
    return state


def _start_failed(state: RunState, e: ev.StartFailed, time_s: float) -> RunState:
    running = state.running(e.attempt)
    if running is None or e in running.start_failures:
        return state
    failures = (*running.start_failures, e)
    return _with_signal(state, replace(running, start_failures=failures), time_s)


def _hang_suspected(state: RunState, e: ev.HangSuspected, time_s: float) -> RunState:
    running = state.running(e.attempt)
    if running is None or e in running.hangs or tr.is_refuted(e, state.step):
        return state
    return _with_signal(state, replace(running, hangs=(*running.hangs, e)), time_s)


def _rank_finished(state: RunState, e: ev.RankFinished, time_s: float) -> RunState:
    running = state.running(e.attempt)
    if running is None or e.rank in running.finished:
        return state
    running = replace(
        running,
        finished=tuple(sorted((*running.finished, e.rank))),
        finished_step=max(running.finished_step, e.step),
        finished_s=time_s,
        stopped=running.stopped or e.stopped,
    )
    return replace(state, attempt=running)


def _stale_ignored(state: RunState, e: ev.StaleIgnored, time_s: float) -> RunState:
    return replace(state, num_stale=state.num_stale + 1)


# --- findings, decisions and interventions --------------------------------------------------------


def _rank_times(state: RunState, e: ev.RankTimes, time_s: float) -> RunState:
    return state


def _finding_seen(state: RunState, e: ev.FindingSeen, time_s: float) -> RunState:
    state = replace(
        state,
        num_findings=state.num_findings + 1,
        findings=(*state.findings, e)[-RECENT_FINDINGS:],
    )
    state = cp.with_finding(_with_mark(state, e), e)
    running = state.running(e.attempt)
    grave = e.finding.severity is Severity.ROLLBACK and not e.finding.shadow
    if running is None or not grave or running.alarm is not None:
        return state
    return _with_signal(state, replace(running, alarm=e), time_s)


def _with_mark(state: RunState, e: ev.FindingSeen) -> RunState:
    """Mark the node that a finding wants replaced; the first to want it now is remembered."""
    node = state.nodes.get(e.finding.node or "")
    if node is None or e.finding.shadow:
        return state
    marked = pf.with_suspicion(node, e)
    if e.finding.action == "evict" and node.evict is None:
        marked = replace(marked, evict=e)
    elif e.finding.action == "drain":
        marked = pf.with_drain(marked, e)
    return state if marked is node else replace(state, nodes={**state.nodes, node.node: marked})


def _decision_made(state: RunState, e: ev.DecisionMade, time_s: float) -> RunState:
    return apply_decision(state, e.decision, time_s)


def _action_done(state: RunState, e: ev.ActionDone, time_s: float) -> RunState:
    pending = {name: d for name, d in state.pending.items() if name != e.decision}
    return replace(state, pending=pending)


def _note_added(state: RunState, e: ev.NoteAdded, time_s: float) -> RunState:
    known = state.incidents.get(e.incident or "")
    if e.incident is not None and known is None:
        return state
    remarks = known.remarks if known is not None else state.remarks
    # The desk hands a request in again when a controller died before it was settled. One without
    # an id, as they once were, is known by its words.
    known_as = {(r.id,) if r.id else (r.by, r.text) for r in remarks}
    if ((e.id,) if e.id else (e.by, e.text)) in known_as:
        return state
    remarks = (*remarks, Remark(e.by, e.text, time_s, state.seq + 1, e.id))[-MAX_REMARKS:]
    if known is None:
        return replace(state, remarks=remarks)
    return fold_incident(state, known.draft.id, lambda i: replace(i, remarks=remarks))


def _noted(state: RunState, e: ev.Event, time_s: float) -> RunState:
    """What only stands in the journal, for people."""
    return state


_Handler = Callable[[RunState, Any, float], RunState]
_HANDLERS: dict[type, _Handler] = {
    ev.RunSubmitted: _run_submitted,
    ev.ControllerStarted: _controller_started,
    ev.FaultInjected: _fault_injected,
    ev.NodeJoined: _node_joined,
    ev.NodeLost: _node_lost,
    ev.EnergyUsed: _energy_used,
    ev.NodeIdentified: _node_identified,
    ev.PreflightBegun: pf.preflight_begun,
    ev.PreflightAnswered: pf.preflight_answered,
    ev.PreflightJudged: pf.preflight_judged,
    ev.WorkersStarted: _workers_started,
    ev.AttemptResumed: _attempt_resumed,
    ev.WorkerExited: _worker_exited,
    ev.WorkersExited: _workers_exited,
    ev.StartFailed: _start_failed,
    ev.HangSuspected: _hang_suspected,
    ev.RankFinished: _rank_finished,
    ev.StaleIgnored: _stale_ignored,
    ev.StepDone: tr.step_done,
    ev.StepsRecalled: tr.steps_recalled,
    ev.RankTimes: _rank_times,
    ev.ValidationUnderWay: tr.validation_under_way,
    ev.ValidationDone: tr.validation_done,
    ev.CheckpointCommitted: cp.checkpoint_committed,
    ev.CheckpointFailed: cp.checkpoint_failed,
    ev.CheckpointVerified: cp.checkpoint_verified,
    ev.CheckpointUploaded: cp.checkpoint_uploaded,
    ev.UploadFailed: cp.upload_failed,
    ev.CheckpointsPruned: cp.checkpoints_pruned,
    ev.FindingSeen: _finding_seen,
    ev.DecisionMade: _decision_made,
    ev.ActionDone: _action_done,
    ev.InterventionRequested: iv.requested,
    ev.CommandApplied: iv.command_applied,
    ev.NoteAdded: _note_added,
    ev.ApiServed: _noted,
    ev.ApiFailed: _noted,
}
