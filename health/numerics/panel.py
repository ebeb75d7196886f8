"""The panel: every numeric detector over one run, one point at a time."""

from __future__ import annotations

from ...logbook.findings import Finding
from .config import DetectorConfig, Mode, PanelConfig
from .creep import CreepDetector
from .excursion import Excursion
from .level_shift import LevelShiftDetector
from .non_finite import NonFiniteDetector
from .point import Detector, Point
from .scaler import ScalerDetector
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
        self._excursion = Excursion(self._config.spike)
        self._detectors = self._build()
        self._modes: dict[str, Mode] = {
            name: section.mode for name, section in self._sections().items()
        }
        self._keeper = VerdictKeeper(self._config.cooldown_points)
        self._count = 0
        self._step: int | None = None

    def _build(self) -> list[Detector]:
        config, excursion = self._config, self._excursion
        return [
            NonFiniteDetector(config.non_finite),
            ScalerDetector(config.scaler),
            LevelShiftDetector(config.level_shift, excursion),
            CreepDetector(config.creep, excursion),
            SpikeDetector(excursion),
        ]

    def _sections(self) -> dict[str, DetectorConfig]:
        config = self._config
        return {
            NonFiniteDetector.name: config.non_finite,
            ScalerDetector.name: config.scaler,
            LevelShiftDetector.name: config.level_shift,
            CreepDetector.name: config.creep,
            SpikeDetector.name: config.spike,
        }

    def update(self, point: Point) -> list[Finding]:
        """Take the next point; return what is new, usually nothing.

        Returns: at most one finding per detector; severity only rises within an episode.
        """
        if self._step is not None and point.step < self._step:
            self.restarted(point.step)
        self._step = point.step
        self._count += 1
        if point.loss is not None:
            self._excursion.observe(point.step, point.loss, point.lr)
        found: list[Finding] = []
        for detector in self._detectors:
            mode = self._modes[detector.name]
            if mode == "off":
                continue
            signal = detector.observe(point)
            if signal is not None:
                finding = self._keeper.merge(
                    point.step, self._count, signal, shadow=mode == "shadow"
                )
                if finding is not None:
                    found.append(finding)
        return found

    def restarted(self, at_step: int) -> None:
        """Tell the detectors that the run goes on from at_step after a rollback or restart.

        Open episodes are dropped and a scaler may come down from its initial value again; what is
        known about the usual loss is kept.
        """
        self._step = None
        self._excursion.close()
        self._keeper.reset()
        for detector in self._detectors:
            detector.restarted(at_step)

    def set_mode(self, detector: str, mode: Mode) -> None:
        """Switch one detector between acting, shadow and off, mid-flight.

        Raises: KeyError when there is no such detector.
        """
        if detector not in self._modes:
            raise KeyError(detector)
        self._modes[detector] = mode

    @property
    def detectors(self) -> dict[str, Mode]:
        """Name and mode of every detector."""
        return dict(self._modes)

    @property
    def verdict(self) -> Verdict:
        """How the run stands now, over all detectors that act."""
        return self._keeper.current()
