"""Every GPU of the run as one character, or every node where there are too many GPUs."""

from __future__ import annotations

from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.binding import BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from .colours import CYAN, GREEN, GREY, MAGENTA, RED, YELLOW
from .fleet import Health, Layout, NodeHealth, layout_of

STYLES = {
    Health.TRAINING: Style.parse(GREEN),
    Health.SPARE: Style.parse(CYAN),
    Health.WATCHED: Style.parse(YELLOW),
    Health.DRAINING: Style.parse(f"bold {YELLOW}"),
    Health.FAILING: Style.parse(f"bold {RED}"),
    Health.QUARANTINED: Style.parse(f"bold {MAGENTA}"),
    Health.ABSENT: Style.parse(GREY),
}
_NAME, _CURSOR, _PLAIN = Style(dim=True), Style(reverse=True, bold=True), Style()


class FleetMap(ScrollView, can_focus=True):
    """The map, with a cursor on one node."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("left", "step(-1)", "Node before"),
        ("right", "step(1)", "Node after"),
        ("up", "line(-1)", "Line up"),
        ("down", "line(1)", "Line down"),
        ("home", "edge(False)", "First"),
        ("end", "edge(True)", "Last"),
        ("n", "trouble", "Next trouble"),
    ]
    DEFAULT_CSS = """
    FleetMap { height: 1fr; padding: 0 1; overflow-x: hidden; scrollbar-size-vertical: 1; }
    """

    cursor: reactive[int] = reactive(0)

    class Moved(Message):
        """The cursor is on another node, or that node has changed."""

    def __init__(self) -> None:
        super().__init__(id="fleet-map")
        self.nodes: list[NodeHealth] = []
        self._layout = Layout(False, False, 1, 1, 1)

    def show(self, nodes: list[NodeHealth]) -> None:
        """Show nodes; the cursor stays where it is."""
        self.nodes = nodes
        self.cursor = min(self.cursor, max(len(nodes) - 1, 0))
        self._lay_out()
        self.post_message(self.Moved())

    @property
    def selected(self) -> NodeHealth | None:
        return self.nodes[self.cursor] if self.cursor < len(self.nodes) else None

    def on_resize(self) -> None:
        self._lay_out()

    def watch_cursor(self) -> None:
        row = self.cursor // self._layout.columns
        self.scroll_to_region(Region(0, row, 1, 1), animate=False)
        self.refresh()
        self.post_message(self.Moved())

    def render_line(self, y: int) -> Strip:
        layout, row = self._layout, y + self.scroll_offset.y
        segments: list[Segment] = []
        for index in range(row * layout.columns, (row + 1) * layout.columns):
            if index >= len(self.nodes):
                break
            segments += self._cell(self.nodes[index], index == self.cursor)
        return Strip(segments).adjust_cell_length(self.size.width, _PLAIN)

    # --- actions ---------------------------------------------------------------------------------

    def action_step(self, by: int) -> None:
        self.cursor = self._inside(self.cursor + by)

    def action_line(self, by: int) -> None:
        self.cursor = self._inside(self.cursor + by * self._layout.columns)

    def action_edge(self, last: bool) -> None:
        self.cursor = self._inside(len(self.nodes) - 1 if last else 0)

    def action_trouble(self) -> None:
        """Go to the next node that is neither training nor a spare."""
        count = len(self.nodes)
        for ahead in range(1, count + 1):
            index = (self.cursor + ahead) % count
            if self.nodes[index].health > Health.SPARE:
                self.cursor = index
                return

    # --- drawing ---------------------------------------------------------------------------------

    def _inside(self, index: int) -> int:
        return min(max(index, 0), max(len(self.nodes) - 1, 0))

    def _lay_out(self) -> None:
        self._layout = layout_of(self.nodes, max(self.size.width, 1), max(self.size.height, 1))
        self.virtual_size = Size(self.size.width, self._layout.rows)
        self.refresh()

    def _cell(self, node: NodeHealth, is_chosen: bool) -> list[Segment]:
        layout = self._layout
        if not layout.with_gpus:
            style = _CURSOR if is_chosen else STYLES[node.health]
            return [Segment(node.health.glyph, style)]
        segments = []
        if layout.with_names:
            segments.append(Segment(f"{node.node} ", _CURSOR if is_chosen else _NAME))
        for gpu in node.gpus:
            style = STYLES[gpu.health]
            if is_chosen and not layout.with_names:
                style = style + _CURSOR
            segments.append(Segment(gpu.health.glyph, style))
        used = sum(len(segment.text) for segment in segments)
        segments.append(Segment(" " * max(layout.cell_width - used, 0), _PLAIN))
        return segments
