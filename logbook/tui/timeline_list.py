"""The records of a run as lines, of which only those on the screen are ever drawn."""

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

from ..clock import clock_text
from ..events import Event
from ..record import Record
from ..render_text import text_of
from .colours import CYAN, GREEN, MAGENTA, RED, YELLOW

KIND_WIDTH = 20
_ALARM = frozenset(
    {
        "worker-exited",
        "node-lost",
        "hang-suspected",
        "start-failed",
        "checkpoint-failed",
        "upload-failed",
        "fault-injected",
    }
)
_STYLES = {
    **dict.fromkeys(_ALARM, f"bold {RED}"),
    "finding": YELLOW,
    "decision": f"bold {CYAN}",
    "intervention-requested": f"bold {MAGENTA}",
    "command-applied": MAGENTA,
    "note-added": MAGENTA,
    "checkpoint-committed": GREEN,
    "checkpoint-verified": GREEN,
}
_WHEN, _PLAIN, _CURSOR = Style(dim=True), Style(), Style(reverse=True)


class TimelineList(ScrollView, can_focus=True):
    """The list, with a cursor; it follows what is new until somebody moves up."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("up", "move(-1)", "Up"),
        ("down", "move(1)", "Down"),
        ("pageup", "page(-1)", "Page up"),
        ("pagedown", "page(1)", "Page down"),
        ("home", "first", "First"),
        ("f,end", "follow", "Follow"),
        ("enter", "open", "Whole record"),
    ]
    DEFAULT_CSS = """
    TimelineList {
        height: 1fr; padding: 0 1; overflow-x: hidden; scrollbar-size-vertical: 1;
    }
    """

    cursor: reactive[int] = reactive(0)
    is_following: reactive[bool] = reactive(True)

    class Opened(Message):
        """Somebody wants to see all of a record."""

        def __init__(self, record: Record[Event]) -> None:
            super().__init__()
            self.record = record

    class Moved(Message):
        """Cursor, length or following have changed."""

    def __init__(self) -> None:
        super().__init__(id="timeline-list")
        self.rows: list[Record[Event]] = []

    def show(self, rows: list[Record[Event]]) -> None:
        """Show these records; the cursor stays on its record."""
        at = self.rows[self.cursor].seq if self.cursor < len(self.rows) else 0
        self.rows = rows
        self.virtual_size = Size(self.size.width, len(self.rows))
        if self.is_following or not at:
            self.cursor = max(len(self.rows) - 1, 0)
        else:
            self.cursor = self._place_of(at)
        self._scroll_to_cursor()
        self.refresh()
        self.post_message(self.Moved())

    def watch_cursor(self) -> None:
        self._scroll_to_cursor()
        self.refresh()
        self.post_message(self.Moved())

    def watch_is_following(self) -> None:
        self.post_message(self.Moved())

    def on_resize(self) -> None:
        self.virtual_size = Size(self.size.width, len(self.rows))
        self._scroll_to_cursor()

    def render_line(self, y: int) -> Strip:
        index = y + self.scroll_offset.y
        if index >= len(self.rows):
            return Strip.blank(self.size.width, _PLAIN)
        record = self.rows[index]
        style = Style.parse(_STYLES.get(record.kind, ""))
        segments = [
            Segment(f"{clock_text(record.time_s)[5:19]} ", _WHEN),
            Segment(f"a{record.attempt:<3}", _WHEN),
            Segment(f"{record.kind:<{KIND_WIDTH}.{KIND_WIDTH}} ", style),
            Segment(text_of(record), _PLAIN),
        ]
        strip = Strip(segments).adjust_cell_length(self.size.width, _PLAIN)
        return strip.apply_style(_CURSOR) if index == self.cursor and self.has_focus else strip

    # --- actions ---------------------------------------------------------------------------------

    def action_move(self, by: int) -> None:
        self._go_to(self.cursor + by)

    def action_page(self, by: int) -> None:
        self._go_to(self.cursor + by * max(self.size.height - 1, 1))

    def action_first(self) -> None:
        self._go_to(0)

    def action_follow(self) -> None:
        self._go_to(len(self.rows) - 1)

    def action_open(self) -> None:
        if self.cursor < len(self.rows):
            self.post_message(self.Opened(self.rows[self.cursor]))

    def _go_to(self, index: int) -> None:
        last = max(len(self.rows) - 1, 0)
        self.cursor = min(max(index, 0), last)
        self.is_following = self.cursor == last

    def _scroll_to_cursor(self) -> None:
        self.scroll_to_region(Region(0, self.cursor, 1, 1), animate=False, force=True)

    def _place_of(self, seq: int) -> int:
        """Return where the record seq stands, or the next one after it that is shown."""
        low, high = 0, len(self.rows)
        while low < high:
            middle = (low + high) // 2
            if self.rows[middle].seq < seq:
                low = middle + 1
            else:
                high = middle
        return min(low, max(len(self.rows) - 1, 0))
