"""What a decision does to the state when it is journaled, before its effect is carried out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from . import decisions as d
from . import fold_marks as mk
from . import fold_preflight as pf
from .energy import AttemptEnergy
from .events import InterventionRequested
from .fold_checkpoints import with_failed_restart
from .fold_interventions import (
    ENDINGS,
    LINEAGE,
    LR,
    OWN,
    STATUS,
    about_checkpoint,
    staged,
    taken_back,
    topics_of,
    touched,
    touched_as_asked,
    without_ending,
)
from .onset import onset_s
from .state import AttemptState, Incident, Intervention, Rollback, RunState, Status

MAX_REMEMBERED_RESTARTS = 1000
"""As many as any budget may allow, or that budget could never be spent."""


def apply_decision(state: RunState, decision: d.Decision, time_s: float) -> RunState:
    """Return the state with decision recorded, pending, and its consequences drawn."""
    if _number_of(decision) <= state.num_decisions:
        return state
    state = replace(
        state,
        pending={**state.pending, decision.id: decision},
        num_decisions=_number_of(decision),
    )
    if decision.opens is not None:
        state = _opened(state, decision.opens, time_s)
    for name in decision.reverts:
        state = taken_back(state, name, decision.reason)
    action = decision.action
    if decision.incident is not None:
        state = fold_incident(
            state,
            decision.incident,
            lambda known: replace(known, decisions=(*known.decisions, decision)),
        )
    return _APPLY[type(action)](state, action, decision, time_s)


def _number_of(decision: d.Decision) -> int:
    return int(decision.id.rpartition("/")[2])


def fold_incident(state: RunState, name: str, change: Callable[[Incident], Incident]) -> RunState:
    """Return the state with change applied to one incident."""
    known = state.incidents.get(name)
    if known is None:
        return state
    return replace(state, incidents={**state.incidents, name: change(known)})


def _opened(state: RunState, draft: d.IncidentDraft, time_s: float) -> RunState:
    last = state.last
    blamed = state.nodes.get(draft.node or "")
    if blamed is not None and draft.fault == "hang":
        hangs = blamed.num_hangs + 1
        why = f"blamed for {hangs} hangs, last {draft.id}" if hangs > 1 else blamed.suspicion
        blamed = replace(blamed, num_hangs=hangs, suspicion=why)
        state = replace(state, nodes={**state.nodes, blamed.node: blamed})
    incident = Incident(
        draft=draft,
        opened_s=time_s,
        opened_seq=state.seq + 1,
        attempt_before=state.attempt.number if state.attempt is not None else 0,
        step_before=state.step,
        onset_s=onset_s(state, draft),
        lr_before=last.lr if last is not None else None,
        loss_before=last.loss if last is not None else None,
    )
    return replace(
        state,
        noted_finding=draft.finding or state.noted_finding,
        incidents={**state.incidents, draft.id: incident},
        open_incidents=(*state.open_incidents, draft.id),
    )


def _start_attempt(
    state: RunState, action: d.StartAttempt, decision: d.Decision, time_s: float
) -> RunState:
    plan = action.plan
    state = pf.cut_by_attempt(_without_attempt(state, time_s), plan.nodes)
    restarts = state.restarts_s if not state.num_attempts else (*state.restarts_s, time_s)
    checkpoints = state.checkpoints
    for name in action.quarantines:
        if name in checkpoints:
            bad = replace(checkpoints[name], quarantined=decision.reason)
            checkpoints = {**checkpoints, name: bad}
            state = touched(state, (about_checkpoint(name),), OWN, "a rollback", time_s)
    state = replace(
        state,
        num_attempts=plan.attempt,
        attempt=AttemptState(plan=plan, started_s=time_s, heard_s=time_s),
        places=plan.nodes,
        hyper=plan.hyper,
        restarts_s=restarts[-MAX_REMEMBERED_RESTARTS:],
        checkpoints=checkpoints,
        memory_since=plan.attempt if plan.memory_since is None else plan.memory_since,
    )
    state = _linked_to_incidents(state, plan.attempt)
    if action.lr_factor != 1.0:
        state = touched(state, (LR, "grad-clip"), OWN, f"a rollback, x{action.lr_factor:g}", time_s)
    if action.intervention:
        state = _went_back(state, action, time_s)
    if action.rollback_onset is None:
        return state
    state = touched(state, (LINEAGE,), OWN, "a rollback", time_s)
    onset_data = [s.data_step for s in state.samples if s.step >= action.rollback_onset]
    done = Rollback(
        onset_data=onset_data[0] if onset_data else None,
        onset_step=action.rollback_onset,
        resume_step=plan.resume_step,
        checkpoint=plan.checkpoints[0] if plan.checkpoints else "",
        nodes=plan.nodes,
        lr_factor=action.lr_factor,
        time_s=time_s,
        attempt=plan.attempt,
    )
    return replace(state, rollbacks=(*state.rollbacks, done))


def _went_back(state: RunState, action: d.StartAttempt, time_s: float) -> RunState:
    """A person's way back is under way until the attempt holds its state."""
    known = state.interventions.get(action.intervention)
    if known is None:
        return state
    known = replace(known, stage="sent", sent_attempt=action.plan.attempt, sent_s=time_s)
    state = replace(state, interventions={**state.interventions, action.intervention: known})
    what = f"{known.request.id} ({known.request.reason})"
    return touched(state, (LINEAGE,), known.request.by, what, time_s)


