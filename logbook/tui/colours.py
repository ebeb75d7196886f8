"""The colours of the screen: of the 256 that most terminals have, and light enough that what is
left of them without colour reads well on a dark ground. Everything is told by words or signs, too.
"""

from __future__ import annotations

GREEN = "#5fd75f"
CYAN = "#5fd7d7"
YELLOW = "#ffd75f"
RED = "#ff8787"
MAGENTA = "#ff87d7"
GREY = "#8a8a8a"

NOTE_STYLES = {
    "markdown.h1": "bold",
    "markdown.h2": f"bold {CYAN}",
    "markdown.code": f"bold {YELLOW}",
    "markdown.table.header": "bold",
    "markdown.table.border": GREY,
    "markdown.item.bullet": "bold",
}
"""How an incident note is shown; rich's own choices vanish without colour."""
