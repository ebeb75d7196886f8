"""The health of every GPU and how to lay thousands of them out on a terminal. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

import msgspec

from ..events import FindingSeen
from ..findings import Severity
from ..state import AttemptState, NodeState, RunState


class Health(IntEnum):
    """How a GPU does, from well to worst; a node is as well as its worst GPU."""

    TRAINING = 0
    SPARE = 1
    WATCHED = 2
    DRAINING = 3
    FAILING = 4
    QUARANTINED = 5
    ABSENT = 6

    @property
    def glyph(self) -> str:
        """A character of its own each, so that the map reads without colour."""
        return "■□!~X#."[self]

    @property
    def word(self) -> str:
        return (
            "training",
            "spare",
            "watched",
            "to be drained",
            "failing",
            "quarantined",
            "absent",
        )[self]


class Gpu(msgspec.Struct, frozen=True):
    """One GPU (or other slot of a node). rank: None while it carries none. why: "" when well."""

    index: int
    rank: int | None
    health: Health
    why: str = ""
    uuid: str = ""


class NodeHealth(msgspec.Struct, frozen=True):
    """One node with its GPUs in order."""

    node: str
    host: str
    health: Health
    why: str
    gpus: tuple[Gpu, ...]


class _Mark(msgspec.Struct, frozen=True):
    """Why a node is to be replaced. device, rank: the GPU it is about; neither: all of them."""

    health: Health
    why: str
    device: str = ""
    rank: int | None = None


class Layout(msgspec.Struct, frozen=True):
    """How the nodes are laid out: columns x rows cells of cell_width, the gap included.

    with_names, with_gpus: what a cell shows; without GPUs a node is one character.
    """

    with_names: bool
    with_gpus: bool
    cell_width: int
    columns: int
    rows: int


def fleet_of(state: RunState) -> list[NodeHealth]:
    """Return the health of every node of a run in the order in which they joined."""
    attempt = state.attempt
    blocks = {}
    if attempt is not None:
        blocks = {
            place.node: (place.first_rank, place.num_ranks) for place in attempt.plan.placements
        }
    blamed = _blamed_ranks(attempt)
    number = attempt.number if attempt is not None else 0
    noted = _noted(state.findings, number)
    return [
        _node(
            known,
            blocks.get(known.node),
            blamed,
            _marks(known, number),
            noted.get(known.node, []),
        )
        for known in state.nodes.values()
    ]


def layout_of(nodes: list[NodeHealth], width: int, height: int) -> Layout:
    """Return the most telling layout that fits, the tightest one where none does."""
    name = max((len(node.node) for node in nodes), default=1)
    slots = max((len(node.gpus) for node in nodes), default=1)
    layouts = [
        _layout(True, True, name + 1 + slots + 2, width, len(nodes)),
        _layout(False, True, slots + 1, width, len(nodes)),
        _layout(False, False, 1, width, len(nodes)),
    ]
    return next((each for each in layouts if each.rows <= height), layouts[-1])


def counts_text(nodes: Iterable[NodeHealth]) -> str:
    """Return how many GPUs there are of each health: 984 training, 8 quarantined."""
    counts = dict.fromkeys(Health, 0)
    for node in nodes:
        for gpu in node.gpus:
            counts[gpu.health] += 1
    parts = [f"{health.glyph} {count} {health.word}" for health, count in counts.items() if count]
    return "  ".join(parts) or "no node has joined yet"


def _layout(names: bool, gpus: bool, cell: int, width: int, count: int) -> Layout:
    columns = max(width // cell, 1)
    return Layout(names, gpus, cell, columns, max(-(-count // columns), 1))


def _blamed_ranks(attempt: AttemptState | None) -> dict[int, str]:
    """What each rank of the current attempt has failed at."""
    if attempt is None:
        return {}
    found: dict[int, str] = {}
    for hang in attempt.hangs:
        for row in hang.rows:
            found[row.rank] = f"no progress since step {row.step} ({row.phase})"
    for left in attempt.exits:
        how = f"signal {left.signal}" if left.signal else f"status {left.exit_code}"
        found[left.rank] = f"exited with {how} after step {left.step}"
    return found


def _noted(findings: tuple[FindingSeen, ...], attempt: int) -> dict[str, list[FindingSeen]]:
    """The warnings of this attempt by node, the newest first."""
    noted: dict[str, list[FindingSeen]] = {}
    for seen in reversed(findings):
        finding = seen.finding
        is_warning = not finding.shadow and finding.severity is not Severity.OBSERVE
        if finding.node and seen.attempt == attempt and is_warning:
            noted.setdefault(finding.node, []).append(seen)
    return noted


def _node(
    known: NodeState,
    block: tuple[int, int] | None,
    blamed: dict[int, str],
    marks: list[_Mark],
    noted: list[FindingSeen],
) -> NodeHealth:
    health, why = _node_health(known, block is not None)
    gpus = []
    for index in range(known.slots):
        rank = block[0] + index if block is not None and index < block[1] else None
        uuid = known.gpus[index][0] if index < len(known.gpus) else ""
        gpus.append(_gpu(Gpu(index, rank, health, why, uuid), blamed, marks, noted))
    worst = max(gpus, key=lambda gpu: gpu.health, default=None)
    if worst is not None and worst.health > health:
        health, why = worst.health, worst.why
    return NodeHealth(known.node, known.host, health, why, tuple(gpus))


def _node_health(known: NodeState, is_placed: bool) -> tuple[Health, str]:
    """The health that all GPUs of a node share."""
    if known.quarantined:
        return Health.QUARANTINED, known.quarantined
    if not known.present:
        return Health.ABSENT, "its agent is gone"
    if not is_placed:
        return Health.SPARE, ""
    return Health.TRAINING, ""


def _marks(known: NodeState, attempt: int) -> list[_Mark]:
    """What wants a node replaced, the gravest first, until somebody releases it."""
    found = []
    for seen, health in ((known.evict, Health.FAILING), (known.drain, Health.DRAINING)):
        if seen is not None:
            # Where a rank was is known of its own attempt; afterwards the node itself is left out.
            rank = seen.finding.rank if seen.attempt == attempt else None
            found.append(_Mark(health, seen.finding.message, seen.finding.device, rank))
    return [*found, _Mark(Health.DRAINING, known.lemon)] if known.lemon else found


def _gpu(gpu: Gpu, blamed: dict[int, str], marks: list[_Mark], noted: list[FindingSeen]) -> Gpu:
    """A GPU with what is said of it in particular, where its node is not out altogether."""
    if gpu.health >= Health.QUARANTINED:
        return gpu
    if gpu.rank is not None and gpu.rank in blamed:
        return msgspec.structs.replace(gpu, health=Health.FAILING, why=blamed[gpu.rank])
    for mark in marks:
        if _is_about(gpu, mark.device, mark.rank):
            return msgspec.structs.replace(gpu, health=mark.health, why=mark.why)
    for seen in noted:
        if _is_about(gpu, seen.finding.device, seen.finding.rank):
            return msgspec.structs.replace(gpu, health=Health.WATCHED, why=seen.finding.message)
    return gpu


def _is_about(gpu: Gpu, device: str, rank: int | None) -> bool:
    """Whether a finding concerns this GPU; one that names neither concerns all of its node."""
    if device and gpu.uuid:
        return device == gpu.uuid
    return rank is None or rank == gpu.rank
