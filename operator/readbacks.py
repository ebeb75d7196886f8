"""What the ranks of one node have read back from their live objects, as events."""

from __future__ import annotations

from ..logbook import events as ev
from ..logbook import wire
from .agent import reports as rp


def applied_event(report: rp.WorkerMessages, acks: list[tuple[int, wire.Applied]]) -> ev.Event:
    first = acks[0][1]
    error = next((ack.error for _, ack in acks if ack.error), "")
    return ev.CommandApplied(
        attempt=report.attempt,
        seq=first.seq,
        node=report.node,
        ranks=tuple(rank for rank, _ in acks),
        at_step=first.at_step,
        readback=first.readback,
        previous=first.previous,
        error=error or _disagreement({rank: ack.readback for rank, ack in acks}),
        hyper=first.hyper,
        phase=first.phase,
        cause=first.cause,
        until_step=first.until_step,
    )


def loaded_events(report: rp.WorkerMessages) -> list[ev.Event]:
    """What the ranks of a node hold after their load: nothing may have been undone by it."""
    found = {r: m for r, m in report.batch if isinstance(m, wire.Resumed) and m.readback}
    if not found:
        return []
    values = {rank: message.readback for rank, message in found.items()}
    first = next(iter(found.values()))
    return [
        ev.CommandApplied(
            attempt=report.attempt,
            seq=0,
            node=report.node,
            ranks=tuple(found),
            at_step=first.step + 1,
            readback=first.readback,
            previous={},
            error=_disagreement(values),
            phase="loaded",
        )
    ]


def _disagreement(values: dict[int, dict[str, float]]) -> str:
    """Return how the ranks of a node differ in what they read back, "" when they do not."""
    first = next(iter(values.values()))
    if all(readback == first for readback in values.values()):
        return ""
    return f"ranks read back different values: {values}"
