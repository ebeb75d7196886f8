"""The head of the screen as words: what the run does and why, how it stands, when it ends. Pure."""

from __future__ import annotations

import msgspec

from ..clock import span_text
from ..hearing import patience_s, silence_text
from ..live_view import doing_text, lr_multiplier, why_text
from ..state import RunState
from ..summary import RunSummary, summarize
from .book import Book

COARSE_S = 60.0
"""How often the figures of a run change of which nothing new is heard."""


class Figure(msgspec.Struct, frozen=True):
    """One named figure."""

    name: str
    value: str


class Head(msgspec.Struct, frozen=True):
    """What the head of the screen says.

    tone: "good", "watch", "bad" or "", for who can show colours; the words say the same.
    """

    run: str
    status: str
    tone: str
    heard: str
    now: str
    why: str
    figures: tuple[Figure, ...]


def head_of(book: Book, now_s: float) -> Head:
    """Return what the head says at now_s."""
    state = book.state
    if not book.is_whole:
        now = f"reading the journal: {book.read_frac:.0%}; the figures are of its end"
        status, tone, why = "reading", "watch", ""
    else:
        now, why = doing_text(state), why_text(state)
        status, tone = str(state.status), _tone(state)
    # How long its steps are, and so how long it may be quiet, is known once all has been read.
    heard = silence_text(state, now_s, book.alive_s) if book.is_whole else ""
    if book.trouble:
        now, tone = f"cannot read the journal: {book.trouble}", "bad"
    return Head(
        run=state.run or "(nothing submitted yet)",
        status=status,
        tone=tone,
        heard=heard,
        now=now,
        why=why,
        figures=_figures(book, now_s),
    )


def time_to_finish_s(state: RunState, summary: RunSummary, total_steps: int) -> float | None:
    """Return how long the remaining steps take at the pace of this run, trouble included.

    Returns: None where it is not known, and for a run that has ended.
    """
    median_s, ettr = state.step_median.value, summary.ettr_frac
    if state.status.is_terminal or not total_steps or median_s is None or not ettr:
        return None
    return max(total_steps - state.step, 0) * median_s / min(ettr, 1.0)


def _tone(state: RunState) -> str:
    return {
        "training": "watch" if state.open_incidents else "good",
        "completed": "good",
        "recovering": "watch",
        "paused": "bad",
    }.get(str(state.status), "")


def _figured_at_s(state: RunState, now_s: float) -> float:
    """Return the time of which the figures are: now, but that between events the clock stands.

    A clock that ticked would repaint the screen for nothing.
    """
    if state.is_at_rest or not state.time_s:
        return now_s
    if now_s - state.time_s < patience_s(state):
        return state.time_s
    return max(now_s // COARSE_S * COARSE_S, state.time_s)


def _measured(state: RunState) -> tuple[Figure, ...]:
    measured = state.validation
    return () if measured is None else (Figure("ppl", f"{measured.perplexity:.4g}"),)


def _figures(book: Book, now_s: float) -> tuple[Figure, ...]:
    state, last = book.state, book.state.last
    total = book.total_steps
    if last is None:
        return (Figure("step", f"{state.step}/{total}" if total else str(state.step)),)
    summary = summarize(state, _figured_at_s(state, now_s)) if book.is_whole else None
    factor = lr_multiplier(state)
    scale = "-" if last.loss_scale is None else f"{last.loss_scale:g}"
    left_s = time_to_finish_s(state, summary, total) if summary is not None else None
    done = f"{state.step}/{total} ({state.step / total:.1%})" if total else str(state.step)
    ettr = summary.ettr_frac if summary is not None else None
    return (
        Figure("step", done),
        Figure("loss", f"{last.loss:.4f}"),
        Figure("lr", f"{last.lr:.3g} x{factor:.3g}"),
        Figure("scale", scale),
        *_measured(state),
        Figure("ettr", "-" if ettr is None else f"{ettr:.1%}"),
        Figure("left", span_text(left_s)),
        Figure("grad", f"{last.grad_norm:.3g}"),
        Figure("act", f"{last.activation_norm:.4g}"),
        Figure("step time", span_text(last.step_s)),
        Figure("tokens/s", f"{last.tokens_per_s:,.0f}"),
        Figure("attempt", str(state.num_attempts)),
        Figure("lost", str(summary.steps_lost) if summary is not None else "-"),
    )
