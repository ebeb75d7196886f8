"""The checkpoints of the run: where they lie, whether they are sound, how healthy they are."""

from __future__ import annotations

from rich.text import Text
from textual.app import ComposeResult
from textual.widgets import DataTable, Static

from ..checkpoint_text import health_text, outcome_text, verified_text
from ..clock import span_text
from ..phrases import bytes_text
from ..state import CheckpointState, RunState
from .book import Book
from .colours import RED
from .pane import Pane

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

    def compose(self) -> ComposeResult:
        yield Static(id="checkpoints-head")
        yield DataTable(cursor_type="row", zebra_stripes=False)
        yield Static(id="checkpoint-detail")

    def on_mount(self) -> None:
        self._table.add_columns(*COLUMNS)

    @property
    def _table(self) -> DataTable[str]:
        return self.query_one(DataTable)

    def take_focus(self) -> None:
        self._table.focus()

    def chosen(self) -> str:
        row = self._table.cursor_row
        return self._rows[row][0] if 0 <= row < len(self._rows) else ""

    def update_view(self) -> None:
        state = self.book.state
        rows = checkpoint_lines(state)
        self.query_one("#checkpoints-head", Static).update(
            Text(_head(state), style="dim", no_wrap=True)
        )
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


def checkpoint_lines(state: RunState) -> list[tuple[str, ...]]:
    """Return the cells of every checkpoint, newest step first."""
    newest = sorted(state.checkpoints.values(), key=lambda c: (-c.step, -c.attempt))
    return [
        (
            each.checkpoint,
            str(each.step),
            bytes_text(each.bytes),
            tiers_text(state, each),
            verified_text(each.verified),
            outcome_text(each, state.step),
            health_text(each),
        )
        for each in newest
    ]


def tiers_text(state: RunState, known: CheckpointState) -> str:
    """Return where a checkpoint lies, as far as the journal tells."""
    if not _has_store(state):
        return "folder"
    return "disk+store" if known.uploaded_s is not None else "disk"


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
