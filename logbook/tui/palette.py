"""The command palette: every view and every intervention by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider

from ..interventions import FORMS
from .tab_strip import VIEWS

if TYPE_CHECKING:
    from .app import WatchApp


class Commands(Provider):
    """What the palette finds."""

    async def discover(self) -> Hits:
        for name, help, run in self._all():
            yield DiscoveryHit(name, run, help=help)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for name, help, run in self._all():
            score = matcher.match(f"{name} {help}")
            if score > 0:
                yield Hit(score, matcher.highlight(name), run, help=help)

    def _all(self) -> Iterator[tuple[str, str, Callable[[], object]]]:
        app = cast("WatchApp", self.app)
        for view in VIEWS:
            yield f"View: {view}", f"show the {view}", partial(app.action_view, view)
        if app.controls is not None:
            for form in FORMS:
                run = partial(app.action_intervene, form.action)
                yield f"{form.title} ({form.key})", form.help, run
        yield "Keys", "all keys of this screen", app.action_keys
        yield "Quit", "leave; the run goes on", app.action_leave
