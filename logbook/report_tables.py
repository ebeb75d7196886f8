"""The tables of a report: attempts, incidents, interventions, checkpoints, nodes, remarks."""

from __future__ import annotations

from .checkpoint_text import health_text, outcome_text, verified_text
from .chronicle import AttemptRow, Chronicle
from .clock import clock_text, span_text
from .document import Block, Heading, Table, Text
from .phrases import changes_text, request_text
from .state import Intervention, NodeState, RunState
from .summary import RunSummary
from .words import bytes_text

ROWS_MAX = 200


def attempts(chronicle: Chronicle, end_s: float, heard_s: float | None) -> list[Block]:
    """Return every attempt: from what, how far, for how long, how it ended.

    heard_s: when a run that is silent was last heard of, None for any other.
    """
    rows = chronicle.attempts[-ROWS_MAX:]
    heads = ("attempt", "started (UTC)", "from step", "to step", "steps", "lasted", "ended by")
    table = Table(heads, [_attempt(row, end_s, heard_s) for row in rows], (0, 2, 3, 4, 5))
    return [table, *_cut(len(chronicle.attempts), "attempts")]


def _attempt(row: AttemptRow, end_s: float, heard_s: float | None) -> tuple[str, ...]:
    until_s = heard_s if heard_s is not None else end_s
    going_on = "still running" if heard_s is None else "not heard of any more"
    return (
        str(row.number),
        clock_text(row.started_s)[:19],
        str(row.resumed_step) if row.resumed_s is not None else "-",
        str(row.last_step) if row.last_step is not None else "-",
        f"{row.steps:,}",
        span_text((row.ended_s if row.ended_s is not None else until_s) - row.started_s),
        row.end or going_on,
    )


def incidents(summary: RunSummary) -> list[Block]:
    """Return every incident; its note lies in the run's folder under its name."""
    rows = [
        (row.id, row.fault, f"{row.step:,}", row.title, span_text(row.detect_s),
         span_text(row.recover_s), f"{row.steps_lost:,}", row.outcome)
        for row in summary.incidents[-ROWS_MAX:]
    ]  # fmt: skip
    heads = ("incident", "fault", "step", "what", "detect", "recover", "steps lost", "outcome")
    return [
        Heading("Incidents"),
        Table(heads, rows, (2, 4, 5, 6)),
        *_cut(len(summary.incidents), "incidents"),
        Text("Each has a note in the run's folder: notes/INCIDENT.md.", True),
    ]


def interventions(state: RunState) -> list[Block]:
    """Return what people, and the policy itself, changed mid-flight."""
    found = list(state.interventions.values())
    if not found:
        return [Heading("Interventions"), Text("Nobody intervened.")]
    heads = ("when (UTC)", "who", "what", "why", "came to", "from step", "read back")
    return [
        Heading("Interventions"),
        Table(heads, [_intervention(known) for known in found[-ROWS_MAX:]], (5,)),
        *_cut(len(found), "interventions"),
    ]


def _intervention(known: Intervention) -> tuple[str, ...]:
    asked = known.request
    detail = f": {known.detail}" if known.detail else ""
    return (
        clock_text(known.requested_s)[:19],
        asked.by,
        request_text(asked),
        asked.reason,
        f"{known.stage}{detail}",
        str(known.at_step) if known.at_step is not None else "-",
        changes_text(known),
    )


def checkpoints(chronicle: Chronicle) -> list[Block]:
    """Return the checkpoints that are known, and what saving cost."""
    state = chronicle.state
    known = list(state.checkpoints.values())
    mean_s = chronicle.blocked_total_s / chronicle.saves_total if chronicle.saves_total else 0.0
    told = (
        f"{chronicle.saves_total:,} saves; the loop stood still {span_text(mean_s)} for each on "
        f"average, {span_text(chronicle.blocked_total_s)} together; {state.failed_saves} failed."
    )
    if not known:
        return [Heading("Checkpoints"), Text(told)]
    rows = [
        (each.checkpoint, f"{each.step:,}", bytes_text(each.bytes), span_text(each.save_s),
         verified_text(each.verified), health_text(each), outcome_text(each, state.step))
        for each in known[-ROWS_MAX:]
    ]  # fmt: skip
    heads = ("checkpoint", "step", "size", "saved in", "read back", "health", "came to")
    return [
        Heading("Checkpoints"),
        Text(told),
        Table(heads, rows, (1, 2, 3)),
        *_cut(len(known), "checkpoints"),
    ]


def nodes(state: RunState) -> list[Block]:
    """Return the nodes with something against them: lemons first, then by what was laid to them."""
    blamed: dict[str, list[str]] = {}
    for name, incident in state.incidents.items():
        if incident.draft.node:
            blamed.setdefault(incident.draft.node, []).append(name)
    marked = [
        node
        for node in state.nodes.values()
        if node.quarantined or node.lemon or node.num_losses or node.num_hangs
        or node.node in blamed
    ]  # fmt: skip
    if not marked:
        return [Heading("Nodes"), Text(f"{len(state.nodes)} nodes; nothing against any of them.")]
    marked.sort(key=lambda n: (not (n.quarantined or n.lemon), -len(blamed.get(n.node, ()))))
    heads = ("node", "host", "machine", "lost", "hangs", "incidents", "kept out because")
    rows = [_node(node, blamed.get(node.node, [])) for node in marked[:ROWS_MAX]]
    return [
        Heading("Lemon nodes"),
        Text(f"{len(marked)} of {len(state.nodes)} nodes have something against them."),
        Table(heads, rows, (3, 4)),
    ]


def _node(node: NodeState, blamed: list[str]) -> tuple[str, ...]:
    return (
        node.node,
        node.host,
        node.machine or "-",
        str(node.num_losses),
        str(node.num_hangs),
        ", ".join(blamed[-6:]) or "-",
        node.quarantined or node.lemon or "-",
    )


def remarks(state: RunState) -> list[Block]:
    """Return what people wrote down."""
    found = [("", remark) for remark in state.remarks]
    found += [(n, remark) for n, i in state.incidents.items() for remark in i.remarks]
    if not found:
        return []
    rows = [
        (clock_text(remark.time_s)[:19], remark.by, name or "the run", remark.text)
        for name, remark in sorted(found, key=lambda pair: pair[1].seq)
    ]
    return [Heading("Remarks"), Table(("when (UTC)", "who", "on", "what"), rows)]


def _cut(count: int, what: str) -> list[Block]:
    over = count - ROWS_MAX
    return [Text(f"{over} earlier {what} are left out.", True)] if over > 0 else []
