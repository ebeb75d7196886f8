"""The fleet: how many GPUs do how, the map, and what is known of the node under the cursor."""

from __future__ import annotations

from rich.text import Text
from textual.app import ComposeResult
from textual.widgets import Static

from ..state import RunState
from .book import Book
from .fleet import NodeHealth, counts_text, fleet_of
from .fleet_map import STYLES, FleetMap
from .pane import Pane


class FleetPane(Pane):
    """The map with its legend above and details below."""

    DEFAULT_CSS = """
    FleetPane { layout: vertical; }
    FleetPane > #fleet-counts { height: 1; padding: 0 1; }
    FleetPane > #fleet-detail { height: 6; padding: 0 1; background: $surface; }
    """

    def __init__(self, book: Book) -> None:
        super().__init__(book, id="fleet")
        self._seen: tuple[object, ...] = ()

    def compose(self) -> ComposeResult:
        yield Static(id="fleet-counts")
        yield FleetMap()
        yield Static(id="fleet-detail")

    def take_focus(self) -> None:
        self.query_one(FleetMap).focus()

    def chosen(self) -> str:
        selected = self.query_one(FleetMap).selected
        return selected.node if selected is not None else ""

    def update_view(self) -> None:
        seen = _what_counts(self.book.state)
        # A step changes the state, but seldom the health of anything.
        if len(seen) == len(self._seen) and all(
            a is b for a, b in zip(seen, self._seen, strict=True)
        ):
            return
        self._seen = seen
        nodes = fleet_of(self.book.state)
        self.query_one("#fleet-counts", Static).update(
            Text(counts_text(nodes), style="dim", no_wrap=True)
        )
        self.query_one(FleetMap).show(nodes)

    def on_fleet_map_moved(self) -> None:
        node = self.query_one(FleetMap).selected
        detail = self.query_one("#fleet-detail", Static)
        detail.update(_detail(self.book.state, node) if node is not None else "")


def _what_counts(state: RunState) -> tuple[object, ...]:
    attempt = state.attempt
    if attempt is None:
        return state.nodes, state.findings, None
    return state.nodes, state.findings, attempt.plan, attempt.exits, attempt.hangs


def _detail(state: RunState, node: NodeHealth) -> Text:
    known = state.nodes.get(node.node)
    lines = [
        Text.assemble(
            (node.node, "bold"), f" on {node.host}  ", (node.health.word, STYLES[node.health])
        )
    ]
    if known is not None:
        told = [f"agent {known.pid or '?'} ({known.incarnation})", f"{known.slots} slots"]
        told += [f"machine {known.machine}"] if known.machine else []
        told += [f"lost {known.num_losses}x"] if known.num_losses else []
        told += [f"hung {known.num_hangs}x"] if known.num_hangs else []
        lines.append(Text(", ".join(told), style="dim"))
    if node.why:
        lines.append(Text.assemble(("why  ", "dim"), node.why))
    ranks = Text.assemble(("gpus ", "dim"))
    for gpu in node.gpus:
        label = "-" if gpu.rank is None else str(gpu.rank)
        ranks.append(f"{gpu.index}:{label}{gpu.health.glyph} ", STYLES[gpu.health])
    lines.append(ranks)
    lines += [
        Text(f"gpu {gpu.index} {gpu.uuid}: {gpu.why}")
        for gpu in node.gpus
        if gpu.why and gpu.why != node.why
    ]
    for line in lines:
        line.no_wrap = True
    return Text("\n", no_wrap=True, overflow="ellipsis").join(lines)
