"""The report of a run: what it cost, what went wrong, what was done, and what was trained.

A pure function of the chronicle of a journal; logbook/document.py turns it into HTML or Markdown.
"""

from __future__ import annotations

import math

from .chronicle import Chronicle, Curves
from .clock import clock_text, span_text
from .costs import HOUR_S, Bill, bill_of, measured_bill, money_text, tariff_of
from .document import Block, Figure, Heading, Table, Text
from .failures import FaultRow, failures_by_fault
from .hearing import silent_s
from .ledger import CAUSES, Cause, Stretch
from .plots import plot_ledger, plot_loss, plot_lr, plot_time_line
from .report_tables import attempts, checkpoints, incidents, interventions, nodes, remarks
from .state import RunState
from .summary import RunSummary, summarize

MEANINGS = {
    Cause.PRODUCTIVE: "steps that stand in the final lineage",
    Cause.RECOMPUTE: "steps that a restart went back past",
    Cause.DETECT: "from the last completed step to the first sign of trouble",
    Cause.DIAGNOSE: "from the first sign to the decision that answers it",
    Cause.PROVISION: "waiting for nodes; from a start to workers that are ready to load",
    Cause.LOAD: "loading the state",
    Cause.CHECKPOINT: "the loop standing still for a save or a copy to memory",
    Cause.VALIDATION: "training standing still for a measurement on held-out text",
    Cause.IDLE: "paused or ending; spares and GPUs without a rank",
    Cause.UNHEARD: "not known yet: nothing was heard of the run",
}


def render_report(
    chronicle: Chronicle, now_s: float, alive_s: float = 0.0
) -> tuple[str, list[Block]]:
    """Return (title, blocks) of the report of a run as of now_s (its end, once it has ended).

    alive_s: the last pulse of its controller, as in hearing.py.
    """
    state = chronicle.state
    end_s = state.ended_s if state.ended_s is not None else now_s
    summary = summarize(state, now_s)
    stretches = list(chronicle.ledger.stretches(end_s, alive_s))
    totals = chronicle.ledger.totals(end_s, alive_s)
    heard_s = max(state.time_s, alive_s) if silent_s(state, now_s, alive_s) else None
    blocks: list[Block] = [
        Text(_opening(chronicle, summary, end_s, heard_s)),
        _figures(summary, totals),
        *_account(totals),
        *_training(chronicle),
        *_attempts(chronicle, stretches, end_s, heard_s),
        *_failures(state, summary),
        *interventions(state),
        *checkpoints(chronicle),
        *nodes(state),
        *_energy(chronicle, totals),
        *remarks(state),
    ]
    return f"Run {state.run}", blocks


def _opening(chronicle: Chronicle, summary: RunSummary, end_s: float, heard_s: float | None) -> str:
    state = chronicle.state
    if not state.submitted_s:
        return "The journal is empty: nothing was submitted."
    span = span_text(summary.wall_s)
    until = f"to {clock_text(end_s)[:19]}" if state.ended_s is not None else "and is not over"
    if heard_s is not None:
        ago = span_text(end_s - heard_s)
        until += f"; it was last heard of at {clock_text(heard_s)[:19]}, {ago} ago"
    went = f"It ran {span} from {clock_text(state.submitted_s)[:19]} UTC {until}."
    ettr = f" ETTR {summary.ettr_frac:.1%}." if summary.ettr_frac is not None else ""
    loss = f" at a loss of {summary.loss:.4f} nats/token" if summary.loss is not None else ""
    return (
        f"The run is {summary.status} at step {summary.step:,}{loss}. {went}{ettr} "
        f"{summary.attempts} attempts, {len(state.incidents)} incidents."
    )


def _figures(summary: RunSummary, totals: dict[Cause, float]) -> Table:
    whole = sum(totals.values())
    productive = totals[Cause.PRODUCTIVE] / whole if whole else None
    rows = [
        ("ETTR", _share(summary.ettr_frac), "surviving steps at their median time, over wall time"),
        ("productive GPU time", _share(productive), "as measured, spares included"),
        ("GPU-hours", _hours(whole), "all GPUs the spec asks for, from submission to the end"),
        ("steps trained", f"{summary.steps_trained:,}", "all attempts together"),
        ("steps trained again", f"{summary.steps_lost:,}", "lost to restarts"),
        (
            "MTTD",
            span_text(summary.mttd_s),
            "from the strike, or from the onset, to the first sign",
        ),
        ("MTTR", span_text(summary.mttr_s), "from the first sign to the first new step"),
        ("MTBF", span_text(summary.mtbf_s), "wall time over incidents that led to a restart"),
    ]
    return Table(("figure", "value", "what it is"), rows, (1,))


def _account(totals: dict[Cause, float]) -> list[Block]:
    whole = sum(totals.values())
    rows = [
        (cause.value, _hours(totals[cause]), _share(totals[cause] / whole if whole else None),
         MEANINGS[cause])
        for cause in CAUSES
    ]  # fmt: skip
    rows.append(("all", _hours(whole), _share(1.0 if whole else None), "wall time times GPUs"))
    return [
        Heading("Where the GPU time went"),
        Figure("ledger", "GPU time by cause", plot_ledger(totals)),
        Table(("cause", "GPU-hours", "share", "what it is"), rows, (1, 2)),
    ]


