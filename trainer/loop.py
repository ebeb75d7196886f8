"""The training loop: data, step, report, control, save; and nothing in it waits for an agent.

`step` counts completed updates. An update whose optimizer step was skipped for non-finite
gradients counts too and has consumed its data: the schedule and the data position are then pure
functions of the step, and no rank can disagree about them.

Between two steps, at a boundary all ranks agree on, in this order: the step is reported, agreed
commands are applied and reported by every rank, and the state is saved if it is time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor

from ..checkpoints.dcp import Saver, load_first
from ..checkpoints.manifest import SaveHeader
from ..checkpoints.source import Opener
from ..logbook.errors import Fatal
from ..logbook.wire import (
    Applied,
    CheckpointTags,
    Command,
    Finished,
    Hyper,
    Mesh,
    Phase,
    ProgressPage,
    RankSample,
    Resumed,
    StepSample,
)
from .config import TrainConfig
from .control import Effect, Mailbox, plan_effect
from .data.sampler import Sampler, data_step_for
from .flops import model_flops_per_token
from .mesh import coordinates
from .report import Report
from .step import Ballot, StepOutcome, TrainStep


class Progress:
    """Where this rank is, for the agent to see even when the process is stopped or stuck."""

    def __init__(self, page: ProgressPage | None) -> None:
        self._page = page
        self.step = 0

    def note(self, phase: Phase) -> None:
        if self._page is not None:
            self._page.note(self.step, phase)


@dataclass(frozen=True)
class Parts:
    """What the loop drives, ready to run."""

    rank: int
    mesh: Mesh
    config: TrainConfig
    device: torch.device
    train_step: TrainStep
    sampler: Sampler
    saver: Saver
    mailbox: Mailbox
    report: Report
    progress: Progress


@dataclass(frozen=True)
class Position:
    """From where a run goes on: completed steps and the changes in force."""

    step: int
    hyper: Hyper


def resume(parts: Parts, candidates: Sequence[tuple[str, Opener]], hyper: Hyper | None) -> Position:
    """Load the first candidate all ranks can verify, report it, and return where to go on.

    hyper None takes over the changes stored with the checkpoint; otherwise those given win, since
    they are newer than any checkpoint. No candidates is a fresh start.

    Raises: IntegrityError when there are candidates and none can be loaded.
    """
    step = 0
    resumed = Resumed(parts.rank, 0, "")
    if candidates:
        parts.progress.note(Phase.LOADING)
        state = parts.train_step.state_dict()
        loaded = load_first(candidates, state, rank=parts.rank)
        assert loaded.header is not None
        step = loaded.header.step
        if hyper is None:
            # A reset of the scaler was meant for the moment it was ordered, not for every resume.
            hyper = msgspec.structs.replace(loaded.header.hyper, loss_scale=None)
        parts.train_step.set_hyper(hyper)
        parts.train_step.load_state_dict(state)
        resumed = Resumed(
            rank=parts.rank,
            step=step,
            checkpoint=loaded.checkpoint,
            load_s=loaded.load_s,
            passed_over=loaded.passed_over,
            tier=loaded.tier,
            repaired=loaded.repaired,
        )
    parts.progress.step = step
    parts.report.send(resumed)
    return Position(step, hyper or Hyper())


class Loop:
    """One rank's run from a position to the last step, or to an agreed stop."""

    def __init__(self, parts: Parts, position: Position) -> None:
        self._parts = parts
        self._step = position.step
        self._hyper = position.hyper
        self._dp_rank, _ = coordinates(parts.mesh, parts.rank)

    def run(self, last_step: int) -> Finished:
        """Train until last_step steps are completed; the final state is committed on return."""
        is_stopped = False
        first_step = self._step + 1
        self._parts.progress.note(Phase.TRAINING)
        while self._step < last_step and not is_stopped:
            outcome = self._train_one()
            if self._step == first_step:
                # Not before: until the first new step is done, a restart has better things to do.
                self._parts.saver.prepare(self._parts.train_step.state_dict())
            wants_save, is_stopped = self._apply_commands(outcome.agreed_command_seq)
            is_last = is_stopped or self._step == last_step
            is_due = self._step % self._parts.config.checkpoint.interval_steps == 0
            if wants_save or is_last or is_due:
                self._save(outcome, is_last=is_last)
        self._parts.progress.note(Phase.DONE)
        return Finished(self._parts.rank, self._step, is_stopped)

    def _train_one(self) -> StepOutcome:
        parts = self._parts
        began_s = time.perf_counter()
        parts.progress.note(Phase.DATA)
        data_step = data_step_for(self._step, self._hyper.skipped)
        batches = self._batches(data_step)
        data_s = time.perf_counter() - began_s
        ballot = Ballot(highest_command_seq=parts.mailbox.highest())
        outcome = parts.train_step.run(self._step + 1, batches, ballot)
        step_s = time.perf_counter() - began_s
        self._step = parts.progress.step = outcome.step
        parts.progress.note(Phase.TRAINING)
        self._report(outcome, data_step, data_s, step_s)
        return outcome

    def _batches(self, data_step: int) -> list[Tensor]:
        tokens = torch.from_numpy(self._parts.sampler.batch(data_step, self._dp_rank))
        return list(tokens.to(self._parts.device, non_blocking=True).unbind(0))

    def _report(self, outcome: StepOutcome, data_step: int, data_s: float, step_s: float) -> None:
        parts = self._parts
        if parts.rank == 0:
            parts.report.send(_step_sample(outcome, parts, data_step, step_s))
        parts.report.send(
            RankSample(
                rank=parts.rank,
                step=outcome.step,
                step_s=step_s,
                data_s=data_s,
                forward_s=outcome.forward_s,
                backward_s=outcome.backward_s,
                comm_s=outcome.comm_s,
                optimizer_s=outcome.optimizer_s,
                local_loss=outcome.local_loss,
                local_grad_norm=outcome.local_grad_norm,
                found_inf=outcome.local_found_inf,
            )
        )

    def _apply_commands(self, agreed_seq: int) -> tuple[bool, bool]:
        """Apply every command up to agreed_seq; return (save now, stop)."""
        wants_save = is_stopped = False
        for command in self._parts.mailbox.take(agreed_seq):
            effect = self._apply(command)
            wants_save |= effect.is_save
            is_stopped |= effect.is_stop
        return wants_save, is_stopped

    def _apply(self, command: Command) -> Effect:
        train_step = self._parts.train_step
        next_step = self._step + 1
        previous = train_step.readback(next_step)
        effect = plan_effect(command, self._hyper, next_step, self._parts.config)
        if effect.is_changed:
            self._hyper = effect.hyper
            train_step.set_hyper(effect.hyper)
        self._parts.report.send(
            Applied(
                rank=self._parts.rank,
                seq=command.seq,
                at_step=next_step,
                readback=train_step.readback(next_step),
                previous=previous,
                error=effect.error,
                hyper=effect.hyper if effect.is_changed else None,
            )
        )
        return effect

    def _save(self, outcome: StepOutcome, *, is_last: bool) -> None:
        parts = self._parts
        parts.progress.note(Phase.SAVING)
        header = SaveHeader(
            step=self._step,
            data_step=data_step_for(self._step, self._hyper.skipped),
            hyper=self._hyper,
            tags=CheckpointTags(
                loss=outcome.loss,
                grad_norm=outcome.grad_norm,
                activation_norm=outcome.activation_norm,
                loss_scale=outcome.loss_scale,
                lr=outcome.lr,
            ),
            rng=f"counter-based, seed {parts.config.seed}",
        )
        is_sync = is_last or not parts.config.checkpoint.async_save
        handle = parts.saver.save(parts.train_step.state_dict(), header, sync=is_sync)
        parts.progress.note(Phase.TRAINING)
        if is_last and handle.result().stage != "committed":
            # A run may go on without a save, but it may not end without one.
            raise Fatal(
                "final-save-failed",
                f"the state of step {self._step} could not be saved: {handle.result().error}",
                remedy="Repair the storage; the run then goes on from its newest checkpoint.",
            )


def _step_sample(outcome: StepOutcome, parts: Parts, data_step: int, step_s: float) -> StepSample:
    flops = model_flops_per_token(parts.config.model, parts.config.seq_len) * outcome.tokens
    return StepSample(
        step=outcome.step,
        time_s=time.time(),
        loss=outcome.loss,
        grad_norm=outcome.grad_norm,
        lr=outcome.lr,
        activation_norm=outcome.activation_norm,
        found_inf=outcome.found_inf,
        skipped=outcome.skipped,
        loss_scale=outcome.loss_scale,
        tokens=outcome.tokens,
        data_step=data_step,
        step_s=step_s,
        tokens_per_s=outcome.tokens / step_s,
        model_tflops_per_device=flops / step_s / parts.mesh.world_size / 1e12,
    )
