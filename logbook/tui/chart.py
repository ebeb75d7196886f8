"""One curve over the steps of the run."""

from __future__ import annotations

from typing import ClassVar

import msgspec
from rich.text import Text
from textual.binding import BindingType
from textual.message import Message
from textual.widget import Widget

from ..y_range import cut_text
from .book import Book
from .colours import GREEN, GREY, RED, YELLOW
from .plot import Cell, Drawing, Frame, Scale, draw
from .series import Point
from .span import Span

POINTS_PER_CELL = 8
STYLES = {
    "curve": GREEN,
    "left": GREY,
    "cut": f"bold {YELLOW}",
    "mark": RED,
    "bad": f"bold {RED}",
    "": "",
}


class ChartTopic(msgspec.Struct, frozen=True):
    """What a chart shows. column: of series.COLUMNS or PERPLEXITY; form: how a value is written."""

    column: str
    title: str
    form: str
    scale: Scale = Scale.LINEAR


PERPLEXITY = "perplexity"
"""Not of every step: what was measured on held-out text, in runs that do."""
TOPICS = (
    ChartTopic("loss", "loss", ".4f"),
    ChartTopic(PERPLEXITY, "held-out perplexity", ".4g", Scale.AUTO),
    ChartTopic("grad_norm", "grad norm", ".3g", Scale.AUTO),
    ChartTopic("activation_norm", "activation norm", ".4g"),
    ChartTopic("loss_scale", "loss scale", "g", Scale.LOG),
    ChartTopic("lr", "learning rate", ".3g"),
)


class Chart(Widget, can_focus=True):
    """A title with value and range, and the curve below it."""

    DEFAULT_CSS = """
    Chart { height: 1fr; min-height: 2; }
    """

    class Chosen(Message):
        """This chart wants the whole view, or gives it back."""

        def __init__(self, chart: Chart) -> None:
            super().__init__()
            self.chart = chart

    BINDINGS: ClassVar[list[BindingType]] = [("enter", "choose", "One or all")]

    def __init__(self, topic: ChartTopic, book: Book) -> None:
        super().__init__(id=f"chart-{topic.column.replace('_', '-')}")
        self.topic = topic
        self._book = book
        self.span = Span()

    def show(self, span: Span) -> None:
        self.span = span
        self.refresh()

    def render(self) -> Text:
        width, height = self.size
        if width < 2 or height < 1:
            return Text("")
        series = self._book.series
        first, last = self.span.bounds(series.first_step, series.last_step)
        points = self._points(first, last, POINTS_PER_CELL * width)
        marks = tuple(i.draft.onset_step for i in self._book.state.incidents.values())
        frame = Frame(first, last, width, max(height - 1, 1), marks, self.topic.scale)
        drawing = draw(points, frame)
        rows = [self._title(drawing, width), *(_row(row) for row in drawing.rows[: height - 1])]
        return Text("\n").join(rows)

    def _points(self, first: int, last: int, most: int) -> list[Point]:
        book, column = self._book, self.topic.column
        if column == PERPLEXITY:
            return book.measurements.points(first, last, book.state.lineage)
        return book.series.points(column, first, last, most)

    def _value(self) -> float | None:
        state = self._book.state
        source = state.validation if self.topic.column == PERPLEXITY else state.last
        value: float | None = getattr(source, self.topic.column, None)
        return value

    def action_choose(self) -> None:
        self.post_message(self.Chosen(self))

    def _title(self, drawing: Drawing, width: int) -> Text:
        form, value = self.topic.form, self._value()
        shown = "-" if value is None else format(value, form)
        style = "bold reverse" if self.has_focus else "bold"
        title = Text.assemble((self.topic.title, style), f" {shown}")
        if (edges := drawing.shown) is not None:
            scale = " log" if drawing.is_log else ""
            text = f"  [{edges.low:{form}} .. {edges.high:{form}}]{scale}{cut_text(edges, form)}"
            title.append(text, "dim")
        title.truncate(width, overflow="ellipsis")
        return title


def _row(cells: tuple[Cell, ...]) -> Text:
    """Join cells of one kind: a span for each character would cost more than the curve."""
    text = Text(no_wrap=True)
    start = 0
    for index in range(1, len(cells) + 1):
        if index == len(cells) or cells[index].kind != cells[start].kind:
            run = "".join(cell.char for cell in cells[start:index])
            text.append(run, STYLES[cells[start].kind])
            start = index
    return text
