"""Where an attempt goes on: from the nodes' memory, from a checkpoint, or from the beginning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from ..checkpoints.dcp import load_first
from ..checkpoints.dcp_memory import MemorySource
from ..checkpoints.fingerprint import differences
from ..checkpoints.manifest import Manifest, SaveHeader, parse_checkpoint_id
from ..checkpoints.source import Opener
from ..logbook.wire import Hyper, Phase, Resumed, StepSample
from .parts import Parts


@dataclass(frozen=True)
class Position:
    """From where a run goes on: completed steps, the changes in force, the last steps if known.

    unsaved: with what the state goes to disk, where memory alone has it.
    """

    step: int
    hyper: Hyper
    recent: tuple[StepSample, ...] = ()
    unsaved: SaveHeader | None = None


def resume(parts: Parts, candidates: Sequence[tuple[str, Opener]], hyper: Hyper | None) -> Position:
    """Load the newest state in memory, or else the first candidate all ranks can verify.

    Reports what was loaded, and returns where to go on.

    hyper None takes over the changes stored with the checkpoint; otherwise those given win, since
    they are newer than any checkpoint. No candidates is a fresh start.

    Raises: IntegrityError when there are candidates and none can be loaded.
    """
    memory = parts.saver.memory
    if memory is None and not candidates:
        parts.report.send(Resumed(parts.rank, 0, "", readback=parts.train_step.readback(1)))
        return Position(0, hyper or Hyper())
    parts.progress.note(Phase.LOADING)
    state = parts.train_step.state_dict()
    offered = list(candidates)
    passed_over: tuple[tuple[str, str], ...] = ()
    recent: tuple[StepSample, ...] = ()
    if memory is not None:
        found = memory.find(state, _newest_step(candidates))
        if isinstance(found, MemorySource):
            offered.insert(0, (found.manifest.id, found.opened))
            recent = found.recent
        elif found:
            passed_over = (("memory", found),)
    loaded = load_first(offered, state, rank=parts.rank)
    header = loaded.header
    if header is not None:
        if loaded.tier != MemorySource.tier:
            recent = header.recent
        if hyper is None:
            # A reset of the scaler was meant for the moment it was ordered, not for every resume.
            hyper = msgspec.structs.replace(header.hyper, loss_scale=None)
        # Before the load: a scale is held above the floor in force.
        parts.train_step.set_hyper(hyper, header.step + 1)
        parts.train_step.load_state_dict(state)
        parts.progress.step = header.step
    resumed = Resumed(
        rank=parts.rank,
        step=parts.progress.step,
        checkpoint=loaded.checkpoint,
        load_s=loaded.load_s,
        passed_over=(*passed_over, *loaded.passed_over),
        tier=loaded.tier,
        repaired=loaded.repaired,
        differs=_differences(loaded.manifest, parts) if parts.rank == 0 else (),
        recalled=recent if parts.rank == 0 else (),
        readback=parts.train_step.readback(parts.progress.step + 1),
    )
    parts.report.send(resumed)
    is_saved = loaded.tier != MemorySource.tier or parts.progress.step <= _newest_step(candidates)
    unsaved = None if is_saved else header
    return Position(parts.progress.step, hyper or Hyper(), resumed.recalled, unsaved)


def _newest_step(candidates: Sequence[tuple[str, Opener]]) -> int:
    steps = [
        parsed[0] for name, _ in candidates if (parsed := parse_checkpoint_id(name)) is not None
    ]
    return max(steps, default=0)


def _differences(saved: Manifest | None, parts: Parts) -> tuple[str, ...]:
    """Say what is not as it was where a checkpoint was saved, its mesh included."""
    if saved is None:
        return ()
    mesh = f"{parts.mesh.dp_shard} x {parts.mesh.tp}"
    before = f"{saved.mesh.dp_shard} x {saved.mesh.tp}"
    resharded = (f"mesh: saved {before}, now {mesh}",) if saved.mesh != parts.mesh else ()
    return (*resharded, *differences(saved.fingerprint, parts.fingerprint))
