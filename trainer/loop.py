"""The training loop: data, step, report, control, save; and nothing in it waits for an agent.

`step` counts completed updates. An update whose optimizer step was skipped for non-finite
gradients counts too and has consumed its data: the schedule and the data position are then pure
functions of the step, and no rank can disagree about them.

Between two steps, at a boundary all ranks agree on, in this order: the step is reported, agreed
commands are applied and reported by every rank, the state is saved if it is time, and the weights
are measured on held-out text if it is time: after the save, so that nothing is lost with a rank
that dies meanwhile. An attempt that resumes where a save or a measurement was cut short makes it
first.
"""

from __future__ import annotations

import time
from collections import deque

import msgspec
import torch
from torch import Tensor

from ..checkpoints.dcp import BESIDE_SAVE
from ..checkpoints.manifest import RECENT_STEPS, SaveHeader
from ..logbook.errors import Fatal
from ..logbook.hyper import ONCE
from ..logbook.tiers import TierRefused
from ..logbook.wire import (
    Applied,
    CheckpointTags,
    Command,
    Finished,
    Phase,
    RankSample,
    StepSample,
)
from .data.sampler import data_step_for
from .effects import Effect, due_commands, is_save_due, plan_due, plan_effect, save_interval_steps
from .flops import model_flops_per_token
from .mesh import coordinates
from .parts import Parts
from .resume import Position
from .step import Ballot, StepOutcome
from .validation import is_validation_due, validate


