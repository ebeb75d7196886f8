"""Something to read on top of everything else: the keys, or all of a record."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static


class TextScreen(ModalScreen[None]):
    """A titled text that scrolls; any of the leaving keys closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape,q,enter,question_mark", "dismiss", "Close"),
    ]
    DEFAULT_CSS = """
    TextScreen { align: center middle; }
    TextScreen > VerticalScroll {
        width: 90%; max-width: 110; height: auto; max-height: 90%;
        border: round $primary; padding: 0 1; background: $panel; scrollbar-size-vertical: 1;
    }
    TextScreen Static { height: auto; }
    """

    def __init__(self, title: str, text: str | Text) -> None:
        super().__init__()
        self._title = title
        self._text = text

    def compose(self) -> ComposeResult:
        with VerticalScroll() as body:
            body.border_title = self._title
            yield Static(self._text if isinstance(self._text, Text) else Text(self._text))

    async def action_dismiss(self, result: None = None) -> None:
        self.dismiss()
