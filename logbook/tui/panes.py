"""The views by name. Each is imported when it is first wanted: the first screen waits for none."""

from __future__ import annotations

from importlib import import_module

from .book import Book
from .pane import Pane

_CLASSES = {
    "charts": "ChartsPane",
    "fleet": "FleetPane",
    "timeline": "TimelinePane",
    "incidents": "IncidentsPane",
    "checkpoints": "CheckpointsPane",
}


def make_pane(view: str, book: Book) -> Pane:
    """Return a new view of that name on a book."""
    module = import_module(f"{__package__}.{view}_pane")
    pane = getattr(module, _CLASSES[view])(book)
    assert isinstance(pane, Pane)
    return pane
