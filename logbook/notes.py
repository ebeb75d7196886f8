"""The incident note, as a good on-call engineer would write it: a pure rendering of the record."""

from __future__ import annotations

from .clock import clock_text, span_text
from .decisions import Decision, StartAttempt
from .state import Incident, RunState


def render_note(state: RunState, incident: Incident) -> str:
    """Return the Markdown note of an incident: seen, decided and why, before and after, outcome."""
    draft = incident.draft
    where = f"Run `{state.run}`, attempt {incident.attempt_before}, step {draft.step}."
    lines = [
        f"# {draft.id}: {_line(draft.title)}",
        "",
        f"{where} Fault: **{draft.fault}**. {_status(incident)}",
        "",
        "## Times",
        "",
        *_times(state, incident),
        "",
        "## What was seen",
        "",
        *_seen(incident),
        "",
        "## What was decided, and why",
        "",
        *_decided(incident),
        "",
        "## Before and after",
        "",
        *_before_after(incident),
        "",
        "## What to watch next",
        "",
        _watch(incident),
        "",
    ]
    return "\n".join(lines)


def _status(incident: Incident) -> str:
    if incident.is_open:
        recovered = incident.recovered_s is not None
        return "Training again; watched." if recovered else "Still open."
    return f"Closed: {incident.outcome}."


def _times(state: RunState, incident: Incident) -> list[str]:
    draft = incident.draft
    rows = [
        ("first sign", draft.seen_s),
        ("decided", incident.opened_s),
        ("first new step", incident.recovered_s),
        ("closed", incident.closed_s),
    ]
    lines = ["| event | time (UTC) | after the first sign |", "|---|---|---|"]
    for what, when_s in rows:
        if when_s is not None:
            lines.append(f"| {what} | {clock_text(when_s)} | {span_text(when_s - draft.seen_s)} |")
    lines += ["", f"Journal: from event {incident.opened_seq} on (`midwatch journal {state.run}`)."]
    return lines


def _seen(incident: Incident) -> list[str]:
    draft = incident.draft
    whom = [f"node {draft.node}"] if draft.node else []
    whom += [f"rank {draft.rank}"] if draft.rank is not None else []
    lines = [f"Blamed on: {', '.join(whom)}." if whom else "Blamed on nobody in particular.", ""]
    found = (pair for decision in incident.decisions for pair in decision.evidence)
    evidence = list(dict.fromkeys(found))
    if not evidence:
        return [*lines, "No further values."]
    lines += ["| what | value |", "|---|---|"]
    return lines + [f"| {_cell(what)} | {_cell(value)} |" for what, value in evidence]


def _decided(incident: Incident) -> list[str]:
    lines: list[str] = []
    for decision in incident.decisions:
        lines.append(f"- `{decision.id}` **{_verb(decision)}**: {_line(decision.reason)}.")
        lines += [
            f"    - passed over {_line(what)}: {_line(why)}" for what, why in decision.alternatives
        ]
    return lines or ["Nothing yet."]


def _verb(decision: Decision) -> str:
    action = decision.action
    name = str(action.__struct_config__.tag)
    return f"{name} {action.plan.attempt}" if isinstance(action, StartAttempt) else name


def _before_after(incident: Incident) -> list[str]:
    tags = incident.checkpoint_tags
    rows = [
        ("attempt", incident.attempt_before, incident.attempt_after),
        ("learning rate", _number(incident.lr_before), _number(incident.lr_after)),
        ("loss (nats/token)", _number(incident.loss_before), _number(incident.loss_after)),
        ("resumed from", "", _source(incident)),
        ("loss at the checkpoint", "", _number(tags.loss if tags else None)),
        ("loss scale at the checkpoint", "", _number(tags.loss_scale if tags else None)),
        ("steps to train again", "", incident.steps_lost if incident.recovered_s else "-"),
        *(("not as it was when saved", "", _cell(line)) for line in incident.differs),
    ]
    lines = ["| | before | after |", "|---|---|---|"]
    return lines + [f"| {what} | {before} | {after} |" for what, before, after in rows]


def _source(incident: Incident) -> str:
    tier = f" ({incident.tier})" if incident.tier else ""
    return f"{incident.checkpoint}{tier}" if incident.checkpoint else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def _watch(incident: Incident) -> str:
    draft = incident.draft
    if draft.is_numeric:
        return (
            f"Loss, gradient norm and activation norm past step {draft.onset_step}, where it "
            "began; a recurrence goes further back and lowers the rate again."
        )
    if draft.node:
        return f"Node {draft.node}: another failure there is no coincidence."
    return "Whether it comes back at the same step or on the same node."


def _line(text: str) -> str:
    # What workers and kernels say may span lines, and a line may look like a heading.
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")[:300]
