"""Loss-scaler collapse: fp16 gradients that no longer fit, whatever the loss looks like.

In OPT-175B the scale fell below 1 while perplexity was still flat; once at its floor the scaler
skips every step for ever and training stands still. The mirror image, a scale that climbs far above
what the run is used to, came before instability in the same family of runs and is worth a warning.
"""

from __future__ import annotations

import math
from collections import deque

from ...logbook.findings import Severity
from .config import ScalerConfig
from .point import Point, Signal

_RANK = {None: 0, Severity.OBSERVE: 1, Severity.WARN: 2, Severity.ROLLBACK: 3}


class ScalerDetector:
    """Watches dwell at the floor, skip rate, falls and climbs of the loss scale.

    Until a scaler has gone settle_steps without a skip it is on its way down from its initial
    value: skips are then normal and only a stay at the floor counts.
    A log without scale or skips (bf16) keeps this detector silent.
    """

    name = "scaler-collapse"

    def __init__(self, config: ScalerConfig) -> None:
        self._config = config
        self._scale = math.nan
        self._step: int | None = None
        self._recent: deque[tuple[float, int, int]] = deque()
        self._highest_settled = 0.0
        self._settled_at: int | None = None
        self._begin(0)

    def _begin(self, step: int) -> None:
        """Start a stretch in which the scaler has yet to settle."""
        self._began_at = step
        self._quiet_steps = 0
        self._settled = False
        self._was_above_low = False
        self._floor_steps = 0
        self._pinned_steps = 0
        self._stuck_steps = 0
        self._skips = 0
        self._steps = 0
        self._recent.clear()
        self._told: Severity | None = None
        self._onset_step = step
        self._low_since: int | None = None

    def restarted(self, at_step: int) -> None:
        """Forget the open episode; the scale may come down from its initial value again."""
        self._begin(at_step)
        self._step = None
        self._scale = math.nan

    def observe(self, point: Point) -> Signal | None:
        """Return a signal when the scaler gets into trouble, gets worse or recovers."""
        if point.loss_scale is None and not point.skipped and self._step is None:
            return None
        climbed = self._track(point)
        severity, reason = self._condition(point.step)
        if severity is not None and _RANK[severity] > _RANK[self._told]:
            if self._told is None:
                self._onset_step = self._onset(point.step)
            self._told = severity
            return self._signal("scaler-collapse", severity, reason)
        if self._told is not None and severity is None and self._has_recovered():
            self._told = None
            return self._signal("scaler-collapse", Severity.OBSERVE, "recovered", ended=True)
        if climbed:
            return self._signal(
                "scale-high", Severity.WARN, f"loss scale has climbed to {self._scale:g}"
            )
        return None

    def _track(self, point: Point) -> bool:
        """Fold one point into the counters; return whether the scale has climbed unusually high."""
        gap = 1 if self._step is None else max(1, point.step - self._step)
        if self._step is None:
            self._began_at = point.step
        self._step = point.step
        scale = self._scale if point.loss_scale is None else point.loss_scale
        same, fell = scale == self._scale, scale < self._scale
        self._scale = scale
        # A log may carry the scale and not the skips; a scale that fell has seen an overflow.
        skips = max(int(point.skipped), int(fell))
        self._stuck_steps = self._stuck_steps + gap if skips >= gap else 0
        self._pinned_steps = self._pinned_steps + gap if skips >= gap and same else 0
        self._floor_steps = self._floor_steps + gap if scale <= self._config.floor else 0
        if scale < self._config.low_scale:
            if self._low_since is None:
                self._low_since = point.step
        elif scale >= 2 * self._config.low_scale:
            self._low_since = None
        self._settle(gap, skips, scale)
        self._slide(scale, skips, gap)
        return self._climbs(point.step, scale)

    def _settle(self, gap: int, skips: int, scale: float) -> None:
        self._quiet_steps = 0 if skips else self._quiet_steps + gap
        if self._quiet_steps >= self._config.settle_steps:
            self._settled = True
            if not scale < self._config.low_scale:
                self._was_above_low = True

    def _slide(self, scale: float, skips: int, gap: int) -> None:
        if not self._settled:
            return
        self._recent.append((scale, skips, gap))
        self._skips += skips
        self._steps += gap
        if len(self._recent) > self._config.skip_window_points:
            _, old_skips, old_gap = self._recent.popleft()
            self._skips -= old_skips
            self._steps -= old_gap

    def _climbs(self, step: int, scale: float) -> bool:
        if not self._settled or math.isnan(scale):
            return False
        if self._settled_at is None:
            self._settled_at = step
        if scale <= self._highest_settled:
            return False
        mature = step - self._settled_at >= self._config.high_history_steps
        if mature and scale < self._config.high_factor * self._highest_settled:
            return False
        self._highest_settled = scale
        return mature

    def _condition(self, step: int) -> tuple[Severity | None, str]:
        """Return how bad the present state is, and why; (None, "") when it is not."""
        config = self._config
        if self._floor_steps >= config.floor_dwell_steps:
            return Severity.ROLLBACK, f"loss scale at its floor for {self._floor_steps} steps"
        if self._pinned_steps >= config.floor_dwell_steps:
            return Severity.ROLLBACK, (
                f"every step skipped for {self._pinned_steps} steps at the same loss scale"
            )
        low = self._low_since is not None
        if not self._settled:
            if low and step - self._began_at >= config.unsettled_steps:
                return Severity.WARN, "loss scale has not settled since the start"
            return None, ""
        if self._stuck_steps >= config.floor_dwell_steps:
            return Severity.ROLLBACK, f"every step skipped for {self._stuck_steps} steps"
        full = len(self._recent) >= config.skip_window_points
        rate = self._skips / self._steps if self._steps else 0.0
        if full and rate >= config.skip_rollback_frac:
            return Severity.ROLLBACK, f"{rate:.0%} of {self._steps} steps skipped"
        if full and rate >= config.skip_warn_frac:
            return Severity.WARN, f"{rate:.0%} of {self._steps} steps skipped"
        if self._skips >= 2 and self._has_fallen():
            return Severity.WARN, "loss scale is falling fast"
        if low:
            return self._judge_low(step)
        return None, ""

    def _judge_low(self, step: int) -> tuple[Severity | None, str]:
        limit = self._config.low_scale
        known_higher = self._was_above_low
        if not known_higher and step - self._began_at < self._config.unsettled_steps:
            return None, ""
        how = "fell" if known_higher else "stays"
        if self._scale < limit / 2:
            return Severity.WARN, f"loss scale {how} below {limit / 2:g}"
        if self._scale < limit:
            return Severity.OBSERVE, f"loss scale {how} below {limit:g}"
        return None, ""

    def _has_fallen(self) -> bool:
        limit = self._scale * self._config.fall_factor
        return any(scale >= limit for scale, _, _ in self._recent)

    def _has_recovered(self) -> bool:
        return self._low_since is None and self._quiet_steps >= self._config.settle_steps

    def _onset(self, step: int) -> int:
        """Return where the trouble began: the first skip of the run of skips that led here."""
        steps_back = 0
        for _, skips, gap in reversed(self._recent):
            if not skips:
                break
            steps_back += gap
        back = max(steps_back, self._floor_steps, self._stuck_steps)
        onset = step - max(0, back - 1)
        return max(self._began_at, min(onset, self._low_since or onset))

    def _signal(
        self, kind: str, severity: Severity, message: str, *, ended: bool = False
    ) -> Signal:
        high = kind == "scale-high"
        return Signal(
            detector=self.name,
            kind=kind,
            severity=severity,
            onset_step=(self._step or 0) if high else self._onset_step,
            value=self._scale,
            reference=self._highest_settled if high else self._config.low_scale,
            message=message,
            ended=ended,
            momentary=high,
        )
