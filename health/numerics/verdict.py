"""One verdict per moment out of many detectors: observe, warn or roll back, since when, and why."""

from __future__ import annotations

import msgspec

from ...logbook.findings import Finding, Severity
from .point import Signal

# Detectors that look at the same trouble from several sides speak with one voice.
_FAMILY = {"spike": "loss", "level-shift": "loss", "creep": "loss", "non-finite": "loss"}

# Witnesses to one and the same trouble. Two warnings among them are grounds for a rollback when one
# is from a key witness: gradients alone jump, and scalers dip, in runs that go on to recover.
_WITNESSES = ("loss", "scaler-collapse", "grad-norm", "activation-norm")
_KEY_WITNESSES = ("loss", "activation-norm")
_AGREEMENT = "agreement"
_SHADOW = "shadow/"


class Verdict(msgspec.Struct, frozen=True):
    """How the run stands now. severity None: nothing is open.

    onset_step: earliest onset among the open findings; evidence: the findings, oldest first.
    """

    severity: Severity | None = None
    onset_step: int | None = None
    evidence: tuple[Finding, ...] = ()


class _Episode:
    """One excursion as a family of detectors sees it, from the first finding to the last end."""

    __slots__ = ("evidence", "onset_step", "open_detectors", "raised_at", "severity")

    def __init__(self, onset_step: int) -> None:
        self.severity: Severity | None = None
        self.onset_step = onset_step
        self.open_detectors: list[str] = []
        self.evidence: list[Finding] = []
        self.raised_at = 0

    def add(self, finding: Finding, count: int) -> Finding:
        self.raised_at = count
        self.severity = finding.severity
        self.onset_step = finding.onset_step
        self.evidence.append(finding)
        return finding


class VerdictKeeper:
    """Merges signals into findings: one excursion yields one finding that escalates.

    A signal no worse than what its family has already said in this episode adds nothing and is
    dropped. A finding in shadow mode keeps its own episode and never touches the verdict.
    """

    def __init__(self, cooldown_steps: int, agreement_points: int) -> None:
        self._cooldown_steps = cooldown_steps
        self._agreement_points = agreement_points
        self._episodes: dict[str, _Episode] = {}
        self._last_warned: dict[str, int] = {}

    def merge(self, step: int, count: int, signal: Signal, *, shadow: bool) -> Finding | None:
        """Return the finding that signal leads to at this step, if it says anything new.

        count: number of points so far.
        """
        key = _key(signal, shadow=shadow)
        if signal.momentary:
            severity = self._cooled(key, step, signal.severity)
            return _finding(step, signal.onset_step, severity, signal, shadow=shadow)
        episode = self._episodes.get(key)
        if signal.ended:
            self._end(key, episode, signal.detector)
            return None
        if episode is None:
            episode = self._episodes[key] = _Episode(signal.onset_step)
        if signal.detector not in episode.open_detectors:
            episode.open_detectors.append(signal.detector)
        severity = self._cooled(key, step, signal.severity)
        if episode.severity is not None and severity.weight <= episode.severity.weight:
            return None
        onset = min(signal.onset_step, episode.onset_step)
        finding = episode.add(_finding(step, onset, severity, signal, shadow=shadow), count)
        # A witness whose warning has already led to a rollback has nothing to add.
        called = severity is Severity.ROLLBACK and key in _WITNESSES
        return None if called and _AGREEMENT in self._episodes else finding

    def agree(self, step: int) -> Finding | None:
        """Return a rollback finding when independent warnings have come to agree, else None.

        Warnings agree that were raised within agreement_points of each other; one that has stood
        for long says nothing about the other.
        """
        witnesses = self._warned_witnesses()
        if witnesses is None or _AGREEMENT in self._episodes:
            return None
        if any(episode.severity is Severity.ROLLBACK for _, episode in witnesses):
            return None
        keys = [episode for name, episode in witnesses if name in _KEY_WITNESSES]
        last = keys[-1].evidence[-1]
        onset = min(episode.onset_step for episode in keys)
        episode = self._episodes[_AGREEMENT] = _Episode(onset)
        finding = Finding(
            detector=_AGREEMENT,
            kind=last.kind,
            severity=Severity.ROLLBACK,
            step=step,
            onset_step=onset,
            value=last.value,
            reference=last.reference,
            message=f"{' and '.join(name for name, _ in witnesses)} warn of the same trouble",
        )
        return episode.add(finding, 0)

    def current(self) -> Verdict:
        """Return the verdict over all open episodes that are not in shadow mode."""
        found = [
            finding
            for key, episode in self._episodes.items()
            if not key.startswith(_SHADOW)
            for finding in episode.evidence
        ]
        if not found:
            return Verdict()
        worst = max(found, key=lambda finding: finding.severity.weight).severity
        onset = min(finding.onset_step for finding in found)
        return Verdict(worst, onset, tuple(sorted(found, key=lambda finding: finding.step)))

    def forget(self, detector: str) -> None:
        """Close what detector has open, in the verdict or in shadow: its mode is changing."""
        for key, episode in list(self._episodes.items()):
            self._end(key, episode, detector)

    def reset(self) -> None:
        """Close every episode: the run was restarted."""
        self._episodes.clear()
        self._last_warned.clear()

    def _warned_witnesses(self) -> list[tuple[str, _Episode]] | None:
        found = [
            (name, episode)
            for name in _WITNESSES
            if (episode := self._episodes.get(name)) is not None
            and episode.severity in (Severity.WARN, Severity.ROLLBACK)
        ]
        newest = max((episode.raised_at for _, episode in found), default=0)
        fresh = [
            (name, episode)
            for name, episode in found
            if newest - episode.raised_at <= self._agreement_points
        ]
        has_key = any(name in _KEY_WITNESSES for name, _ in fresh)
        return fresh if len(fresh) >= 2 and has_key else None

    def _cooled(self, key: str, step: int, severity: Severity) -> Severity:
        if severity is not Severity.WARN:
            return severity
        last = self._last_warned.get(key)
        if last is not None and 0 <= step - last < self._cooldown_steps:
            return Severity.OBSERVE
        self._last_warned[key] = step
        return severity

    def _end(self, key: str, episode: _Episode | None, detector: str) -> None:
        if episode is None or detector not in episode.open_detectors:
            return
        episode.open_detectors.remove(detector)
        if not episode.open_detectors:
            del self._episodes[key]
            if self._warned_witnesses() is None:
                self._episodes.pop(_AGREEMENT, None)


def _key(signal: Signal, *, shadow: bool) -> str:
    key = signal.kind if signal.momentary else _FAMILY.get(signal.detector, signal.detector)
    if shadow:
        key = f"{_SHADOW}{signal.detector}/{key}"
    return key if signal.rank is None else f"{key}/{signal.rank}"


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
