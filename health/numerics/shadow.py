"""How often a detector in shadow mode has been right."""

from __future__ import annotations

import msgspec

from ...logbook.findings import Finding, Severity


class Tally(msgspec.Struct, frozen=True):
    """Score of one shadow detector, over warnings and rollbacks it would have called.

    confirmed: a detector that acts called for a rollback, or the run was rolled back, within the
    horizon after it. refuted: the horizon passed without either. The rest is still open.
    """

    raised: int = 0
    confirmed: int = 0
    refuted: int = 0

    @property
    def precision(self) -> float | None:
        """Share of settled findings that were confirmed; None before any is settled."""
        settled = self.confirmed + self.refuted
        return self.confirmed / settled if settled else None


class ShadowScore:
    """Keeps the running precision of shadow findings. Time is counted in points."""

    def __init__(self, horizon_points: int) -> None:
        self._horizon_points = horizon_points
        self._open: list[tuple[int, str]] = []
        self._tallies: dict[str, Tally] = {}

    def tally(self, detector: str) -> Tally:
        """Return the score of one detector; all zero when it has raised nothing."""
        return self._tallies.get(detector, Tally())

    def note(self, count: int, findings: list[Finding]) -> None:
        """Take what the panel found at its count-th point."""
        for finding in findings:
            if finding.shadow and finding.severity is not Severity.OBSERVE:
                self._open.append((count, finding.detector))
                self._add(finding.detector, raised=1)
        if any(f.severity is Severity.ROLLBACK and not f.shadow for f in findings):
            self.confirm()

    def expire(self, count: int) -> None:
        """Refute what has waited longer than the horizon."""
        while self._open and count - self._open[0][0] > self._horizon_points:
            _, detector = self._open.pop(0)
            self._add(detector, refuted=1)

    def confirm(self) -> None:
        """Confirm everything that is still open: the run was, or should be, rolled back."""
        for _, detector in self._open:
            self._add(detector, confirmed=1)
        self._open.clear()

    def _add(self, detector: str, raised: int = 0, confirmed: int = 0, refuted: int = 0) -> None:
        old = self.tally(detector)
        self._tallies[detector] = Tally(
            old.raised + raised, old.confirmed + confirmed, old.refuted + refuted
        )
