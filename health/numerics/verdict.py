"""One verdict per moment out of many detectors: observe, warn or roll back, since when, and why."""

from __future__ import annotations

import msgspec

from ...logbook.findings import Finding, Severity
from .point import Signal

_RANK = {Severity.OBSERVE: 1, Severity.WARN: 2, Severity.ROLLBACK: 3}

# Detectors that look at the same trouble from several sides speak with one voice.
_FAMILY = {
    "spike": "loss",
    "level-shift": "loss",
    "creep": "loss",
    "non-finite": "loss",
    "grad-norm": "norms",
    "activation-norm": "norms",
}


class Verdict(msgspec.Struct, frozen=True):
    """How the run stands now. severity None: nothing is open.

    onset_step: earliest onset among the open findings; evidence: the findings, oldest first.
    """

    severity: Severity | None = None
    onset_step: int | None = None
    evidence: tuple[Finding, ...] = ()


class _Episode:
    """One excursion as a family of detectors sees it, from the first finding to the last end."""

    __slots__ = ("evidence", "onset_step", "open_detectors", "severity")

    def __init__(self) -> None:
        self.severity: Severity | None = None
        self.onset_step: int | None = None
        self.open_detectors: list[str] = []
        self.evidence: list[Finding] = []


class VerdictKeeper:
    """Merges signals into findings: one excursion yields one finding that escalates.

    A signal no worse than what its family has already said in this episode adds nothing and is
    dropped. A finding in shadow mode keeps its own episode and never touches the verdict.
    """

    def __init__(self, cooldown_points: int) -> None:
        self._cooldown_points = cooldown_points
        self._episodes: dict[str, _Episode] = {}
        self._last_warned: dict[str, int] = {}

    def merge(self, step: int, count: int, signal: Signal, *, shadow: bool) -> Finding | None:
        """Return the finding that signal leads to at this step, if it says anything new.

        count: number of points seen so far; cooldown is measured in it.
        """
        family = _FAMILY.get(signal.detector, signal.detector)
        key = f"shadow/{signal.detector}" if shadow else family
        if signal.rank is not None:
            key = f"{key}/{signal.rank}"
        if signal.momentary:
            key = f"{key}/{signal.kind}"
            severity = self._cooled(key, count, signal.severity)
            return _finding(step, signal.onset_step, severity, signal, shadow=shadow)
        episode = self._episodes.get(key)
        if signal.ended:
            self._end(key, episode, signal.detector)
            return None
        if episode is None:
            episode = self._episodes[key] = _Episode()
        if signal.detector not in episode.open_detectors:
            episode.open_detectors.append(signal.detector)
        severity = self._cooled(key, count, signal.severity)
        if episode.severity is not None and _RANK[severity] <= _RANK[episode.severity]:
            return None
        onset = signal.onset_step
        if episode.onset_step is not None:
            onset = min(onset, episode.onset_step)
        finding = _finding(step, onset, severity, signal, shadow=shadow)
        episode.severity = severity
        episode.onset_step = onset
        episode.evidence.append(finding)
        return finding

    def current(self) -> Verdict:
        """Return the verdict over all open episodes that are not in shadow mode."""
        found = [
            finding
            for key, episode in self._episodes.items()
            if not key.startswith("shadow/")
            for finding in episode.evidence
        ]
        if not found:
            return Verdict()
        worst = max(found, key=lambda finding: _RANK[finding.severity]).severity
        onset = min(finding.onset_step for finding in found)
        return Verdict(worst, onset, tuple(sorted(found, key=lambda finding: finding.step)))

    def reset(self) -> None:
        """Close every episode: the run was restarted."""
        self._episodes.clear()

    def _cooled(self, key: str, count: int, severity: Severity) -> Severity:
        if severity is not Severity.WARN:
            return severity
        last = self._last_warned.get(key)
        if last is not None and count - last < self._cooldown_points:
            return Severity.OBSERVE
        self._last_warned[key] = count
        return severity

    def _end(self, key: str, episode: _Episode | None, detector: str) -> None:
        if episode is None:
            return
        if detector in episode.open_detectors:
            episode.open_detectors.remove(detector)
        if not episode.open_detectors:
            del self._episodes[key]


def _finding(
    step: int, onset_step: int, severity: Severity, signal: Signal, *, shadow: bool
) -> Finding:
    return Finding(
        detector=signal.detector,
        kind=signal.kind,
        severity=severity,
        step=step,
        onset_step=min(onset_step, step),
        value=signal.value,
        reference=signal.reference,
        message=signal.message,
        node=signal.node,
        rank=signal.rank,
        shadow=shadow,
    )
