"""What simulated workers say, put into words."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...health.nodes.liveness import RankProgress
from ...logbook.wire import (
    Applied,
    CheckpointStage,
    CheckpointTags,
    Command,
    Phase,
    WorkerMessage,
)

if TYPE_CHECKING:
    from .world import Setting


def row_of(rank: int, is_stopped: bool, step: int, age_s: float) -> RankProgress:
    """Return where a worker stands, as its progress page would show it."""
    return RankProgress(
        rank=rank,
        step=step,
        phase=Phase.FORWARD if is_stopped else Phase.VOTE,
        age_s=age_s + (0.2 if is_stopped else 0.0),
        state="T" if is_stopped else "S",
        waits=None if is_stopped else True,
    )


def applied(
    command: Command, previous: dict[str, float], readback: dict[str, float], effect: Any
) -> Callable[[int], WorkerMessage]:
    """Return what each rank says of a command that took effect, or waits for its step."""
    return lambda rank: Applied(
        rank=rank,
        seq=command.seq,
        at_step=effect.at_step,
        readback=readback,
        previous=previous,
        error=effect.error,
        hyper=effect.hyper if effect.is_changed else None,
        phase=effect.phase,
        cause=command.cause,
        until_step=effect.until_step,
    )


def turned(
    next_step: int, readback: dict[str, float], phase: str, cause: str
) -> Callable[[int], WorkerMessage]:
    """Return what each rank says of a change whose step has come or passed."""
    return lambda rank: Applied(rank, 0, next_step, readback, phase=phase, cause=cause)


def stage_of(
    setting: Setting, name: str, step: int, stage: str, tags: CheckpointTags | None, error: str
) -> CheckpointStage:
    """Return how far a save has got."""
    return CheckpointStage(
        name,
        step,
        stage,
        bytes=setting.sizes.checkpoint_bytes,
        blocked_s=setting.times.blocked_s,
        save_s=setting.times.save_s,
        tags=tags,
        error=error,
    )
