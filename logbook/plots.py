"""The pictures of notes and reports, drawn from the record."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .chapter import Chapter
from .ledger import CAUSES, Cause, Stretch
from .state import Incident
from .svg import (
    FAINT,
    GRID,
    INK,
    LEFT,
    RIGHT,
    WIDTH,
    Line,
    Mark,
    Panel,
    document,
    draw,
    log_if_wide,
    text,
    ticks,
)
from .svg import number as number_text
from .wire import StepSample

BLUE, GREY, RED, GREEN, AMBER, VIOLET = (
    "#0969da", "#9aa4ae", "#cf222e", "#1a7f37", "#9a6700", "#8250df",
)  # fmt: skip
COLOURS = {
    Cause.PRODUCTIVE: "#2da44e",
    Cause.RECOMPUTE: "#fb8f44",
    Cause.DETECT: "#cf222e",
    Cause.DIAGNOSE: "#8250df",
    Cause.PROVISION: "#54aeff",
    Cause.LOAD: "#0550ae",
    Cause.CHECKPOINT: "#d4a72c",
    Cause.VALIDATION: "#1b7c83",
    Cause.IDLE: "#d0d7de",
    Cause.UNHEARD: "#57606a",
}
ATTEMPTS_SHOWN = 120
WIDE_RATIO = 12.0

_Value = Callable[[StepSample], float | None]
_WIDE = 0.0
"""In place of a base: a log axis where the values are far apart."""
_SERIES: tuple[tuple[str, float, _Value], ...] = (
    ("loss (nats/token)", _WIDE, lambda s: s.loss),
    ("gradient norm, before clipping", 10.0, lambda s: s.grad_norm),
    ("activation norm", _WIDE, lambda s: s.activation_norm),
    ("loss scale", 2.0, lambda s: s.loss_scale),
    ("learning rate", _WIDE, lambda s: s.lr),
)


def plot_incident(incident: Incident, chapter: Chapter) -> str:
    """Return the SVG of the numbers around an incident; what came after a restart is blue.

    Steps that were gone back past stay in the picture, in grey, under those that replaced them.
    """
    draft = incident.draft
    after = incident.attempt_after
    numbers = list(dict.fromkeys(attempt for attempt, _ in chapter.samples))
    panels: list[Panel] = []
    for title, log_base, value in _SERIES:
        lines = []
        for number in numbers:
            is_new = after is None or number >= after
            found = [(s.step, value(s)) for a, s in chapter.samples if a == number]
            points = [(float(step), y) for step, y in found if y is not None]
            label = f"attempt {number}" if len(numbers) > 1 and not panels else ""
            xs, ys = [x for x, _ in points], [y for _, y in points]
            lines.append(Line(xs, ys, BLUE if is_new else GREY, label, 1.5))
        panels.append(Panel(title, lines, log_base or log_if_wide(lines, WIDE_RATIO), 92))
    marks = [Mark(float(step), AMBER, f"saved {step}", True) for step in chapter.saved_steps]
    if draft.is_numeric and draft.onset_step != draft.step:
        marks.append(Mark(float(draft.onset_step), VIOLET, f"onset {draft.onset_step}", True))
    marks.append(Mark(float(draft.step), RED, f"{draft.fault} {draft.step}"))
    marks += [
        Mark(float(step), GREEN, f"attempt {number} from {step}")
        for number, step in chapter.resumed
    ]
    marks.sort(key=lambda mark: mark.x)
    return draw(panels, f"{draft.id}: {draft.title}", "step", marks)


Curve = tuple[Sequence[float], Sequence[float]]


def plot_lr(used: Curve, left: Sequence[Curve]) -> str:
    """Return the learning rate that each step really ran at (OPT-175B, figure 1).

    left: stretches that a restart went back past.
    """
    lines = [Line(xs, ys, GREY, is_aside=True) for xs, ys in left]
    lines.append(Line(*used, BLUE, "as trained"))
    return draw([Panel("learning rate", lines, height=230)], "Learning rate used", "step")


def plot_loss(loss: Curve, left: Sequence[Curve], validation: Curve, at: Sequence[int]) -> str:
    """Return the loss, and validation perplexity where it was measured (OPT-175B, figure 2).

    at: steps of incidents.
    """
    lines = [Line(xs, ys, GREY, "" if index else "gone back past", is_aside=True)
             for index, (xs, ys) in enumerate(left)]  # fmt: skip
    lines.append(Line(*loss, BLUE, "as trained"))
    panels = [Panel("training loss (nats/token)", lines, height=230, is_cut=True)]
    title = "Training loss"
    if validation[0]:
        title = "Training loss and validation perplexity"
        measured = [Line(*validation, VIOLET)]
        # It begins at the size of the vocabulary, and what matters later is far below that.
        base = log_if_wide(measured, WIDE_RATIO)
        panels.append(Panel("validation perplexity", measured, base, 150))
    return draw(panels, title, "step", [Mark(float(step), RED, "", True) for step in at])


def plot_time_line(stretches: Sequence[Stretch], begin_s: float) -> str:
    """Return the attempts of a run on a time line, each coloured by what its time went to."""
    numbers = sorted({s.attempt for s in stretches})[-ATTEMPTS_SHOWN:]
    unit, unit_s = _unit(max((s.end_s for s in stretches), default=begin_s) - begin_s)
    end = max((s.end_s - begin_s for s in stretches), default=1.0) / unit_s or 1.0
    row, top = (18, 60) if len(numbers) <= 30 else (10, 60)
    bottom = top + row * max(len(numbers), 1)

    def x_of(time_s: float) -> float:
        return LEFT + (time_s - begin_s) / unit_s / end * (WIDTH - LEFT - RIGHT)

    parts = _key()
    for tick in ticks(0.0, end, most=8):
        x = LEFT + tick / end * (WIDTH - LEFT - RIGHT)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" stroke="{GRID}"/>')
        parts.append(text(x, bottom + 14, number_text(tick), FAINT, "middle", 10))
    for index, number in enumerate(numbers):
        y = top + row * index
        name = f"attempt {number}" if number else "before"
        if row > 10 or index % 5 == 0:
            parts.append(text(LEFT - 6, y + row - 5, name, FAINT, "end", 10))
        for stretch in stretches:
            if stretch.attempt == number:
                start = x_of(stretch.start_s)
                width = x_of(stretch.end_s) - start
                if stretch.cause is not Cause.CHECKPOINT:
                    # Short trouble must not vanish; hundreds of short saves must not fill the bar.
                    width = max(width, 0.6)
                parts.append(
                    f'<rect x="{start:.1f}" y="{y + 2}" width="{width:.2f}" height="{row - 4}" '
                    f'fill="{COLOURS[stretch.cause]}"/>'
                )
    label = f"{unit} since submission"
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, bottom + 28, label, FAINT, "middle"))
    return document("Attempts on a time line", bottom + 38, parts)


def plot_ledger(totals: dict[Cause, float]) -> str:
    """Return one bar: all GPU time of the run, divided by cause."""
    whole = sum(totals.values()) or 1.0
    parts, x = _key(), float(LEFT)
    for cause in CAUSES:
        width = totals[cause] / whole * (WIDTH - LEFT - RIGHT)
        parts.append(
            f'<rect x="{x:.1f}" y="52" width="{width:.1f}" height="30" fill="{COLOURS[cause]}"/>'
        )
        if width > 44:
            share = f"{totals[cause] / whole:.1%}"
            ink = INK if cause in (Cause.IDLE, Cause.CHECKPOINT) else "#ffffff"
            parts.append(text(x + width / 2, 71, share, ink, "middle", 11, "600"))
        x += width
    return document("GPU time by cause", 92, parts)


def _key() -> list[str]:
    parts, x = [], float(LEFT)
    for cause in CAUSES:
        parts.append(f'<rect x="{x:.0f}" y="30" width="10" height="10" fill="{COLOURS[cause]}"/>')
        parts.append(text(x + 14, 39, cause.value, FAINT, size=10))
        x += 30 + 6.0 * len(cause.value)
    return parts


def _unit(span_s: float) -> tuple[str, float]:
    """Return the unit in which a span is best told, and its seconds."""
    if span_s < 300:
        return "seconds", 1.0
    if span_s < 4 * 3600:
        return "minutes", 60.0
    return ("hours", 3600.0) if span_s < 96 * 3600 else ("days", 86400.0)
