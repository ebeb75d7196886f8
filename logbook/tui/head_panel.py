"""The head of the screen: state in words, why, and the figures that matter."""

from __future__ import annotations

from rich.text import Text
from textual.widget import Widget

from .colours import CYAN, GREEN, RED, YELLOW
from .head import Figure, Head

TONES = {"good": GREEN, "watch": YELLOW, "bad": RED, "": CYAN}
GAP = 2
LOW, TINY = 32, 16
"""On a screen of fewer lines only the most important figures are shown, or but a line of them."""


class HeadPanel(Widget):
    """Three lines of words and figures below them, as many to a line as fit."""

    DEFAULT_CSS = """
    HeadPanel { height: auto; padding: 0 1; background: $panel; }
    """

    def __init__(self, head: Head, *, id: str = "head") -> None:
        super().__init__(id=id)
        self._head = head

    def show(self, head: Head) -> None:
        """Show head, and paint only if it says something else."""
        if head != self._head:
            self._head = head
            self.refresh(layout=True)

    def render(self) -> Text:
        head, width = self._head, max(self.size.width, 20)
        colour = TONES[head.tone]
        title = Text.assemble(
            (head.run, "bold"), "  ", (f" {head.status.upper()} ", f"bold reverse {colour}")
        )
        if head.heard:
            title.append(f"  {head.heard}", f"bold {RED}")
        lines = [title, Text.assemble(("now  ", "dim"), head.now)]
        if head.why:
            lines.append(Text.assemble(("why  ", "dim"), head.why))
        height = self.app.size.height
        most = 1 if height < TINY else 2 if height < LOW else len(head.figures)
        lines += figure_lines(head.figures, width)[:most]
        for line in lines:
            line.truncate(width, overflow="ellipsis")
        return Text("\n").join(lines)


def figure_lines(figures: tuple[Figure, ...], width: int) -> list[Text]:
    """Return the figures in columns, as many as fit beside each other."""
    if not figures:
        return []
    columns = min(6, len(figures))
    while columns > 1:
        widths = _widths(figures, columns)
        if sum(widths) + GAP * (columns - 1) <= width:
            break
        columns -= 1
    widths = _widths(figures, columns)
    lines = []
    for start in range(0, len(figures), columns):
        line = Text()
        for figure, cell in zip(figures[start : start + columns], widths, strict=False):
            text = Text.assemble((f"{figure.name} ", "dim"), (figure.value, "bold"))
            text.pad_right(max(cell - text.cell_len, 0) + GAP)
            line.append_text(text)
        line.rstrip()
        lines.append(line)
    return lines


def _widths(figures: tuple[Figure, ...], columns: int) -> list[int]:
    return [
        max(len(f.name) + 1 + len(f.value) for f in figures[column::columns])
        for column in range(columns)
    ]
