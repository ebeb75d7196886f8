"""The line of keys at the foot of the screen."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.widgets import Footer

FIRST = ("keys", "leave")


class KeyLine(Footer):
    """The keys of the view at hand. What shows all keys and what leaves are never cut off."""

    def compose(self) -> ComposeResult:
        keys = list(super().compose())
        yield from sorted(keys, key=lambda key: getattr(key, "action", "") not in FIRST)
