"""What is decided while nothing is wrong: the end of a run and of incidents, and plain notes."""

from __future__ import annotations

from ...health.nodes.preflight_judge import DETECTOR as PREFLIGHT
from ...logbook.decisions import (
    ON_REQUEST,
    CloseIncident,
    Decision,
    EndRun,
    IncidentDraft,
    Observe,
    PauseRun,
)
from ...logbook.events import InterventionRequested
from ...logbook.findings import Finding, Severity
from ...logbook.fold_interventions import ENDINGS
from ...logbook.state import AttemptState, Incident, RunState
from ...logbook.words import steps_text
from ..spec import RunSpec
from .context import make_decision, next_incident_id

LAST_STEPS_WAIT_S = 10.0


def finish(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """End the run once every rank has finished, unless what it finished with is sick."""
    attempt = state.attempt
    if attempt is None or not attempt.is_well_ended:
        return []
    if _awaits_steps(state, attempt, now_s) or _awaits_store(state, spec, now_s):
        return []
    step = max(state.step, attempt.finished_step)
    if attempt.stopped and (pause := _asked_pause(state)) is not None:
        why = f"{pause.by} asked: {pause.reason}; the state of step {step} is saved"
        return [make_decision(state, PauseRun(ON_REQUEST), why)]
    why = "stopped on request" if attempt.stopped else "every rank completed the last step"
    if step > state.step:
        why += f"; the numbers of {steps_text(step - state.step)} after {state.step} never came"
    return [make_decision(state, EndRun(stopped=attempt.stopped, step=step), why)]


def _awaits_steps(state: RunState, attempt: AttemptState, now_s: float) -> bool:
    """Whether the numbers of the last steps are still on their way: they may be sick.

    They come after the end is known where a controller has just taken over. Those that an agent
    had no room to keep for it never come.
    """
    is_late = now_s >= attempt.finished_s + LAST_STEPS_WAIT_S
    return state.step < attempt.finished_step and not is_late


def _asked_pause(state: RunState) -> InterventionRequested | None:
    """The pause for which the ranks have stopped; none where somebody asked for the end as well."""
    due = [
        known.request
        for known in state.interventions.values()
        if known.request.action in ENDINGS
        and known.stage in ("sent", "scheduled")
        and (known.request.at_step or 0) <= state.step
    ]
    if not due or any(request.action == "stop" for request in due):
        return None
    return due[0]


def _awaits_store(state: RunState, spec: RunSpec, now_s: float) -> bool:
    """Whether the last checkpoint is still on its way: it would end with the nodes' disks."""
    store = spec.checkpoints.store
    lineage = [known for known in state.checkpoints.values() if not known.abandoned]
    if not store.url or not lineage:
        return False
    last = max(lineage, key=lambda known: (known.step, known.attempt))
    return last.uploaded_s is None and now_s < last.time_s + store.finish_wait_s


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
    recovered = f"recovered in {took_s:.2f} s, {steps_text(incident.steps_lost)} trained again"
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
        is_up = state.attempt is not None and state.attempt.first_step_s is not None
        return "the run trains by now" if is_up else ""
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
            is_numeric=finding.node is None and finding.detector != PREFLIGHT,
            finding=seen.id,
        )
        return [make_decision(state, Observe(), f"{finding.message}; watched", about=draft)]
    return []


def _is_known(state: RunState, spec: RunSpec, finding: Finding) -> bool:
    # A warning belongs to an incident of its kind while that is open or has only just healed.
    heal_steps = spec.numeric.heal_steps
    return any(
        (known.draft.fault, known.draft.node) == (finding.kind, finding.node)
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
