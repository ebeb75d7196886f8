"""The run as a terminal picture: a pure rendering of RunState with rich, for `midwatch run`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .clock import span_text
from .costs import num_ranks
from .decisions import CloseIncident
from .energy import energy_text
from .hearing import silence_text
from .state import Incident, RunState, Status
from .summary import RunSummary, summarize
from .wire import StepSample

SPARK = " .:-=+*#%@"
SPARK_WIDTH = 48
NAMED_NODES = 6
_COLOUR = {
    Status.TRAINING: "green",
    Status.COMPLETED: "green",
    Status.RECOVERING: "yellow",
    Status.PAUSED: "red",
}


def render_live(
    state: RunState, total_steps: int, now_s: float, alive_s: float = 0.0
) -> RenderableType:
    """Return the picture of a run in progress: figures, what is done and why, what happened.

    alive_s: the last pulse of its controller, 0.0 where there is none.
    """
    title = f"midwatch  {state.run or '(starting)'}"
    parts = [_figures(state, total_steps, now_s), Text(""), _doing(state)]
    if silence := silence_text(state, now_s, alive_s):
        parts.append(Text(silence, style="bold red"))
    if state.incidents:
        parts += [Text(""), _incidents(state)]
    colour = _COLOUR.get(state.status, "cyan")
    return Panel(Group(*parts), title=title, border_style=colour, padding=(0, 1))


def _figures(state: RunState, total_steps: int, now_s: float) -> RenderableType:
    last = state.last
    summary = summarize(state, now_s)
    table = Table.grid(padding=(0, 3), expand=True)
    for _ in range(4):
        table.add_column(ratio=1)
    ettr = f"{summary.ettr_frac:.0%}" if summary.ettr_frac is not None else "-"
    cells = [
        ("status", str(state.status)),
        ("step", f"{state.step} / {total_steps}"),
        ("attempt", str(state.num_attempts)),
        ("ettr", ettr),
        ("loss", _figure(last and last.loss, ".4f")),
        ("lr", f"{_figure(last and last.lr, '.3g')}{_multiplier(state)}"),
        ("loss scale", _figure(last and last.loss_scale, "g")),
        ("grad norm", _figure(last and last.grad_norm, ".3g")),
        ("tokens/s", _figure(last and last.tokens_per_s, ",.0f")),
        ("step time", span_text(last.step_s if last else None)),
        ("checkpoints", str(sum(1 for c in state.checkpoints.values() if not c.abandoned))),
        ("nodes", _nodes(state)),
        *_validation_cells(state),
    ]
    for row in range(0, len(cells), 4):
        table.add_row(*(_cell(name, value) for name, value in cells[row : row + 4]))
    chart = Text.assemble(("loss ", "dim"), spark([s.loss for s in state.samples]))
    return Group(table, chart)


def _validation_cells(state: RunState) -> list[tuple[str, str]]:
    measured = state.validation
    if measured is None:
        return []
    return [("val ppl", f"{measured.perplexity:.4g} at {measured.step}")]


def _cell(name: str, value: str) -> Text:
    return Text.assemble((f"{name} ", "dim"), (value, "bold"))


def _figure(value: float | StepSample | None, form: str) -> str:
    return "-" if value is None or isinstance(value, StepSample) else format(value, form)


def lr_multiplier(state: RunState) -> float:
    """Return what the schedule is multiplied by at the next step, all changes together."""
    return state.hyper.factor_at(state.step + 1)


def _multiplier(state: RunState) -> str:
    factor = lr_multiplier(state)
    return "" if factor == 1.0 else f" (x{factor:.3g})"


def _nodes(state: RunState) -> str:
    placed = state.attempt.plan.nodes if state.attempt is not None else ()
    usable = [n for n in state.nodes.values() if n.is_usable]
    spares = sum(1 for n in usable if n.node not in placed)
    out = sum(1 for n in state.nodes.values() if n.quarantined)
    text = f"{len(usable) - spares} + {spares} spare"
    return f"{text}, {out} out" if out else text


def spark(values: list[float], width: int = SPARK_WIDTH) -> str:
    """Return values as one line of characters, darker for higher; values not finite are '!'."""
    shown = values[-width * max(1, len(values) // width) :: max(1, len(values) // width)][-width:]
    finite = [v for v in shown if math.isfinite(v)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(SPARK) - 1) / (high - low) if high > low else 0.0
    return (
        "".join(SPARK[round((v - low) * scale)] if math.isfinite(v) else "!" for v in shown)
        + f"  {low:.3f}..{high:.3f}"
    )


def doing_text(state: RunState) -> str:
    """Return what the controller is doing and why, in one sentence."""
    status = state.status
    attempt = state.attempt
    if status is Status.PAUSED:
        return f"paused ({state.paused}): {state.pause_reason}"
    if status.is_terminal:
        return f"the run is {status} at step {state.step}"
    preflight = state.preflight
    if attempt is None and preflight is not None:
        num_nodes = len(preflight.plan.nodes)
        return f"trying {num_nodes} nodes out before they train (preflight {preflight.plan.number})"
    if attempt is None:
        ready = sum(1 for n in state.nodes.values() if n.is_usable)
        return f"waiting for nodes: {ready}{_wanted(state)} ready"
    where = f"attempt {attempt.number} on {_places(attempt.plan.nodes)}"
    if attempt.signal_s is not None:
        return f"{where}: trouble seen, looking for the cause"
    if attempt.first_step_s is None:
        source = attempt.plan.checkpoints[0] if attempt.plan.checkpoints else "the beginning"
        return f"starting {where} from {source}"
    measuring = state.validating
    if measuring is not None and measuring.attempt == attempt.number:
        rounds = f"{measuring.done} of {measuring.total} rounds"
        return f"measuring step {measuring.step} on held-out text ({rounds}), {where}"
    watched = [state.incidents[name] for name in state.open_incidents]
    if watched:
        return f"training, {where}; watching {watched[-1].draft.id} ({watched[-1].draft.fault})"
    return f"training, {where}"


def _wanted(state: RunState) -> str:
    """Return of how many nodes, where the spec of the run says."""
    per_node = (state.spec.get("nodes") or {}).get("ranks_per_node")
    ranks = num_ranks(state)
    return (
        f" of {-(-ranks // per_node)}" if ranks and isinstance(per_node, int) and per_node else ""
    )


def _places(nodes: Sequence[str]) -> str:
    # The names of 124 nodes would hide what is done on them.
    return ", ".join(nodes) if len(nodes) <= NAMED_NODES else f"{len(nodes)} nodes"


def why_text(state: RunState) -> str:
    """Return why the run is over, or else what was decided last about trouble that goes on.

    Returns: "" for a run without an open incident, and for a paused one: doing_text tells why.
    """
    if state.end is not None:
        return state.end_reason
    if state.paused:
        return ""
    going_on = (state.incidents[name] for name in reversed(state.open_incidents))
    made = (decision for each in going_on for decision in reversed(each.decisions))
    latest = next((d for d in made if not isinstance(d.action, CloseIncident)), None)
    return f"{latest.reason} [{latest.id}]" if latest is not None else ""


def _doing(state: RunState) -> RenderableType:
    rows = [Text.assemble(("now  ", "dim"), doing_text(state))]
    if why := why_text(state):
        rows.append(Text.assemble(("why  ", "dim"), why))
    return Group(*rows)


def _incidents(state: RunState) -> RenderableType:
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for name in ("incident", "fault", "step", "what", "recovered", "lost"):
        table.add_column(name, no_wrap=name != "what")
    for incident in list(state.incidents.values())[-8:]:
        table.add_row(*_incident_row(incident))
    return table


def _incident_row(incident: Incident) -> tuple[str, ...]:
    draft = incident.draft
    recovered = incident.recovered_s
    took = span_text(recovered - draft.seen_s) if recovered is not None else "..."
    if not incident.is_open and recovered is None:
        took = "-"
    lost = str(incident.steps_lost) if recovered is not None else ""
    return draft.id, draft.fault, str(draft.step), draft.title, took, lost


def _validation_rows(summary: RunSummary) -> list[tuple[str, str]]:
    perplexity, loss = summary.validation_perplexity, summary.validation_loss
    if perplexity is None or loss is None:
        return []
    figure = f"{perplexity:.4g} (loss {loss:.4f}) at step {summary.validation_step}"
    return [("held-out perplexity", figure)]


def render_summary(summary: RunSummary, extra: list[tuple[str, str]]) -> RenderableType:
    """Return the closing summary; extra rows come from whoever ran it."""
    table = Table.grid(padding=(0, 3))
    table.add_column(style="dim")
    table.add_column()
    ettr = f"{summary.ettr_frac:.1%}" if summary.ettr_frac is not None else "-"
    rows = [
        ("run", f"{summary.run}: {summary.status} at step {summary.step}"),
        ("loss", _figure(summary.loss, ".4f")),
        *_validation_rows(summary),
        *extra,
        ("wall time", span_text(summary.wall_s)),
        ("ETTR", f"{ettr} (productive {span_text(summary.productive_s)})"),
        ("attempts", str(summary.attempts)),
        ("steps", f"{summary.steps_trained} trained, {summary.steps_lost} of them again"),
        ("MTTD / MTTR", f"{span_text(summary.mttd_s)} / {span_text(summary.mttr_s)}"),
    ]
    energy = summary.energy
    if energy.measured_j is not None or energy.declared_j is not None:
        measured, declared = energy_text(energy.measured_j), energy_text(energy.declared_j)
        rows.append(("energy", f"{measured} measured, {declared} by declared power"))
    for name, value in rows:
        table.add_row(name, value)
    if not summary.incidents:
        return table
    incidents = Table(header_style="dim", padding=(0, 1), show_edge=False)
    for name in ("incident", "fault", "step", "detected in", "recovered in", "steps lost"):
        incidents.add_column(name, no_wrap=True)
    for row in summary.incidents:
        incidents.add_row(
            row.id,
            row.fault,
            str(row.step),
            span_text(row.detect_s),
            span_text(row.recover_s),
            str(row.steps_lost),
        )
    return Group(table, Text(""), incidents)
