"""A whole run, read once from its journal: curves, attempts and ledger, beside the state."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any

import msgspec

from . import decisions as d
from . import events as ev
from .action_phrases import action_text
from .fold import evolve
from .ledger import Ledger
from .record import Record
from .state import RunState
from .wire import StepSample

LEFT_MAX = 512
"""Stretches that restarts went back past, of which the last are kept."""


class Curves:
    """Columns of a stretch of steps, oldest first; a loss scale that is not there is NaN."""

    def __init__(self) -> None:
        self.steps, self.times_s = array("q"), array("d")
        self.loss, self.lr = array("d"), array("d")
        self.grad_norm, self.activation_norm = array("d"), array("d")
        self.loss_scale, self.tokens_per_s = array("d"), array("d")

    def __len__(self) -> int:
        return len(self.steps)

    def add(self, sample: StepSample) -> None:
        """Put a step at the end."""
        scale = sample.loss_scale
        self.steps.append(sample.step)
        self.times_s.append(sample.time_s)
        self.loss.append(sample.loss)
        self.lr.append(sample.lr)
        self.grad_norm.append(sample.grad_norm)
        self.activation_norm.append(sample.activation_norm)
        self.loss_scale.append(scale if scale is not None else float("nan"))
        self.tokens_per_s.append(sample.tokens_per_s)

    def split_off(self, step: int) -> Curves:
        """Take off everything past a step and return it."""
        first = len(self.steps)
        while first and self.steps[first - 1] > step:
            first -= 1
        gone = Curves()
        for name, column in vars(self).items():
            setattr(gone, name, column[first:])
            del column[first:]
        return gone


class AttemptRow(msgspec.Struct):
    """One attempt from its decision to its end. Times are seconds since the epoch; None: never.

    end: how it ended, in a few words; "" while it runs.
    """

    number: int
    started_s: float
    nodes: tuple[str, ...]
    resumed_s: float | None = None
    resumed_from: str = ""
    resumed_step: int = 0
    first_step_s: float | None = None
    last_step: int | None = None
    steps: int = 0
    ended_s: float | None = None
    end: str = ""


class Chronicle:
    """Grows record by record; read it when the journal is through.

    curves: the steps that stand. left: those that restarts went back past.
    validation: the measurements on held-out text that stand, where the record has any.
    """

    def __init__(self) -> None:
        self.state = RunState()
        self.ledger = Ledger()
        self.curves = Curves()
        self.left: list[Curves] = []
        self.attempts: list[AttemptRow] = []
        self.validation: list[ev.ValidationDone] = []
        self.saves_total = 0
        self.blocked_total_s = 0.0

    def take(self, record: Record[Any]) -> None:
        """Fold one record in."""
        before, event, time_s = self.state, record.event, record.time_s
        after = evolve(before, event, seq=record.seq, time_s=time_s)
        self.state = after
        self.ledger.take(before, after, record)
        if isinstance(event, ev.StepDone):
            if after.steps_total != before.steps_total:
                self._step(event.sample, time_s)
        elif isinstance(event, ev.StepsRecalled):
            known = before.last.step if before.last is not None else 0
            if after.steps_total != before.steps_total:
                for sample in event.samples:
                    if known < sample.step <= after.step:
                        self.curves.add(sample)
        elif isinstance(event, ev.AttemptResumed):
            if after.lineage != before.lineage:
                self._resumed(event, time_s)
        elif isinstance(event, ev.DecisionMade):
            if after.num_decisions > before.num_decisions:
                self._decided(event.decision, time_s)
        elif isinstance(event, ev.ValidationDone):
            if after.validations is not before.validations:
                self.validation.append(event)
        elif isinstance(event, ev.CheckpointCommitted) and event.save_s > 0.0:
            self.saves_total += 1
            self.blocked_total_s += event.blocked_s

    def _step(self, sample: StepSample, time_s: float) -> None:
        self.curves.add(sample)
        if self.attempts:
            row = self.attempts[-1]
            row.first_step_s = time_s if row.first_step_s is None else row.first_step_s
            row.last_step, row.steps = sample.step, row.steps + 1

    def _resumed(self, event: ev.AttemptResumed, time_s: float) -> None:
        gone = self.curves.split_off(event.step)
        if len(gone):
            self.left = [*self.left, gone][-LEFT_MAX:]
        self.validation = [each for each in self.validation if each.step <= event.step]
        if self.attempts:
            row = self.attempts[-1]
            row.resumed_s, row.resumed_step = time_s, event.step
            row.resumed_from = event.checkpoint

    def _decided(self, decision: d.Decision, time_s: float) -> None:
        action = decision.action
        if not isinstance(action, (d.StartAttempt, d.AwaitNodes, d.PauseRun, d.EndRun)):
            return
        if self.attempts and self.attempts[-1].ended_s is None:
            self.attempts[-1].ended_s = time_s
            self.attempts[-1].end = self._end_text(decision)
        if isinstance(action, d.StartAttempt):
            plan = action.plan
            self.attempts.append(AttemptRow(plan.attempt, time_s, plan.nodes))

    def _end_text(self, decision: d.Decision) -> str:
        incident = self.state.incidents.get(decision.incident or "")
        if incident is not None:
            return f"{incident.draft.fault} ({incident.draft.id})"
        return action_text(decision.action)


def read_chronicle(records: Iterable[Record[Any]]) -> Chronicle:
    """Return a whole journal as a chronicle."""
    chronicle = Chronicle()
    for record in records:
        chronicle.take(record)
    return chronicle