def _without_attempt(state: RunState, time_s: float) -> RunState:
    """The current attempt is over, and was barren if it never completed a step."""
    state = with_failed_restart(state)
    old = state.attempt
    barren = state.barren_attempts + (old is not None and old.num_steps == 0)
    if old is not None:
        used = AttemptEnergy(rank_s=old.plan.mesh.world_size * (time_s - old.started_s))
        state = replace(state, energy=state.energy.add(old.number, used))
    return replace(state, attempt=None, barren_attempts=barren, idle_s=time_s)


def _linked_to_incidents(state: RunState, attempt: int) -> RunState:
    # An attempt that fails before its first step leaves its predecessor's incidents open: they
    # are recovered by whichever attempt trains at last.
    last = state.last

    def linked(known: Incident) -> Incident:
        if known.recovered_s is not None or known.is_watched:
            return known
        if known.attempt_after is None and last is not None:
            known = replace(known, step_before=last.step, lr_before=last.lr, loss_before=last.loss)
        return replace(known, attempt_after=attempt)

    for name in state.open_incidents:
        state = fold_incident(state, name, linked)
    return state


def _run_preflight(
    state: RunState, action: d.RunPreflight, decision: d.Decision, time_s: float
) -> RunState:
    if action.plan.is_gate:
        state = _without_attempt(state, time_s)
    return pf.run_preflight(state, action, time_s)


def _end_preflight(
    state: RunState, action: d.EndPreflight, decision: d.Decision, time_s: float
) -> RunState:
    return pf.end_preflight(state, action, time_s)


def _await_nodes(
    state: RunState, action: d.AwaitNodes, decision: d.Decision, time_s: float
) -> RunState:
    return _without_attempt(state, time_s)


def _pause(state: RunState, action: d.PauseRun, decision: d.Decision, time_s: float) -> RunState:
    state = _with_new_status(_without_attempt(state, time_s), "pause", decision, time_s)
    for name, known in state.interventions.items():
        if known.request.action == "pause" and _is_honoured(state, known):
            state = _settled_ending(state, name, decision.reason)
    return replace(state, paused=action.code, pause_reason=decision.reason, stopping="")


def _is_honoured(state: RunState, known: Intervention) -> bool:
    """Whether the end of an attempt is what a stop or pause has asked for by now."""
    is_due = known.stage == "scheduled" and (known.request.at_step or 0) <= state.step
    return known.stage in ("requested", "sent") or is_due


def _with_new_status(state: RunState, ending: str, decision: d.Decision, time_s: float) -> RunState:
    """Return the state that remembers for whom the run comes to rest: a person, or Midwatch."""
    known = (i for i in state.interventions.values() if i.request.action == ending)
    asked = next((i.request for i in known if _is_honoured(state, i)), None)
    return touched_as_asked(state, STATUS, asked, decision.reason, time_s)


def _settled_ending(state: RunState, name: str, reason: str) -> RunState:
    state = replace(state, hyper=state.hyper.without(name, state.step + 1))
    return staged(state, name, "applied", reason)


def _resume(state: RunState, action: d.ResumeRun, decision: d.Decision, time_s: float) -> RunState:
    asked = mk.asked_for(state, "resume", "")
    state = touched_as_asked(state, STATUS, asked, decision.reason, time_s)
    return replace(
        state,
        paused="",
        pause_reason="",
        end=None,
        end_reason="",
        ended_s=None,
        stopping="",
        restarts_s=(),
        barren_attempts=0,
        resumed_s=time_s,
        idle_s=time_s,
    )


