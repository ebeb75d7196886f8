"""The curves of the run beside each other, all over the same steps."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container
from textual.events import Resize
from textual.widgets import Static

from ..render_text import text_of
from .book import Book, Sieve
from .chart import PERPLEXITY, TOPICS, Chart
from .pane import Pane
from .span import Span

WIDE, TALL = 100, 20
LATEST = 30
QUIET_KINDS = frozenset({"action-done", "workers-started", "node-joined"})
"""Kinds that say little to who only glances at the latest events."""


class ChartsPane(Pane):
    """A chart for each figure that the run has, and where there is room the latest events."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("plus,equals_sign", "zoom(True)", "Zoom in"),
        ("minus", "zoom(False)", "Zoom out"),
        ("left", "pan(False)", "Earlier"),
        ("right", "pan(True)", "Later"),
        ("0", "whole", "All steps"),
        ("f,end", "follow", "Follow"),
        ("left_square_bracket", "incident(-1)", "Incident before"),
        ("right_square_bracket", "incident(1)", "Incident after"),
        ("up", "app.focus_previous", ""),
        ("down", "app.focus_next", ""),
    ]
    DEFAULT_CSS = """
    ChartsPane { layout: vertical; }
    ChartsPane > #charts-grid {
        layout: grid; grid-size: 1; grid-gutter: 0 2; height: 1fr; padding: 0 1;
    }
    ChartsPane > #charts-grid > #latest { height: 1fr; }
    ChartsPane > #charts-foot { height: 1; padding: 0 1; }
    """

    def __init__(self, book: Book) -> None:
        super().__init__(book, id="charts")
        self.span = Span()
        self._alone = ""
        self._is_measured = False

    def compose(self) -> ComposeResult:
        with Container(id="charts-grid"):
            for topic in TOPICS:
                chart = Chart(topic, self.book)
                chart.display = topic.column != PERPLEXITY
                yield chart
            yield Static(id="latest")
        yield Static(id="charts-foot")

    def take_focus(self) -> None:
        self.query(Chart).first().focus()

    def on_resize(self, event: Resize) -> None:
        self._arrange()

    def on_chart_chosen(self, message: Chart.Chosen) -> None:
        name = message.chart.topic.column
        self._alone = "" if self._alone == name else name
        self._arrange()
        message.chart.focus()

    def update_view(self) -> None:
        if self._is_measured != bool(self.book.measurements):
            self._is_measured = not self._is_measured
            self._arrange()
        for chart in self.query(Chart):
            chart.show(self.span)
        self._show_foot()
        self._show_latest()

    def _arrange(self) -> None:
        """Two columns where there is room, one chart alone where somebody wants to see it."""
        is_roomy = self.size.width >= WIDE and self.size.height >= TALL and not self._alone
        self.query_one("#charts-grid").styles.grid_size_columns = 2 if is_roomy else 1
        for chart in self.query(Chart):
            name = chart.topic.column
            has_values = name != PERPLEXITY or self._is_measured
            chart.display = has_values and self._alone in ("", name)
        latest = self.query_one("#latest")
        latest.display = is_roomy
        # It fills what an even number of charts leaves: a row of its own.
        latest.styles.column_span = 2 if is_roomy and self._is_measured else 1
        # How many events there is room for is known once the grid is laid out anew.
        self.call_after_refresh(self._show_latest)

    def _show_foot(self) -> None:
        series = self.book.series
        first, last = self.span.bounds(series.first_step, series.last_step)
        how = "all steps" if self.span.steps is None else f"{last - first + 1} steps"
        held = "" if self.span.end is None else ", held"
        marks = len(self.book.state.incidents)
        text = f"steps {first} .. {last} ({how}{held})   ┊ incidents: {marks}"
        self.query_one("#charts-foot", Static).update(Text(text, style="dim", no_wrap=True))

    def _show_latest(self) -> None:
        latest = self.query_one("#latest", Static)
        if not latest.display:
            return
        found = self.book.latest(Sieve(), LATEST)
        records = [record for record in found if record.kind not in QUIET_KINDS]
        lines = [Text("latest", style="bold")]
        for record in records[-max(latest.size.height - 1, 1) :]:
            lines.append(Text.assemble((f"{record.kind} ", "dim"), text_of(record)))
        for line in lines:
            line.truncate(max(latest.size.width, 20), overflow="ellipsis")
        latest.update(Text("\n").join(lines))

    # --- actions ---------------------------------------------------------------------------------

    def _move_to(self, span: Span) -> None:
        if span != self.span:
            self.span = span
            self.show(force=True)

    def action_zoom(self, closer: bool) -> None:
        series = self.book.series
        self._move_to(self.span.zoomed(closer, series.first_step, series.last_step))

    def action_pan(self, later: bool) -> None:
        series = self.book.series
        self._move_to(self.span.panned(later, series.first_step, series.last_step))

    def action_whole(self) -> None:
        self._move_to(Span())

    def action_follow(self) -> None:
        self._move_to(Span(self.span.steps))

    def action_incident(self, direction: int) -> None:
        """Centre the next incident before or after the middle of what is shown."""
        series = self.book.series
        first, last = series.first_step, series.last_step
        begin, end = self.span.bounds(first, last)
        # The newest one is where somebody who sees everything wants to go first.
        middle = (begin + end) // 2 if self.span.steps is not None else last + 1
        onsets = sorted({i.draft.onset_step for i in self.book.state.incidents.values()})
        beside = [s for s in onsets if (s - middle) * direction > 0]
        if beside:
            step = beside[0] if direction > 0 else beside[-1]
            self._move_to(self.span.centred(step, first, last))
