"""What a request would do, and whether it shall be made."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static


class ConfirmScreen(ModalScreen[bool]):
    """The dry run of a request. y makes it; anything else leads back to the form."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("y", "answer(True)", "Do it"),
        ("n,escape", "answer(False)", "Back"),
    ]
    DEFAULT_CSS = """
    ConfirmScreen { align: center middle; }
    ConfirmScreen > VerticalScroll {
        width: 90%; max-width: 90; height: auto; max-height: 90%;
        border: round $warning; padding: 0 1; background: $panel; scrollbar-size-vertical: 1;
    }
    ConfirmScreen Static { height: auto; }
    """

    def __init__(self, title: str, preview: str) -> None:
        super().__init__()
        self._title = title
        self.preview = preview

    def compose(self) -> ComposeResult:
        with VerticalScroll() as body:
            body.border_title = f"{self._title}: dry run"
            yield Static(Text(self.preview))
            yield Static(Text("\nNothing has been done yet.   y: do it   n: back", style="bold"))

    def action_answer(self, is_yes: bool) -> None:
        self.dismiss(is_yes)