def _end(state: RunState, action: d.EndRun, decision: d.Decision, time_s: float) -> RunState:
    end = Status.STOPPED if action.stopped else Status.COMPLETED
    state = _with_new_status(state, "stop" if action.stopped else "", decision, time_s)
    state = _without_attempt(state, time_s)
    state = replace(state, end=end, end_reason=decision.reason, ended_s=time_s, preflight=None)
    for name, known in state.interventions.items():
        if known.request.action in ENDINGS and known.stage in ("requested", "sent", "scheduled"):
            state = _settled_ending(state, name, decision.reason)
        elif known.stage in ("sent", "scheduled"):
            state = replace(state, hyper=state.hyper.without(name, state.step + 1))
            state = staged(state, name, "failed", f"the run was {end} before it took effect")
        elif known.request.action == "verify" and known.stage == "requested":
            # Who was to read it back may be gone; whoever asks again reads it where it lies.
            state = staged(state, name, "failed", f"the run was {end} before it was read back")
    return state


def _send(state: RunState, action: d.SendCommand, decision: d.Decision, time_s: float) -> RunState:
    command = action.command
    state = replace(state, next_command=max(state.next_command, command.seq + 1))
    name = action.intervention or decision.id
    known = state.interventions.get(name)
    if known is None:
        # Midwatch's own changes stand in the same list as people's, under the decision's id.
        own = InterventionRequested(
            id=name, action=command.kind, by=OWN, reason=decision.reason, value=command.value
        )
        known = Intervention(request=own, requested_s=time_s)
    again = known.sent_attempt == state.num_attempts
    known = replace(
        known,
        stage="sent",
        seq=command.seq,
        sent_attempt=state.num_attempts,
        sent_s=time_s,
        num_sent=known.num_sent + 1 if again else 1,
    )
    state = replace(state, interventions={**state.interventions, name: known})
    request = known.request
    what = f"{name} ({request.reason})"
    return touched(state, topics_of(state, request), request.by, what, time_s)


def _reject(
    state: RunState, action: d.RejectIntervention, decision: d.Decision, time_s: float
) -> RunState:
    state = staged(state, action.intervention, "rejected", decision.reason)
    return without_ending(state, action.intervention)


def _complete(
    state: RunState, action: d.CompleteIntervention, decision: d.Decision, time_s: float
) -> RunState:
    return staged(state, action.intervention, "applied", decision.reason)


def _expire(
    state: RunState, action: d.ExpireIntervention, decision: d.Decision, time_s: float
) -> RunState:
    return staged(state, action.intervention, "expired", decision.reason)


def _acknowledge(
    state: RunState, action: d.AcknowledgeIncident, decision: d.Decision, time_s: float
) -> RunState:
    said = decision.reason
    return fold_incident(state, action.incident, lambda known: replace(known, acknowledged=said))


def _close(
    state: RunState, action: d.CloseIncident, decision: d.Decision, time_s: float
) -> RunState:
    state = fold_incident(
        state,
        action.incident,
        lambda known: replace(known, closed_s=time_s, outcome=action.outcome),
    )
    still_open = tuple(name for name in state.open_incidents if name != action.incident)
    return replace(state, open_incidents=still_open)


def _unchanged(state: RunState, action: Any, decision: d.Decision, time_s: float) -> RunState:
    return state


_Apply = Callable[[RunState, Any, d.Decision, float], RunState]
_APPLY: dict[type, _Apply] = {
    d.StartAttempt: _start_attempt,
    d.RunPreflight: _run_preflight,
    d.EndPreflight: _end_preflight,
    d.QuarantineNode: mk.quarantine_node,
    d.ReleaseNode: mk.release_node,
    d.SetDetector: mk.set_detector,
    d.AwaitNodes: _await_nodes,
    d.PauseRun: _pause,
    d.ResumeRun: _resume,
    d.EndRun: _end,
    d.SendCommand: _send,
    d.RejectIntervention: _reject,
    d.CompleteIntervention: _complete,
    d.ExpireIntervention: _expire,
    d.AcknowledgeIncident: _acknowledge,
    d.CloseIncident: _close,
    d.VerifyCheckpoint: mk.verify,
    d.QuarantineCheckpoint: mk.quarantine_checkpoint,
    d.ReleaseCheckpoint: mk.release_checkpoint,
    d.PinCheckpoint: mk.pin,
    d.UnpinCheckpoint: mk.unpin,
    d.PruneCheckpoints: _unchanged,
    d.Observe: _unchanged,
}