def _training(chronicle: Chronicle) -> list[Block]:
    curves, left = chronicle.curves, chronicle.left
    if not len(curves):
        return [Heading("Training"), Text("No step was completed.")]
    at = [incident.draft.step for incident in chronicle.state.incidents.values()]
    measured = chronicle.validation
    validation = [float(e.step) for e in measured], [e.perplexity for e in measured]
    lr = plot_lr((curves.steps, curves.lr), [(c.steps, c.lr) for c in left])
    loss = plot_loss((curves.steps, curves.loss), [(c.steps, c.loss) for c in left], validation, at)
    return [
        Heading("Learning rate"),
        Figure("lr", "The learning rate each step ran at", lr),
        Text(
            "As each step really ran, not as it was planned. Grey was gone back past; it may leave "
            "the picture.",
            True,
        ),
        Heading("Loss"),
        Figure("loss", "Training loss over steps", loss),
        Text(_loss_text(curves) + _validation_text(chronicle), True),
    ]


def _loss_text(curves: Curves) -> str:
    finite = [(loss, step) for loss, step in zip(curves.loss, curves.steps, strict=True)
              if math.isfinite(loss)]  # fmt: skip
    if not finite:
        return "No loss was finite."
    lowest, at = min(finite)
    return f"Lowest {lowest:.4f} at step {at:,}. Dashed: incidents. Crosses: not finite."


def _validation_text(chronicle: Chronicle) -> str:
    measured = [(e.perplexity, e.step) for e in chronicle.validation]
    finite = [point for point in measured if math.isfinite(point[0])]
    if not finite:
        return ""
    (best, at), (last, last_at) = min(finite), finite[-1]
    return (
        f" Perplexity on held-out text: lowest {best:.4g} at step {at:,}, last {last:.4g} at step "
        f"{last_at:,}; measured at {len(measured):,} steps."
    )


def _attempts(
    chronicle: Chronicle, stretches: list[Stretch], end_s: float, heard_s: float | None
) -> list[Block]:
    if not stretches:
        return []
    line = plot_time_line(stretches, stretches[0].start_s)
    return [
        Heading("Attempts"),
        Figure("attempts", "Attempts on a time line, by cause", line),
        *attempts(chronicle, end_s, heard_s),
    ]


def _failures(state: RunState, summary: RunSummary) -> list[Block]:
    rows = failures_by_fault(state, summary)
    if not rows:
        return [Heading("Failures"), Text("Nothing went wrong.")]
    return [
        Heading("Failures by cause"),
        Table(
            ("fault", "incidents", "MTTD", "MTTR", "MTBF", "steps lost", "GPU-hours"),
            [_failure_row(row) for row in rows],
            (1, 2, 3, 4, 5, 6),
        ),
        Text(
            "MTTD: to the first sign, from the strike where a fault was planned, otherwise from "
            "where a divergence began or from the last completed step. MTTR: from the first sign "
            "to the first new step. MTBF: wall time over incidents. GPU-hours: standstill, and "
            "steps trained again; incidents that one restart answered share them equally.",
            True,
        ),
        *incidents(summary),
    ]


def _failure_row(row: FaultRow) -> tuple[str, ...]:
    return (
        row.fault,
        str(row.count),
        span_text(row.mttd_s),
        span_text(row.mttr_s),
        span_text(row.mtbf_s),
        f"{row.steps_lost:,}",
        _hours(row.gpu_s),
    )


def _energy(chronicle: Chronicle, totals: dict[Cause, float]) -> list[Block]:
    tariff = tariff_of(chronicle.state.spec)
    idle_s = totals[Cause.IDLE]
    whole_s = sum(totals.values())
    bills = [
        ("declared, all GPUs", bill_of(whole_s - idle_s, idle_s, tariff)),
        ("declared, productive alone", bill_of(totals[Cause.PRODUCTIVE], 0.0, tariff)),
    ]
    measured = measured_bill(chronicle.state, whole_s, tariff)
    if measured is not None:
        bills.insert(0, ("measured by the GPUs", measured))
    known = [entry for entry in bills if entry[1].energy_kwh is not None]
    blocks: list[Block] = [Heading("Energy and carbon")]
    if known or tariff.price_per_gpu_hour is not None:
        shown = known or bills[-2:]
        heads = ("basis", "GPU-hours", "energy (kWh)", "CO2e (kg)", f"money ({tariff.currency})")
        rows = [(basis, *_bill_cells(bill)) for basis, bill in shown]
        blocks.append(Table(heads, rows, (1, 2, 3, 4)))
    else:
        blocks.append(Text("Not known: no GPU measured it, and nodes.gpu_watts is not declared."))
    grid = tariff.grid_g_per_kwh
    intensity = f"{grid:g} g/kWh" if grid is not None else "not declared"
    blocks.append(
        Text(
            f"kWh = GPU-hours x kW x PUE: {tariff.gpu_watts:g} W a GPU at work, "
            f"{tariff.idle_watts:g} W idle, PUE {tariff.pue:g}. CO2e = kWh x intensity of the grid "
            f"({intensity}) + {tariff.embodied_g_per_gpu_hour:g} g embodied per GPU-hour. GPUs "
            "alone: what hosts and network draw is not in it.",
            True,
        )
    )
    return blocks


def _bill_cells(bill: Bill) -> tuple[str, ...]:
    return (
        f"{bill.gpu_hours:,.4g}",
        *(
            f"{value:,.4g}" if value is not None else "-"
            for value in (bill.energy_kwh, bill.co2e_kg)
        ),
        money_text(bill.price) if bill.price is not None else "-",
    )


def _hours(gpu_s: float) -> str:
    return f"{gpu_s / HOUR_S:,.4g}"


def _share(part: float | None) -> str:
    return "-" if part is None else f"{part:.1%}"
