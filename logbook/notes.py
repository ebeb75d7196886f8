"""The incident note, as a good on-call engineer would write it: a pure rendering of the record."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .chapter import Chapter
from .clock import clock_text, span_text
from .costs import bill_of, bill_rows, incident_gpu_s, tariff_of
from .decisions import Decision, StartAttempt
from .events import ValidationDone
from .outlook import outlook_text
from .state import Incident, NodeState, RunState
from .wire import StepSample

NOTHING_READ = Chapter()
MAX_CELL = 300


def render_note(
    state: RunState, incident: Incident, chapter: Chapter = NOTHING_READ, picture: str = ""
) -> str:
    """Return the Markdown note of an incident: seen, decided and why, before and after, outcome.

    chapter: what the journal holds around it; without, the note has what the state remembers.
    picture: address of the plot of its numbers, "" when there is none.
    """
    draft = incident.draft
    where = f"Run `{state.run}`, attempt {incident.attempt_before}, step {draft.step}."
    shown = [picture_line(draft.id, picture), ""] if picture else []
    sections = [
        ("Times", _times(state, incident, chapter)),
        ("What was seen", _seen(state, incident, chapter)),
        ("What was decided, and why", _decided(incident)),
        ("Before and after", _before_after(incident, chapter)),
        ("What it cost", _cost(state, incident)),
        ("What to watch next", [_line(outlook_text(state, incident))]),
        ("Outcome", _outcome(state, incident)),
        ("Added by people", _remarks(state, incident)),
    ]
    lines = [
        f"# {draft.id}: {_line(draft.title)}",
        "",
        f"{where} Fault: **{draft.fault}**. {_status(incident)}",
        "",
        *shown,
    ]
    for title, body in sections:
        lines += [f"## {title}", "", *body, ""]
    return "\n".join(lines)


def picture_line(incident: str, picture: str) -> str:
    """Return the line of a note that shows the plot at an address."""
    return f"![The numbers around {incident}]({picture})"


def _status(incident: Incident) -> str:
    if incident.is_open:
        recovered = incident.recovered_s is not None
        return "Training again; watched." if recovered else "Still open."
    return f"Closed: {incident.outcome}."


# --- what happened -------------------------------------------------------------------------------


def _times(state: RunState, incident: Incident, chapter: Chapter) -> list[str]:
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
    if chapter.moments:
        lines += ["", "| journal | time (UTC) | what happened |", "|---:|---|---|"]
        lines += [
            f"| #{moment.seq} | {clock_text(moment.time_s)[11:]} | {_cell(moment.text)} |"
            for moment in chapter.moments
        ]
    # The decision that opened it comes after its first sign.
    since = min([incident.opened_seq, *(moment.seq for moment in chapter.moments)])
    look = f"`midwatch journal {state.run} --since {since}`"
    lines += ["", f"Journal: from event {since} on ({look})."]
    return lines


def _seen(state: RunState, incident: Incident, chapter: Chapter) -> list[str]:
    draft = incident.draft
    whom = [f"node {draft.node}"] if draft.node else []
    whom += [f"rank {draft.rank}"] if draft.rank is not None else []
    lines = [f"Blamed on: {', '.join(whom)}." if whom else "Blamed on nobody in particular.", ""]
    node = state.nodes.get(draft.node or "")
    if node is not None:
        lines += [_identity(node), ""]
    found = (pair for decision in incident.decisions for pair in decision.evidence)
    evidence = list(dict.fromkeys(found))
    if evidence:
        lines += ["| what | value |", "|---|---|"]
        lines += [f"| {_cell(what)} | {_cell(value)} |" for what, value in evidence]
    else:
        lines.append("No further values.")
    for excerpt in chapter.excerpts:
        lines += ["", f"{_line(excerpt.source)}:", "", *_fenced(excerpt.text)]
    return lines


def _identity(node: NodeState) -> str:
    """Return by what a node's machine is known, so that it is known again under another name."""
    parts = [f"Node {node.node} is host {node.host}"]
    parts += [f"machine `{_line(node.machine)}`"] if node.machine else []
    gpus = ", ".join(f"`{uuid}`" + (f" ({serial})" if serial else "") for uuid, serial in node.gpus)
    parts += [f"GPUs {_line(gpus)}"] if gpus else []
    parts.append(f"agent {node.incarnation}, {node.slots} slots")
    past = [f"lost {node.num_losses} times"] if node.num_losses else []
    past += [f"blamed for {node.num_hangs} hangs"] if node.num_hangs else []
    past += [f"quarantined: {_line(node.quarantined)}"] if node.quarantined else []
    return "; ".join([*parts, *past]) + "."


def _fenced(text: str) -> list[str]:
    # The fence is longer than any run of backticks inside, so nothing inside can end it.
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}text", *text.splitlines(), fence]


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


# --- what it came to -----------------------------------------------------------------------------


