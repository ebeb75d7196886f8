"""What is decided while nothing is wrong: verifying, pruning, closing, climbing back."""

from __future__ import annotations

from ...checkpoints.retention import Protected, Retained, RetentionRules, plan_retention
from ...logbook.decisions import (
    CloseIncident,
    Decision,
    EndRun,
    IncidentDraft,
    Observe,
    PruneCheckpoints,
    SendCommand,
    VerifyCheckpoint,
)
from ...logbook.findings import Severity
from ...logbook.state import Incident, RunState
from ...logbook.wire import Command
from ..spec import RunSpec
from .candidates import last_good_checkpoint
from .context import make_decision, next_incident_id

VERIFY_DEADLINE_S = 120.0


def finish(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """End the run once every rank has finished."""
    attempt = state.attempt
    if attempt is None or not attempt.is_finished:
        return []
    why = "stopped on request" if attempt.stopped else "every rank completed the last step"
    return [make_decision(state, EndRun(stopped=attempt.stopped, step=state.step), why)]


def close_incidents(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Close the incidents that training has got past."""
    for name in state.open_incidents:
        outcome = _outcome(state, spec, state.incidents[name])
        if outcome:
            close = CloseIncident(name, outcome)
            return [make_decision(state, close, outcome, incident=name)]
    return []


def _outcome(state: RunState, spec: RunSpec, incident: Incident) -> str:
    draft, last = incident.draft, state.last
    if incident.is_watched:
        return _watched_outcome(state, spec, incident)
    if incident.recovered_s is None or last is None:
        return ""
    took_s = incident.recovered_s - draft.seen_s
    recovered = f"recovered in {took_s:.2f} s, {incident.steps_lost} steps trained again"
    if not draft.is_numeric:
        return recovered
    again = any(
        other.draft.is_numeric and other.opened_s > incident.opened_s
        for other in state.incidents.values()
    )
    if again:
        return f"{recovered}; it came back and a further rollback followed"
    if last.step < draft.onset_step + spec.numeric.heal_steps:
        return ""
    return f"{recovered}; loss {last.loss:.4f} at step {last.step}, past the old onset"


def _watched_outcome(state: RunState, spec: RunSpec, incident: Incident) -> str:
    draft = incident.draft
    if state.num_attempts != incident.attempt_before:
        return "overtaken by a restart for another cause"
    if not draft.is_numeric:
        return "training went on" if incident.recovered_s is not None else ""
    if state.step < draft.step + spec.numeric.heal_steps:
        return ""
    return "did not get worse; nothing was done"


def note_findings(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Open and leave alone an incident for a warning: a note, nothing else."""
    for seen in state.findings:
        finding = seen.finding
        is_new = not state.noted_finding or seen.id > state.noted_finding
        if not is_new or finding.shadow or finding.severity is not Severity.WARN:
            continue
        if any(state.incidents[n].draft.fault == finding.kind for n in state.open_incidents):
            continue
        draft = IncidentDraft(
            id=next_incident_id(state),
            fault=finding.kind,
            title=f"{finding.kind} at step {finding.step}, watched",
            step=finding.step,
            seen_s=state.time_s,
            onset_step=finding.onset_step,
            node=finding.node,
            rank=finding.rank,
            is_numeric=finding.node is None,
            finding=seen.id,
        )
        return [make_decision(state, Observe(), f"{finding.message}; watched", opens=draft)]
    return []


def note_takeover(state: RunState, now_s: float) -> Decision | None:
    """Return the note that a new controller makes of its lost predecessor, if there was one."""
    resting = state.status.is_terminal or bool(state.paused)
    if not state.controller_pid or resting:
        return None
    draft = IncidentDraft(
        id=next_incident_id(state),
        fault="controller-lost",
        title=f"controller {state.epoch} was lost and replaced",
        step=state.step,
        seen_s=now_s,
        onset_step=state.step,
    )
    reason = f"{state.seq} events folded from the journal; workers went on meanwhile"
    evidence = (("last event", str(state.seq)), ("lost process", str(state.controller_pid)))
    return make_decision(state, Observe(), reason, evidence=evidence, opens=draft)


def verify_checkpoints(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Have the newest checkpoint that was never read back verified."""
    for known in reversed(state.checkpoints.values()):
        asked_s = known.verify_asked_s
        waiting = asked_s is not None and now_s - asked_s < VERIFY_DEADLINE_S
        if known.verified is None and not known.abandoned and not waiting:
            verify = VerifyCheckpoint(known.checkpoint)
            return [make_decision(state, verify, "committed, never read back")]
    return []


def prune_checkpoints(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Delete what retention no longer keeps; never while an attempt is still choosing."""
    attempt = state.attempt
    if attempt is None or attempt.first_step_s is None or attempt.signal_s is not None:
        return []
    if len(state.checkpoints) <= spec.retention.keep_newest:
        return []
    doomed = {
        name
        for d in state.pending.values()
        if isinstance(d.action, PruneCheckpoints)
        for name in d.action.checkpoints
    }
    plan = plan_retention(
        [
            Retained(
                id=c.checkpoint,
                step=c.step,
                attempt=c.attempt,
                verified=c.verified,
                abandoned=c.abandoned,
            )
            for c in state.checkpoints.values()
            if c.checkpoint not in doomed
        ],
        RetentionRules(
            keep_newest=spec.retention.keep_newest,
            keep_every_steps=spec.retention.keep_every_steps,
        ),
        Protected(last_good=last_good_checkpoint(state, spec, state.step).checkpoint),
        current_attempt=attempt.number,
    )
    if not plan.delete_ids:
        return []
    why = "; ".join(f"{name}: {reason}" for name, reason in plan.delete)
    return [make_decision(state, PruneCheckpoints(plan.delete_ids), why, evidence=plan.keep)]


def climb_back(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Raise the rate one rung toward its schedule after a long healthy stretch.

    A rate kept too low for too long costs quality too (OPT-66B's takeaway).
    """
    attempt = state.attempt
    if not state.rollbacks or attempt is None or attempt.signal_s is not None:
        return []
    own = [r for r in state.rollbacks if r.lr_factor < 1.0]
    climbed = [
        i
        for i in state.interventions.values()
        if i.request.by == "midwatch" and i.request.action == "lr-factor"
    ]
    if len(climbed) >= len(own) or any(i.stage == "sent" for i in climbed):
        return []
    since = max([own[-1].onset_step, *(i.at_step or 0 for i in climbed)])
    if state.step - since < spec.numeric.recover_after_steps or state.open_incidents:
        return []
    factor = 1.0 / own[len(own) - 1 - len(climbed)].lr_factor
    command = Command(state.next_command, "lr-factor", factor, "climb")
    reason = f"{state.step - since} healthy steps since step {since}: one rung back up"
    return [make_decision(state, SendCommand(command), reason)]
