"""The panel: every numeric detector over one run, one point at a time."""

from __future__ import annotations

from collections.abc import Iterable

from ...logbook.findings import Finding, Severity
from .activation_norm import ActivationNormDetector
from .config import DetectorConfig, Mode, PanelConfig
from .creep import CreepDetector
from .cross_rank import CrossRankDetector, RankPoint
from .excursion import Excursion
from .grad_norm import GradNormDetector
from .level_shift import LevelShiftDetector
from .lr_watch import LrWatch
from .non_finite import NonFiniteDetector
from .plateau import PlateauDetector
from .point import Detector, Point, Signal
from .scaler import ScalerDetector
from .shadow import ShadowScore, Tally
from .spike import SpikeDetector
from .verdict import Verdict, VerdictKeeper


class Panel:
    """Runs the detectors over the points of one lineage and merges what they say.

    One pass, constant memory, no clock, no randomness: the same points give the same findings.
    A step that goes back is taken for a rollback, as in a log that holds several attempts; a
    controller that knows better calls restarted() itself.
    """

    def __init__(self, config: PanelConfig | None = None) -> None:
        self._config = config or PanelConfig()
        self._lr = LrWatch(self._config.lr)
        self._excursion = Excursion(self._config.spike, self._lr)
        self._cross_rank = CrossRankDetector(self._config.cross_rank)
        built = self._build()
        self._modes: dict[str, Mode] = {d.name: section.mode for d, section in built}
        self._modes[self._cross_rank.name] = self._config.cross_rank.mode
        self._detectors: list[Detector] = [detector for detector, _ in built]
        self._running = [d for d in self._detectors if self._modes[d.name] != "off"]
        self._keeper = VerdictKeeper(self._config.cooldown_steps, self._config.agreement_points)
        self._score = ShadowScore(self._config.shadow_horizon_points)
        self._count = 0
        self._step: int | None = None

    def _build(self) -> list[tuple[Detector, DetectorConfig]]:
        """Every detector with its section. Worse news first: it then opens the episode."""
        config, excursion, lr = self._config, self._excursion, self._lr
        return [
            (NonFiniteDetector(config.non_finite, excursion), config.non_finite),
            (ScalerDetector(config.scaler), config.scaler),
            (LevelShiftDetector(config.level_shift, excursion), config.level_shift),
            (CreepDetector(config.creep, excursion, lr), config.creep),
            (GradNormDetector(config.grad_norm, lr), config.grad_norm),
            (ActivationNormDetector(config.activation_norm, lr), config.activation_norm),
            (PlateauDetector(config.plateau), config.plateau),
            (SpikeDetector(excursion), config.spike),
        ]

    def update(self, point: Point) -> list[Finding]:
        """Take the next point; return what is new, usually nothing.

        Returns: at most one finding per detector and one on which several agree; within an episode
            severity only rises.
        """
        step = point.step
        if self._step is not None and step < self._step:
            self.restarted(step)
        self._step = step
        self._count += 1
        if point.lr is not None:
            self._lr.observe(step, point.lr)
        if point.loss is not None:
            self._excursion.observe(step, point.loss)
        signals = [
            signal for detector in self._running if (signal := detector.observe(point)) is not None
        ]
        return self._merge(step, signals) if signals else []

    def update_ranks(self, step: int, points: Iterable[RankPoint]) -> list[Finding]:
        """Take what each rank saw in one step; return what is new about single ranks."""
        if self._modes[self._cross_rank.name] == "off":
            return []
        signals = self._cross_rank.observe_ranks(step, points)
        return self._merge(step, signals) if signals else []

    def _merge(self, step: int, signals: list[Signal]) -> list[Finding]:
        keeper = self._keeper
        found = []
        for signal in signals:
            shadow = self._modes[signal.detector] == "shadow"
            finding = keeper.merge(step, self._count, signal, shadow=shadow)
            if finding is not None:
                found.append(finding)
        if any(f.severity is Severity.WARN and not f.shadow for f in found):
            agreed = keeper.agree(step)
            if agreed is not None:
                found.append(agreed)
        if found:
            self._score.expire(self._count)
            self._score.note(self._count, found)
        return found

    def restarted(self, at_step: int, *, numeric: bool = False) -> None:
        """Tell the detectors that the run goes on from at_step after a rollback or restart.

        Open episodes are dropped and a scaler may come down from its initial value again; what is
        known about the usual loss is kept as far as it was learned before at_step.
        numeric: the restart was made for a numeric reason, which confirms open shadow findings.
        """
        self._step = None
        self._lr.restarted()
        self._excursion.restarted(at_step)
        self._keeper.reset()
        self._cross_rank.restarted(at_step)
        for detector in self._detectors:
            detector.restarted(at_step)
        if numeric:
            self._score.confirm()

    def set_mode(self, detector: str, mode: Mode) -> None:
        """Switch one detector between acting, shadow and off, mid-flight.

        What it has open is forgotten; it speaks again at its next signal.
        Raises: KeyError when there is no such detector.
        """
        if self._modes[detector] == mode:
            return
        self._modes[detector] = mode
        self._keeper.forget(detector)
        everyone: list[Detector | CrossRankDetector] = [*self._detectors, self._cross_rank]
        for each in everyone:
            if each.name == detector:
                each.restarted(self._step or 0)
        self._running = [d for d in self._detectors if self._modes[d.name] != "off"]

    @property
    def detectors(self) -> dict[str, Mode]:
        """Name and mode of every detector."""
        return dict(self._modes)

    @property
    def verdict(self) -> Verdict:
        """How the run stands now, over all detectors that act."""
        return self._keeper.current()

    def precision(self, detector: str) -> Tally:
        """Return how often detector, in shadow mode, has been right so far."""
        self._score.expire(self._count)
        return self._score.tally(detector)
