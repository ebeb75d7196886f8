"""Answers to checkpoints that did not give back what was saved.

A load that had to pass over one, or to read another copy of a file, leaves a note. A checkpoint
from which restarts fail, while nothing else is to blame, is not tried for ever: its bytes may be
whole and the state in them still be one that no step can be made from.
"""

from __future__ import annotations

from msgspec.structs import replace

from ...logbook.decisions import Decision, IncidentDraft, Observe, QuarantineCheckpoint
from ...logbook.fold_checkpoints import code_of, failed_restart
from ...logbook.state import RunState
from ..spec import RunSpec
from .candidates import resume_point
from .context import About, Pairs, make_decision, next_incident_id

BAD_LOAD = "bad-checkpoint"
"""Fault of the incident that a load opens which found bytes it could not use."""
MAX_FAILED_RESTARTS = 2
_INCOMPLETE = "memory-incomplete"


def quarantine_suspect(
    state: RunState, spec: RunSpec, evidence: Pairs, about: About
) -> Decision | None:
    """Quarantine the checkpoint that the current attempt failed from, once it has failed twice.

    The last one there is stays in use: the budgets end that story, with a person.
    """
    attempt = state.attempt
    name = failed_restart(attempt, state.nodes) if attempt is not None else ""
    known = state.checkpoints.get(name)
    if known is None or known.quarantined or known.num_failed + 1 < MAX_FAILED_RESTARTS:
        return None
    without = replace(known, quarantined="suspected")
    others = replace(state, checkpoints={**state.checkpoints, name: without})
    left = resume_point(others, spec).candidates
    if not left:
        return None
    failed = known.num_failed + 1
    reason = (
        f"{failed} restarts from {name} in a row ended without a step, and nothing else is to blame"
    )
    found = (*evidence, ("restarts that failed", str(failed)), ("next candidate", left[0]))
    return make_decision(state, QuarantineCheckpoint(name), reason, evidence=found, about=about)


def note_load(state: RunState, spec: RunSpec, now_s: float) -> list[Decision]:
    """Write down what the load of this attempt passed over or had to read from elsewhere."""
    attempt = state.attempt
    if attempt is None:
        return []
    # More nodes were lost than memory survives: nothing was bad, and the disk is there for it.
    bad = [why for _, why in attempt.passed_over if code_of(why) != _INCOMPLETE]
    if not (bad or attempt.repaired):
        return []
    for known in state.incidents.values():
        if known.draft.fault == BAD_LOAD and known.attempt_before == attempt.number:
            return []
    source = attempt.resumed_from or "the beginning"
    passed = len(attempt.passed_over)
    what = f"{passed} passed over" if passed else f"{len(attempt.repaired)} files repaired"
    draft = IncidentDraft(
        id=next_incident_id(state),
        fault=BAD_LOAD,
        title=f"attempt {attempt.number} resumed from {source}: {what}",
        step=attempt.resumed_step,
        seen_s=attempt.resumed_s or now_s,
        onset_step=attempt.resumed_step,
    )
    evidence = (
        *((f"passed over {name}", why) for name, why in attempt.passed_over),
        *((f"other copy of {name}", why) for name, why in attempt.repaired),
        ("resumed from", source),
        ("read from", attempt.tier or "unknown"),
        *(("differs", line) for line in attempt.differs),
    )
    reason = (
        "the newest candidate that could be read whole was taken instead"
        if passed
        else "every bad or missing file was read from another copy; nothing is lost"
    )
    return [make_decision(state, Observe(), reason, evidence=evidence, about=draft)]
