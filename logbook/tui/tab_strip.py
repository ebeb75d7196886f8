"""The names of the views in one line; the one on the screen stands out without colour, too."""

from __future__ import annotations

from rich.text import Text
from textual.reactive import reactive
from textual.widget import Widget

VIEWS = ("charts", "fleet", "timeline", "incidents", "checkpoints")


class TabStrip(Widget):
    """One line: 1 charts  [2 fleet]  3 timeline ..."""

    DEFAULT_CSS = """
    TabStrip { height: 1; padding: 0 1; background: $surface; }
    """

    active: reactive[str] = reactive(VIEWS[0])

    def render(self) -> Text:
        line = Text(no_wrap=True, overflow="ellipsis")
        for number, view in enumerate(VIEWS, 1):
            is_active = view == self.active
            line.append(
                f"[{number} {view}]" if is_active else f" {number} {view} ",
                "bold reverse" if is_active else "dim",
            )
            line.append(" ")
        return line
