"""What one rank of an attempt is made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..checkpoints.dcp import Saver
from ..checkpoints.manifest import Fingerprint
from ..logbook.wire import Mesh, Phase, ProgressPage
from .config import TrainConfig
from .control import Mailbox
from .data.held_out import HeldOut
from .data.sampler import Sampler
from .report import Report
from .step import TrainStep


class Progress:
    """Where this rank is, for the agent to see even when the process is stopped or stuck."""

    def __init__(self, page: ProgressPage | None) -> None:
        self._page = page
        self._rounds = 0
        self.step = 0

    def note(self, phase: Phase) -> None:
        if self._page is not None:
            self._page.note(self.step, phase, self._rounds)

    def note_step(self, step: int) -> None:
        """A step is completed, and no round of a validation after it."""
        self.step, self._rounds = step, 0
        self.note(Phase.TRAINING)

    def note_round(self, rounds: int) -> None:
        """So many rounds of the validation after this step are completed."""
        self._rounds = rounds
        self.note(Phase.VALIDATING)


@dataclass(frozen=True)
class Parts:
    """What the loop drives, ready to run. held_out: None in a run that measures nothing."""

    rank: int
    mesh: Mesh
    config: TrainConfig
    fingerprint: Fingerprint
    device: torch.device
    train_step: TrainStep
    sampler: Sampler
    saver: Saver
    mailbox: Mailbox
    report: Report
    progress: Progress
    held_out: HeldOut | None = None
