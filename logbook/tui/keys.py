"""All keys of the screen as a text, made from the very tables that bind them."""

from __future__ import annotations

from rich.text import Text
from textual.binding import BindingType

from ..interventions import FORMS
from .charts_pane import ChartsPane
from .timeline_list import TimelineList
from .timeline_pane import TimelinePane


def keys_text() -> Text:
    """Return every key of the screen, view by view."""
    sections = (
        ("everywhere", (("1 .. 5", "views"), (":", "command palette"), ("q", "quit"))),
        ("charts", (*_pairs(ChartsPane.BINDINGS), ("enter", "one chart alone, or all"))),
        ("fleet", (("arrows, home, end", "choose a node"), ("n", "next node in trouble"))),
        ("timeline", _pairs(TimelinePane.BINDINGS) + _pairs(TimelineList.BINDINGS)),
        ("incidents", (("up, down", "choose"), ("enter", "scroll the note"))),
        ("checkpoints", (("up, down", "choose"),)),
        ("interventions", tuple((f.key, f.title) for f in FORMS)),
    )
    text = Text()
    for title, pairs in sections:
        text.append(f"{title}\n", "bold")
        for key, what in pairs:
            text.append(f"  {key:<20} {what}\n")
    return text


def _pairs(bindings: list[BindingType]) -> tuple[tuple[str, str], ...]:
    names = {
        "plus,equals_sign": "+",
        "minus": "-",
        "left_square_bracket": "[",
        "right_square_bracket": "]",
        "slash": "/",
    }
    found = (b for b in bindings if isinstance(b, tuple) and len(b) == 3 and b[2])
    return tuple((names.get(b[0], b[0]), b[2].lower()) for b in found)
