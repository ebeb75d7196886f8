"""Loss spike: a loss that jumps out of the ordinary. Only ever a note."""

from __future__ import annotations

from ...logbook.findings import Severity
from .excursion import Excursion
from .point import Point, Signal


class SpikeDetector:
    """Says once per excursion that it has begun, and that it has ended.

    In recorded runs most spikes heal within a few points, and a restart for each would cost more
    than it saves, so a spike alone is never more than an observation.
    """

    name = "spike"

    def __init__(self, excursion: Excursion) -> None:
        self._excursion = excursion
        self._told = False

    def observe(self, point: Point) -> Signal | None:
        """Return a signal when an excursion of the loss begins or ends."""
        excursion = self._excursion
        if excursion.is_open == self._told:
            return None
        self._told = excursion.is_open
        if not excursion.is_open:
            return self._signal("loss is back in its usual range", ended=True)
        return self._signal(
            f"loss {excursion.latest:.4g} against {excursion.reference:.4g} before, "
            f"usual up to {excursion.threshold:.4g}"
        )

    def restarted(self, at_step: int) -> None:
        """Forget the open episode."""
        self._told = False

    def _signal(self, message: str, *, ended: bool = False) -> Signal:
        excursion = self._excursion
        return Signal(
            detector=self.name,
            kind="spike",
            severity=Severity.OBSERVE,
            onset_step=excursion.onset_step,
            value=excursion.latest,
            reference=excursion.reference,
            message=message,
            ended=ended,
        )
