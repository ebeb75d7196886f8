"""The checkpoints of the run: where they lie, whether they are sound, how healthy they are."""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, cast

from rich.text import Text
from textual.app import ComposeResult
from textual.widgets import DataTable, Static

from ..checkpoint_text import health_text, outcome_text, verified_text
from ..clock import span_text
from ..state import CheckpointState, RunState
from ..words import bytes_text
from .book import Book
from .colours import RED
from .controls import Controls, Places
from .pane import Pane

if TYPE_CHECKING:
    from .app import WatchApp

LOOK_S = 20.0
"""Between two looks at where the checkpoints lie, while this is the view on the screen."""
COLUMNS = ("checkpoint", "step", "size", "tiers", "sound", "outcome", "health")


class CheckpointsPane(Pane):
    """The table, newest first, and more about the one under the cursor."""

    DEFAULT_CSS = """
    CheckpointsPane { layout: vertical; }
    CheckpointsPane > #checkpoints-head { height: 1; padding: 0 1; }
    CheckpointsPane > DataTable {
        height: 1fr; padding: 0 1; scrollbar-size-vertical: 1; scrollbar-size-horizontal: 0;
    }
    CheckpointsPane > #checkpoint-detail { height: 4; padding: 0 1; background: $surface; }
    """

    def __init__(self, book: Book) -> None:
        super().__init__(book, id="checkpoints")
        self._rows: list[tuple[str, ...]] = []
        self._places: Places | None = None
        self._looked_s = -math.inf

    def compose(self) -> ComposeResult:
        yield Static(id="checkpoints-head")
        yield DataTable(cursor_type="row", zebra_stripes=False)
        yield Static(id="checkpoint-detail")

    def on_mount(self) -> None:
        self._table.add_columns(*COLUMNS)
        self.set_interval(LOOK_S / 4, self._look)

    @property
    def _table(self) -> DataTable[str]:
        return self.query_one(DataTable)

    def take_focus(self) -> None:
        self._table.focus()

    def chosen(self) -> str:
        row = self._table.cursor_row
        return self._rows[row][0] if 0 <= row < len(self._rows) else ""

    def _look(self) -> None:
        """Look where they lie, if somebody sees it and the last look is old."""
        controls, now_s = cast("WatchApp", self.app).controls, time.monotonic()
        is_due = now_s - self._looked_s >= LOOK_S and self.display and self.book.is_whole
        if controls is not None and is_due:
            self._looked_s = now_s
            self.run_worker(self._look_with(controls), exclusive=True)

    async def _look_with(self, controls: Controls) -> None:
        places = await asyncio.to_thread(controls.places, self.book.state)
        if places != self._places:
            self._places = places
            self.show(force=True)

    def update_view(self) -> None:
        self._look()
        state = self.book.state
        rows = checkpoint_lines(state, self._places)
        trouble = self._places.trouble if self._places is not None else ""
        head = f"{_head(state)}; not all is seen: {trouble}" if trouble else _head(state)
        self.query_one("#checkpoints-head", Static).update(Text(head, style="dim", no_wrap=True))
        if rows != self._rows:
            chosen = self.chosen()
            self._rows = rows
            self._table.clear()
            self._table.add_rows(rows)
            names = [row[0] for row in rows]
            self._table.move_cursor(row=names.index(chosen) if chosen in names else 0)
        self._show_detail()

    def on_data_table_row_highlighted(self) -> None:
        self._show_detail()

    def _show_detail(self) -> None:
        detail = self.query_one("#checkpoint-detail", Static)
        known = self.book.state.checkpoints.get(self.chosen())
        detail.update(_detail(self.book.state, known) if known is not None else "")


def checkpoint_lines(state: RunState, places: Places | None = None) -> list[tuple[str, ...]]:
    """Return the cells of every checkpoint, newest step first. places: None as long as unknown."""
    newest = sorted(state.checkpoints.values(), key=lambda c: (-c.step, -c.attempt))
    return [
        (
            each.checkpoint,
            str(each.step),
            bytes_text(each.bytes),
            tiers_text(state, each, places),
            verified_text(each.verified),
            outcome_text(each, state.step),
            health_text(each),
        )
        for each in newest
    ]


def tiers_text(state: RunState, known: CheckpointState, places: Places | None) -> str:
    """Return where a checkpoint lies: as somebody has looked, else as the journal tells.

    What is in the nodes' memory only the run itself can say, and disks of other machines are not
    seen from here: there the journal's word stands.
    """
    told = ["disk"] + ["store"] * (known.uploaded_s is not None)
    if places is None or (places.trouble and known.checkpoint not in places.tiers):
        found = told
    else:
        found = list(places.tiers.get(known.checkpoint, ()))
        if _has_store(state) and not found and known.uploaded_s is None:
            found = ["disk?"]
    in_memory = state.last is not None and state.last.memory_step == known.step
    return "+".join(["memory"] * in_memory + found) or "gone"


def _has_store(state: RunState) -> bool:
    section = state.spec.get("checkpoints")
    store = section.get("store") if isinstance(section, dict) else None
    return isinstance(store, dict) and bool(store.get("url"))


def _head(state: RunState) -> str:
    step = state.last.memory_step if state.last is not None else None
    memory = f"memory: step {step}" if step is not None else "memory: nothing"
    pins = f", {len(state.pins)} pinned" if state.pins else ""
    trouble = "".join(f"; uploads of {node} do not get on" for node in state.upload_trouble)
    return f"{len(state.checkpoints)} checkpoints{pins}; {memory}{trouble}"


def _detail(state: RunState, known: CheckpointState) -> Text:
    age_s = max(state.time_s - known.time_s, 0.0)
    lines = [
        Text.assemble(
            (known.checkpoint, "bold"),
            f"  saved {span_text(age_s)} ago by attempt {known.attempt} in "
            f"{span_text(known.save_s)}, loop blocked {span_text(known.blocked_s)}",
        )
    ]
    if pin := state.pins.get(known.checkpoint):
        lines.append(Text(f"pinned: {pin}"))
    for name, text in (("quarantined", known.quarantined), ("not sound", known.error)):
        if text:
            lines.append(Text.assemble((f"{name}: ", f"bold {RED}"), text))
    if known.tags is not None:
        tags = known.tags
        lines.append(
            Text(f"loss {tags.loss:.4f}  grad {tags.grad_norm:.3g}  lr {tags.lr:.3g}", style="dim")
        )
    return Text("\n").join(lines)
