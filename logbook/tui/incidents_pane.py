"""The incidents of the run, and the note of the one under the cursor."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.events import Resize
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from ..chapter import Chapter
from ..clock import span_text
from ..notes import render_note
from ..state import Incident
from .book import Book
from .colours import RED
from .pane import Pane

if TYPE_CHECKING:
    from .app import WatchApp

WIDE = 110


class IncidentsPane(Pane):
    """The list, newest first, and the note beside or below it."""

    DEFAULT_CSS = """
    IncidentsPane { layout: vertical; }
    IncidentsPane > OptionList { height: 6; padding: 0 1; }
    IncidentsPane > OptionList, IncidentsPane > OptionList:focus { border: none; }
    IncidentsPane > #note-scroll { height: 1fr; padding: 0 1; scrollbar-size-vertical: 1; }
    IncidentsPane.-wide { layout: horizontal; }
    IncidentsPane.-wide > OptionList { height: 1fr; width: 46; }
    """

    def __init__(self, book: Book) -> None:
        super().__init__(book, id="incidents")
        self._listed: tuple[Incident, ...] | None = None
        self._noted: Incident | None = None

    def compose(self) -> ComposeResult:
        yield OptionList(id="incident-list")
        with VerticalScroll(id="note-scroll"):
            yield Static(id="note")

    def take_focus(self) -> None:
        self.query_one(OptionList).focus()

    def on_resize(self, event: Resize) -> None:
        self.set_class(self.size.width >= WIDE, "-wide")

    def update_view(self) -> None:
        incidents = tuple(reversed(self.book.state.incidents.values()))
        if incidents == self._listed:
            return
        options = self.query_one(OptionList)
        chosen = self._chosen()
        self._listed = incidents
        options.clear_options()
        options.add_options([Option(_line(each), id=each.draft.id) for each in incidents])
        names = [each.draft.id for each in incidents]
        if names:
            options.highlighted = names.index(chosen) if chosen in names else 0
        self._show_note()

    def on_option_list_option_highlighted(self) -> None:
        self._show_note()

    def on_option_list_option_selected(self) -> None:
        self.query_one("#note-scroll").focus()

    def _chosen(self) -> str:
        options = self.query_one(OptionList)
        if options.highlighted is None:
            return ""
        return options.get_option_at_index(options.highlighted).id or ""

    def _show_note(self) -> None:
        incident = self.book.state.incidents.get(self._chosen())
        note = self.query_one("#note", Static)
        if incident is None:
            note.update(Text("No incident so far.", style="dim"))
        elif incident is not self._noted:
            self._write(incident, Chapter())
            self.run_worker(self._read_on(incident), exclusive=True)
        self._noted = incident

    async def _read_on(self, incident: Incident) -> None:
        """Complete the note by what the journal holds around the incident."""
        trouble = ""
        try:
            chapter = await cast("WatchApp", self.app).chapter_of(incident)
        except Exception as error:
            # A mistake of ours about one incident must not end the watch over the run.
            chapter, trouble = Chapter(), repr(error)
        if self._noted is incident:
            self._write(incident, chapter, trouble)

    def _write(self, incident: Incident, chapter: Chapter, trouble: str = "") -> None:
        # A tenth of a second to import, which the first screen does not have.
        from rich.markdown import Markdown

        try:
            text = render_note(self.book.state, incident, chapter)
        except Exception as error:
            text, trouble = f"# {incident.draft.id}", repr(error)
        if trouble:
            text = f"Not all of this incident can be told: `{trouble}`\n\n{text}"
        self.query_one("#note", Static).update(Markdown(text))


def _line(incident: Incident) -> Text:
    draft = incident.draft
    state, style = ("open", f"bold {RED}") if incident.is_open else ("closed", "dim")
    took = ""
    if incident.recovered_s is not None:
        took = f", again after {span_text(incident.recovered_s - draft.seen_s)}"
    return Text.assemble(
        (f"{draft.id} ", "bold"),
        (state, style),
        f" {draft.fault} at step {draft.step}{took}",
        no_wrap=True,
        overflow="ellipsis",
    )
