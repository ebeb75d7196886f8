"""What a worker says, message by message, as events of the journal."""

from __future__ import annotations

from ..logbook import events as ev
from ..logbook import wire


def events_of(
    attempt: int, rank: int, message: wire.WorkerMessage, known_step: int
) -> list[ev.Event]:
    """Return what a message of the current attempt amounts to; known_step: the newest one told."""
    if isinstance(message, wire.StepSample):
        return [ev.StepDone(attempt, message)]
    if isinstance(message, wire.Resumed):
        if rank != 0:
            return []
        resumed = ev.AttemptResumed(
            attempt=attempt,
            step=message.step,
            checkpoint=message.checkpoint,
            load_s=message.load_s,
            passed_over=message.passed_over,
            tier=message.tier,
            repaired=message.repaired,
            differs=message.differs,
        )
        unheard = tuple(s for s in message.recalled if known_step < s.step <= message.step)
        return [resumed, ev.StepsRecalled(attempt, unheard)] if unheard else [resumed]
    if isinstance(message, wire.Validating):
        return [ev.ValidationUnderWay(attempt, message.step, message.done, message.total)]
    if isinstance(message, wire.Validated):
        return [
            ev.ValidationDone(
                attempt=attempt,
                step=message.step,
                loss=message.loss,
                sequences=message.sequences,
                tokens=message.tokens,
                ended_s=message.ended_s,
                spent_s=message.spent_s,
            )
        ]
    if isinstance(message, wire.Finished):
        return [ev.RankFinished(attempt, rank, message.step, message.stopped)]
    return []


def checkpoint_events(attempt: int, message: wire.CheckpointStage) -> list[ev.Event]:
    """Return what became of a save."""
    if message.stage == "committed":
        return [
            ev.CheckpointCommitted(
                attempt=attempt,
                checkpoint=message.checkpoint,
                step=message.step,
                bytes=message.bytes,
                blocked_s=message.blocked_s,
                save_s=message.save_s,
                tags=message.tags,
            )
        ]
    if message.stage == "failed":
        error = message.error
        return [ev.CheckpointFailed(attempt, message.checkpoint, message.step, error)]
    return []
