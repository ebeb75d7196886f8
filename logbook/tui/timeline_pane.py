"""The timeline: what happened, filtered by words, with or without the records of every step."""

from __future__ import annotations

from typing import ClassVar

from msgspec.structs import replace
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.widgets import Input, Static

from .book import Book, Sieve, Sifted
from .pane import Pane
from .timeline_list import TimelineList


class TimelinePane(Pane):
    """The list of records, a line that says what it shows, and the filter."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("slash", "filter", "Filter"),
        ("a", "dense", "Every step"),
        ("escape", "clear", "No filter"),
    ]
    DEFAULT_CSS = """
    TimelinePane { layout: vertical; }
    TimelinePane > #timeline-foot { height: 1; padding: 0 1; }
    TimelinePane > #filter, TimelinePane > #filter:focus { height: 1; border: none; padding: 0 1; }
    TimelinePane > #filter { display: none; }
    TimelinePane > #filter.-open { display: block; }
    """

    def __init__(self, book: Book) -> None:
        super().__init__(book, id="timeline")
        self.sieve = Sieve()
        self._sifted = Sifted(book, self.sieve)

    def compose(self) -> ComposeResult:
        yield TimelineList()
        hint = "words that a line must hold; enter: filter"
        with Input(placeholder=hint, id="filter") as field:
            field.cursor_blink = False
        yield Static(id="timeline-foot")

    def take_focus(self) -> None:
        self.query_one(TimelineList).focus()

    def update_view(self) -> None:
        self.query_one(TimelineList).show(self._sifted.rows())

    def on_timeline_list_moved(self) -> None:
        rows = self.query_one(TimelineList)
        how = "following" if rows.is_following else "held"
        dense = "every step" if self.sieve.with_dense else "without steps"
        words = f", with {' '.join(self.sieve.words)!r}" if self.sieve.words else ""
        reading = "" if self.book.read_frac >= 1.0 else f", history {self.book.read_frac:.0%} read"
        text = f"{min(rows.cursor + 1, len(rows.rows))} of {len(rows.rows)} events, {dense}{words}"
        foot = Text(f"{text}, {how}{reading}", style="dim", no_wrap=True)
        self.query_one("#timeline-foot", Static).update(foot)

    def on_input_submitted(self, message: Input.Submitted) -> None:
        message.stop()
        self._sift(replace(self.sieve, words=tuple(message.value.lower().split())))
        self._close_filter()

    # --- actions ---------------------------------------------------------------------------------

    def action_filter(self) -> None:
        field = self.query_one("#filter", Input)
        field.add_class("-open")
        field.value = " ".join(self.sieve.words)
        field.focus()

    def action_dense(self) -> None:
        self._sift(replace(self.sieve, with_dense=not self.sieve.with_dense))

    def action_clear(self) -> None:
        """Leave the filter's field as it was, or else drop the filter."""
        if self.query_one("#filter", Input).has_class("-open"):
            self._close_filter()
        else:
            self._sift(replace(self.sieve, words=()))

    def _sift(self, sieve: Sieve) -> None:
        self.sieve = sieve
        self._sifted = Sifted(self.book, sieve)
        self.show(force=True)

    def _close_filter(self) -> None:
        self.query_one("#filter", Input).remove_class("-open")
        self.take_focus()
