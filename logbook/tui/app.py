"""The terminal logbook: watches a run, and lays requests on its desk."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import msgspec
from rich.theme import Theme
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import ContentSwitcher

from ..interventions import FORMS
from .book import Book
from .colours import NOTE_STYLES
from .controls import Controls
from .head import head_of
from .head_panel import HeadPanel
from .key_line import KeyLine
from .palette import Commands
from .pane import Pane
from .panes import make_pane
from .source import Source
from .tab_strip import VIEWS, TabStrip

if TYPE_CHECKING:
    from ..chapter import Chapter
    from ..state import Incident
    from .timeline_list import TimelineList

SETTLED = frozenset({"scheduled", "applied", "rejected", "failed", "reverted", "expired"})


class Pace(msgspec.Struct, frozen=True):
    """How the screen keeps up with the run.

    poll_s: between two looks at a journal in which nothing is new. slice_s: how long a look works.
    paint_s: the least time between two paintings while history is read. clock: for what is shown.
    """

    poll_s: float = 0.5
    slice_s: float = 0.04
    paint_s: float = 0.5
    clock: Callable[[], float] = time.time


class WatchApp(App[None]):
    """The screen: head, views, keys. controls None only watches."""

    TITLE = "midwatch"
    COMMANDS: ClassVar = {Commands}
    ENABLE_COMMAND_PALETTE = True
    COMMAND_PALETTE_BINDING = "colon"
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(str(n), f"view('{view}')", view, show=False) for n, view in enumerate(VIEWS, 1)),
        # With priority the form is there before the next of several keys that come at once.
        *(
            Binding(f.key, f"intervene('{f.action}')", f.title, show=False, priority=True)
            for f in FORMS
        ),
        Binding("question_mark", "keys", "Keys"),
        Binding("q", "leave", "Quit"),
    ]
    CSS = """
    Screen { layout: vertical; overflow: hidden; }
    ContentSwitcher { height: 1fr; }
    """

    def __init__(
        self, source: Source, controls: Controls | None = None, pace: Pace | None = None
    ) -> None:
        super().__init__()
        self.controls = controls
        self.book = Book()
        self._source = source
        self._pace = pace or Pace()
        self._awaited: set[str] = set()
        # What the end of the journal says is on the very first screen.
        self.book.take(source.advance(self._pace.slice_s))
        self._head = HeadPanel(head_of(self.book, self._pace.clock()))
        self._strip = TabStrip()
        # The other views are made when somebody wants to see them.
        self._panes: dict[str, Pane] = {VIEWS[0]: make_pane(VIEWS[0], self.book)}

    def compose(self) -> ComposeResult:
        yield self._head
        yield self._strip
        with ContentSwitcher(initial=VIEWS[0]):
            yield from self._panes.values()
        yield KeyLine()

    def on_mount(self) -> None:
        self.console.push_theme(Theme(NOTE_STYLES))
        self.pane.show()
        self.pane.take_focus()
        self.call_after_refresh(self._begin)

    @property
    def pane(self) -> Pane:
        """The view on the screen."""
        return self._panes[self._strip.active]

    def on_timeline_list_opened(self, message: TimelineList.Opened) -> None:
        from ..render_text import line_of
        from .book import details_of
        from .text_screen import TextScreen

        record = message.record
        text = f"{line_of(record)}\n\n{details_of(record)}"
        self.push_screen(TextScreen(f"event {record.seq}", text))

    async def chapter_of(self, incident: Incident) -> Chapter:
        """Return what the journal holds around an incident."""
        return await asyncio.to_thread(self._source.chapter, incident)

    # --- following -------------------------------------------------------------------------------

    def _begin(self) -> None:
        self.run_worker(self._follow())

    async def _follow(self) -> None:
        """Take in what is new for ever; paint when something has changed, and not too often."""
        pace, painted_s, is_stale = self._pace, 0.0, False
        while True:
            update = await asyncio.to_thread(self._source.advance, pace.slice_s)
            is_stale |= self.book.take(update)
            now_s = time.monotonic()
            if not update.has_more or now_s - painted_s >= pace.paint_s:
                self._paint(is_stale)
                painted_s, is_stale = now_s, False
            if not update.has_more:
                await asyncio.sleep(pace.poll_s)

    def _paint(self, is_stale: bool) -> None:
        if not self._head.is_attached:
            return  # The screen is being taken down.
        self._head.show(head_of(self.book, self._pace.clock()))
        if is_stale:
            self.pane.show()
            self._tell_of_requests()

    def _tell_of_requests(self) -> None:
        """Say what has come of the requests made from here."""
        for name in sorted(self._awaited):
            known = self.book.state.interventions.get(name)
            if known is None or known.stage not in SETTLED:
                continue
            self._awaited.discard(name)
            is_bad = known.stage in ("rejected", "failed")
            at = f" at step {known.at_step}" if known.at_step is not None else ""
            detail = f": {known.detail}" if known.detail else ""
            self.notify(
                f"{name} {known.stage}{at}{detail}",
                severity="error" if is_bad else "information",
                timeout=15,
                markup=False,
            )

    # --- actions ---------------------------------------------------------------------------------

    async def action_view(self, view: str) -> None:
        """Put a view on the screen."""
        switcher = self.screen_stack[0].query_one(ContentSwitcher)
        if view not in self._panes:
            pane = make_pane(view, self.book)
            await switcher.add_content(pane)
            self._panes[view] = pane
        self._strip.active = view
        switcher.current = view
        self.pane.show()
        self.pane.take_focus()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Whether an action may be taken: a form is opened from the views alone."""
        return action != "intervene" or len(self.screen_stack) == 1

    async def action_intervene(self, action: str) -> None:
        """Open the form of an intervention, filled in with what the cursor is on."""
        from .form_screen import FormScreen

        form = next(each for each in FORMS if each.action == action)
        if self.controls is None:
            self.notify("This screen only watches.", severity="warning")
            return
        if not self.book.is_whole:
            self.notify("The journal is still being read.", severity="warning")
            return
        screen = FormScreen(form, self.book.state, self.controls, self.pane.chosen())
        await self.push_screen(screen, self._requested)

    def action_keys(self) -> None:
        from .keys import keys_text
        from .text_screen import TextScreen

        self.push_screen(TextScreen("keys", keys_text()))

    def action_leave(self) -> None:
        """Leave the screen; the run goes on."""
        self.exit()

    def _requested(self, name: str | None) -> None:
        if name is not None:
            self._awaited.add(name)
            self.notify(f"{name} requested", markup=False)
            # It may be settled, and its events taken in, before word of its sending is back.
            self._tell_of_requests()