def _before_after(incident: Incident, chapter: Chapter) -> list[str]:
    tags = incident.checkpoint_tags
    old, new = _samples_around(incident, chapter.samples)
    rows: list[tuple[str, object, object]] = [
        ("attempt", incident.attempt_before, incident.attempt_after),
        ("learning rate", _number(incident.lr_before), _number(incident.lr_after)),
        ("loss (nats/token)", _number(incident.loss_before), _number(incident.loss_after)),
    ]
    if old is not None or new is not None:
        rows += [
            ("gradient norm", _of(old, "grad_norm"), _of(new, "grad_norm")),
            ("activation norm", _of(old, "activation_norm"), _of(new, "activation_norm")),
            ("loss scale", _of(old, "loss_scale"), _of(new, "loss_scale")),
            ("tokens/s", _of(old, "tokens_per_s"), _of(new, "tokens_per_s")),
        ]
    if chapter.measured:
        rows.append(("perplexity on held-out text", *_measured(incident, chapter.measured)))
    rows += [
        ("resumed from", "", _source(incident)),
        ("loss at the checkpoint", "", _number(tags.loss if tags else None)),
        ("loss scale at the checkpoint", "", _number(tags.loss_scale if tags else None)),
        ("steps to train again", "", incident.steps_lost if incident.recovered_s else "-"),
        *(("not as it was when saved", "", _cell(line)) for line in incident.differs),
    ]
    lines = ["| | before | after |", "|---|---|---|"]
    return lines + [f"| {what} | {before} | {after} |" for what, before, after in rows]


def _samples_around(
    incident: Incident, samples: Sequence[tuple[int, StepSample]]
) -> tuple[StepSample | None, StepSample | None]:
    """Return the last step before the answer and the first of the attempt that answered."""
    after = incident.attempt_after
    old = [s for attempt, s in samples if attempt <= incident.attempt_before]
    new = [s for attempt, s in samples if after is not None and attempt >= after]
    before = [s for s in old if s.step <= max(incident.step_before, incident.draft.step)]
    return (before[-1] if before else None), (new[0] if new else None)


def _measured(incident: Incident, measured: Sequence[ValidationDone]) -> tuple[str, str]:
    """Return the last perplexity before the answer and the first of the attempt that answered."""
    after = incident.attempt_after
    until = max(incident.step_before, incident.draft.step)
    old = [m for m in measured if m.attempt <= incident.attempt_before and m.step <= until]
    new = [m for m in measured if after is not None and m.attempt >= after]
    return _perplexity(old[-1] if old else None), _perplexity(new[0] if new else None)


def _perplexity(measured: ValidationDone | None) -> str:
    return "-" if measured is None else f"{measured.perplexity:.4g} (step {measured.step})"


def _of(sample: StepSample | None, field: str) -> str:
    return _number(getattr(sample, field) if sample is not None else None)


def _source(incident: Incident) -> str:
    tier = f" ({incident.tier})" if incident.tier else ""
    return f"{incident.checkpoint}{tier}" if incident.checkpoint else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def _cost(state: RunState, incident: Incident) -> list[str]:
    gpu_s = incident_gpu_s(state, incident)
    if gpu_s <= 0.0:
        return ["Nothing: training went on."]
    tariff = tariff_of(state.spec)
    bill = bill_of(gpu_s, 0.0, tariff)
    lines = ["| what | amount |", "|---|---|"]
    lines += [f"| {what} | {amount} |" for what, amount in bill_rows(bill, tariff)]
    so_far = "" if incident.recovered_s is not None else " So far: it is not over."
    basis = "From the first sign to the first new step, and the steps to train again."
    energy = f" Energy by the declared {tariff.gpu_watts:g} W a GPU." if bill.energy_kwh else ""
    return [*lines, "", f"{basis}{energy}{_shared(state, incident)}{so_far}"]


def _shared(state: RunState, incident: Incident) -> str:
    after = incident.attempt_after
    others = [
        name
        for name, other in state.incidents.items()
        if name != incident.draft.id and after is not None and other.attempt_after == after
    ]
    together = f" One restart answered this and {', '.join(others)}: the cost is theirs together."
    return together if others else ""


def _outcome(state: RunState, incident: Incident) -> list[str]:
    if incident.is_open:
        if incident.recovered_s is None:
            return ["Not known yet."]
        took = span_text(incident.recovered_s - incident.draft.seen_s)
        return [f"Training again {took} after the first sign; watched until it proves healthy."]
    assert incident.closed_s is not None
    return [f"{_line(incident.outcome)}, closed {clock_text(incident.closed_s)}."]


def _remarks(state: RunState, incident: Incident) -> list[str]:
    name = incident.draft.id
    lines: list[str] = []
    if incident.acknowledged:
        lines += [f"Acknowledged: {_line(incident.acknowledged)}.", ""]
    for remark in incident.remarks:
        lines += [f"**{_line(remark.by)}**, {clock_text(remark.time_s)}, event #{remark.seq}:", ""]
        lines += [f"> {_quotable(line)}" for line in remark.text.splitlines()]
        lines.append("")
    how = f'`midwatch notes {state.run} --incident {name} --add "..."`'
    return [*lines, f"To add something: {how}."]


def _quotable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _line(text: str) -> str:
    # What workers and kernels say may span lines, and a line may look like a heading.
    return " ".join(text.split())


def _cell(text: str) -> str:
    text = _line(text)
    text = text if len(text) <= MAX_CELL else f"{text[: MAX_CELL - 4]} ..."
    return text.replace("|", "\\|")
