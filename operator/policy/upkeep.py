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
from ...logbook.findings import Finding, Severity
from ...logbook.fold_decisions import OWN
from ...logbook.state import Incident, Intervention, RunState
from ...logbook.wire import Command
from ..spec import RunSpec
from .candidates import doomed, last_good_checkpoint
from .context import make_decision, next_decision_id, next_incident_id
from .requests import is_training

VERIFY_DEADLINE_S = 120.0
TROUBLE_HORIZON_STEPS = 512
"""A slow creep may be named this long after it began, so something older must have been kept."""


def finish(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """End the run once every rank has finished, unless what it finished with is sick."""
    attempt = state.attempt
    if attempt is None or not attempt.is_finished:
        return []
    if attempt.alarm is not None and not attempt.stopped:
        return []
    why = "stopped on request" if attempt.stopped else "every rank completed the last step"
    return [make_decision(state, EndRun(stopped=attempt.stopped, step=state.step), why)]


def close_incidents(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Close the incidents that training has got past."""
    for name in state.open_incidents:
        outcome = _outcome(state, spec, state.incidents[name])
        if outcome:
            close = CloseIncident(name, outcome)
            return [make_decision(state, close, outcome, about=name)]
    return []


def _outcome(state: RunState, spec: RunSpec, incident: Incident) -> str:
    draft, last = incident.draft, state.last
    if state.end is not None and incident.recovered_s is None:
        return f"the run was {state.end} first"
    if incident.is_watched:
        return _watched_outcome(state, spec, incident)
    if incident.recovered_s is None or last is None:
        return ""
    took_s = incident.recovered_s - draft.seen_s
    recovered = f"recovered in {took_s:.2f} s, {incident.steps_lost} steps trained again"
    if not draft.is_numeric:
        return recovered
    again = any(
        other.draft.is_numeric and not other.is_watched and other.opened_seq > incident.opened_seq
        for other in state.incidents.values()
    )
    if again:
        return f"{recovered}; it came back"
    if last.step < draft.onset_step + spec.numeric.heal_steps and state.end is None:
        return ""
    return f"{recovered}; loss {last.loss:.4f} at step {last.step}, past the old onset"


def _watched_outcome(state: RunState, spec: RunSpec, incident: Incident) -> str:
    draft = incident.draft
    if not incident.attempt_before:
        return "no attempt was running"
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
        if _is_known(state, spec, finding):
            continue
        draft = IncidentDraft(
            id=next_incident_id(state),
            fault=finding.kind,
            title=f"{finding.kind} at step {finding.step}",
            step=finding.step,
            seen_s=state.time_s,
            onset_step=finding.onset_step,
            node=finding.node,
            rank=finding.rank,
            is_numeric=finding.node is None,
            finding=seen.id,
        )
        return [make_decision(state, Observe(), f"{finding.message}; watched", about=draft)]
    return []


def _is_known(state: RunState, spec: RunSpec, finding: Finding) -> bool:
    # A warning belongs to an incident of its kind while that is open or has only just healed.
    heal_steps = spec.numeric.heal_steps
    return any(
        known.draft.fault == finding.kind
        and (known.is_open or finding.step < known.draft.step + heal_steps)
        for known in state.incidents.values()
    )


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
    return make_decision(state, Observe(), reason, evidence=evidence, about=draft)


def verify_checkpoints(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Have the newest checkpoint that was never read back verified."""
    going = doomed(state)
    for known in reversed(state.checkpoints.values()):
        asked_s = known.verify_asked_s
        waiting = asked_s is not None and now_s - asked_s < VERIFY_DEADLINE_S
        is_of_use = not known.abandoned and known.checkpoint not in going
        if known.verified is None and is_of_use and not waiting:
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
    going = doomed(state)
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
            if c.checkpoint not in going
        ],
        RetentionRules(
            keep_newest=spec.retention.keep_newest,
            keep_every_steps=spec.retention.keep_every_steps,
        ),
        Protected(
            last_good=last_good_checkpoint(state, spec, state.step).checkpoint,
            pins=(*_far_back(state), *_wanted_by_trouble(state, spec)),
        ),
        current_attempt=attempt.number,
    )
    if not plan.delete_ids:
        return []
    why = "; ".join(f"{name}: {reason}" for name, reason in plan.delete)
    return [make_decision(state, PruneCheckpoints(plan.delete_ids), why, evidence=plan.keep)]


def _far_back(state: RunState) -> list[str]:
    # The first checkpoint of each stretch of the horizon: the third newest is always older than it.
    first: dict[int, str] = {}
    for known in sorted(state.checkpoints.values(), key=lambda c: (c.step, c.attempt)):
        if not known.abandoned and not known.quarantined and known.verified is not False:
            first.setdefault(known.step // TROUBLE_HORIZON_STEPS, known.checkpoint)
    return [first[stretch] for stretch in sorted(first)[-3:]]


def _wanted_by_trouble(state: RunState, spec: RunSpec) -> list[str]:
    # Where a rollback would go if what is being watched got worse.
    drafts = [state.incidents[name].draft for name in state.open_incidents]
    choices = [last_good_checkpoint(state, spec, d.onset_step) for d in drafts if d.is_numeric]
    return [choice.checkpoint for choice in choices if choice.checkpoint is not None]


def climb_back(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Raise the rate one rung toward its schedule after a long healthy stretch.

    A rate kept too low for too long costs quality too (OPT-66B's takeaway).
    """
    if not state.rollbacks or state.open_incidents or not is_training(state):
        return []
    climbs = [
        known
        for known in state.interventions.values()
        if known.request.by == OWN and known.stage in ("sent", "applied")
    ]
    down = _rungs_down(state, climbs)
    if not down or any(known.stage == "sent" for known in climbs):
        return []
    since = max([state.rollbacks[-1].onset_step, *(known.at_step or 0 for known in climbs)])
    healthy = state.step - since
    if healthy < spec.numeric.recover_after_steps:
        return []
    command = Command(state.next_command, "lr-factor", 1.0 / down[-1], next_decision_id(state))
    reason = f"{healthy} healthy steps since step {since}: one rung back up"
    return [make_decision(state, SendCommand(command), reason)]


def _rungs_down(state: RunState, climbs: list[Intervention]) -> list[float]:
    # Every climb undoes the last rung before it; one that a rollback took back undoes none.
    moves = [(past.time_s, past.lr_factor) for past in state.rollbacks if past.lr_factor < 1.0]
    moves += [(known.requested_s, 1.0) for known in climbs]
    down: list[float] = []
    for _, factor in sorted(moves):
        if factor < 1.0:
            down.append(factor)
        elif down:
            down.pop()
    return down