class Loop:
    """One rank's run from a position to the last step, or to an agreed stop.

    validated_step: the newest step that earlier attempts have measured.
    """

    def __init__(self, parts: Parts, position: Position, validated_step: int = 0) -> None:
        self._parts = parts
        self._step = position.step
        self._hyper = position.hyper
        self._dp_rank, _ = coordinates(parts.mesh, parts.rank)
        self._has_told = False
        # What was measured beyond the position was of weights that are left behind.
        self._validated_step = min(validated_step, position.step)
        self._recent: deque[StepSample] = deque(position.recent, maxlen=RECENT_STEPS)
        self._unsaved = position.unsaved

    def run(self, last_step: int) -> Finished:
        """Train until last_step steps are completed; the final state is committed on return."""
        is_stopped = False
        first_step = self._step + 1
        self._parts.progress.note(Phase.TRAINING)
        self._catch_up()
        self._save_if_cut_off()
        self._validate_if_due()
        while self._step < last_step and not is_stopped:
            outcome = self._train_one()
            if self._step == first_step:
                # Not before: until the first new step is done, a restart has better things to do.
                self._parts.saver.prepare(self._parts.train_step.state_dict())
            wants_save, is_stopped = self._apply_commands(outcome.agreed_command_seq)
            is_last = is_stopped or self._step == last_step
            is_due = is_save_due(self._step, self._hyper, self._parts.config)
            if wants_save or is_last or is_due:
                self._save_after(outcome, is_ordered=wants_save, is_last=is_last)
            elif outcome.agreed_memory_level >= BESIDE_SAVE:
                self._copy_to_memory(outcome)
            if not is_stopped:
                self._validate_if_due()
        self._parts.progress.note(Phase.DONE)
        return Finished(self._parts.rank, self._step, is_stopped)

    def _validate_if_due(self) -> None:
        held_out, step = self._parts.held_out, self._step
        if held_out is None or step <= self._validated_step:
            return
        if is_validation_due(step, self._parts.config):
            validate(self._parts, held_out, step)
            self._validated_step = step
            self._parts.progress.note(Phase.TRAINING)

    def _until_save(self, step: int) -> int:
        """Return how many steps lie between the end of a step and the next save to disk."""
        return -step % save_interval_steps(self._hyper, self._parts.config)

    def _train_one(self) -> StepOutcome:
        parts = self._parts
        began_s = time.perf_counter()
        parts.progress.note(Phase.DATA)
        data_step = data_step_for(self._step, self._hyper.skipped)
        batches = self._batches(data_step)
        data_s = time.perf_counter() - began_s
        level = parts.saver.memory_level(self._step + 1, self._until_save(self._step + 1))
        ballot = Ballot(parts.mailbox.highest(), level)
        outcome = parts.train_step.run(self._step + 1, batches, ballot)
        step_s = time.perf_counter() - began_s
        parts.saver.cadence.step_done(step_s)
        self._step = outcome.step
        parts.progress.note_step(outcome.step)
        self._report(outcome, data_step, data_s, step_s)
        self._tell_refusal()
        return outcome

    def _tell_refusal(self) -> None:
        """Somebody should know that restarts will come from disk, and why."""
        memory = self._parts.saver.memory
        if memory is not None and memory.refusal and not self._has_told:
            self._has_told = True
            refused = TierRefused(self._parts.rank, memory.refusal_code, memory.refusal)
            self._parts.report.send(refused)

    def _batches(self, data_step: int) -> list[Tensor]:
        tokens = torch.from_numpy(self._parts.sampler.batch(data_step, self._dp_rank))
        return list(tokens.to(self._parts.device, non_blocking=True).unbind(0))

    def _report(self, outcome: StepOutcome, data_step: int, data_s: float, step_s: float) -> None:
        parts = self._parts
        if parts.rank == 0:
            sample = _step_sample(outcome, parts, data_step, step_s)
            self._recent.append(sample)
            parts.report.send(sample)
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
        """Apply every command up to agreed_seq, and what is due; return (save now, stop)."""
        next_step, parts = self._step + 1, self._parts
        effects, told = [], set()
        for command in parts.mailbox.take(agreed_seq):
            previous = self._readback(next_step)
            effect = plan_effect(command, self._hyper, next_step, parts.config, parts.mesh)
            effects.append(self._apply(command, effect, previous))
            told.add(command.cause)
        for command in due_commands(self._hyper, next_step):
            effects.append(self._apply_due(command))
            told.add(command.cause)
        self._tell_turns(told)
        return any(e.is_save for e in effects), any(e.is_stop for e in effects)

    def _catch_up(self) -> None:
        """Apply what fell due before this attempt's first step; what happens once can wait."""
        told = set()
        for command in due_commands(self._hyper, self._step + 1):
            if command.kind not in ONCE:
                self._apply_due(command)
                told.add(command.cause)
        self._tell_turns(told)

    def _apply_due(self, command: Command) -> Effect:
        previous = self._readback(self._step + 1)
        effect = plan_due(command, self._hyper, self._parts.config, self._parts.mesh)
        return self._apply(command, effect, previous)

    def _apply(self, command: Command, effect: Effect, previous: dict[str, float]) -> Effect:
        next_step = self._step + 1
        if effect.is_changed:
            self._hyper = effect.hyper
            self._parts.train_step.set_hyper(effect.hyper, next_step)
        self._parts.report.send(
            Applied(
                rank=self._parts.rank,
                seq=command.seq,
                at_step=effect.at_step,
                readback=self._readback(next_step),
                previous=previous,
                error=effect.error,
                hyper=effect.hyper if effect.is_changed else None,
                phase=effect.phase,
                cause=command.cause,
                until_step=effect.until_step,
            )
        )
        return effect

    def _tell_turns(self, told: set[str]) -> None:
        """Read back where a change that was made before begins or ends at the next step."""
        next_step = self._step + 1
        turns = [(cause, "applied") for cause in self._hyper.begun_at(next_step)]
        turns += [(cause, "expired") for cause in self._hyper.ended_at(next_step)]
        for cause, phase in turns:
            if cause not in told or phase == "expired":
                readback = self._readback(next_step)
                turn = Applied(self._parts.rank, 0, next_step, readback, phase=phase, cause=cause)
                self._parts.report.send(turn)

    def _readback(self, next_step: int) -> dict[str, float]:
        interval_steps = save_interval_steps(self._hyper, self._parts.config)
        values = self._parts.train_step.readback(next_step)
        return {**values, "save_interval_steps": float(interval_steps)}

    def _copy_to_memory(self, outcome: StepOutcome) -> None:
        self._parts.progress.note(Phase.SAVING)
        state = self._parts.train_step.state_dict()
        self._parts.saver.keep(
            state,
            self._header(outcome, is_ordered=False),
            beside_save=outcome.agreed_memory_level == BESIDE_SAVE,
        )
        self._parts.progress.note(Phase.TRAINING)

    def _header(self, outcome: StepOutcome, *, is_ordered: bool) -> SaveHeader:
        return SaveHeader(
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
            rng=f"counter-based, seed {self._parts.config.seed}",
            is_ordered=is_ordered,
            recent=tuple(self._recent),
        )

    def _save_if_cut_off(self) -> None:
        """Make a save again that died with an earlier attempt, whose state only memory has."""
        header, self._unsaved = self._unsaved, None
        if header is None:
            return
        if header.is_ordered or is_save_due(self._step, self._hyper, self._parts.config):
            data_step = data_step_for(self._step, self._hyper.skipped)
            header = msgspec.structs.replace(
                header, hyper=self._hyper, data_step=data_step, recent=tuple(self._recent)
            )
            self._save(header, to_memory=False, is_last=False)

    def _save_after(self, outcome: StepOutcome, *, is_ordered: bool, is_last: bool) -> None:
        # Nobody resumes from the last state, so it need not be in memory.
        to_memory = outcome.agreed_memory_level > 0 and not is_last
        header = self._header(outcome, is_ordered=is_ordered)
        self._save(header, to_memory=to_memory, is_last=is_last)

    def _save(self, header: SaveHeader, *, to_memory: bool, is_last: bool) -> None:
        parts = self._parts
        parts.progress.note(Phase.SAVING)
        is_sync = is_last or not parts.config.checkpoint.async_save
        state = parts.train_step.state_dict()
        handle = parts.saver.save(state, header, sync=is_sync, to_memory=to_memory)
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
        memory_step=parts.saver.memory_step,
    )
