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

# Skips that lie further apart than this are separate events.
_PAUSE_POINTS = 4
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
        self._highest = 0.0
        self._higher_since: int | None = None
        self._settled_at: int | None = None
        # Steps at which something was skipped, how many, and the scale before.
        self._events: deque[tuple[int, int, float]] = deque(maxlen=config.skip_window_points)
        self.restarted(0)

    def restarted(self, at_step: int) -> None:
        """Forget the open episode; the scale may come down from its initial value again."""
        self._step: int | None = None
        self._began_at = at_step
        self._scale = math.nan
        self._quiet_steps = 0
        self._settled = False
        self._was_above_low = False
        self._floor_steps = self._pinned_steps = self._stuck_steps = 0
        self._low_since: int | None = None
        self._events.clear()
        self._told: Severity | None = None
        self._onset_step = at_step

    def observe(self, point: Point) -> Signal | None:
        """Return a signal when the scaler gets into trouble, gets worse or recovers."""
        step, scale = point.step, point.loss_scale
        if self._step is None:
            if scale is None and not point.skipped:
                return None
            self._step = self._began_at = step - 1
        gap = max(1, step - self._step)
        self._step = step
        if (scale is None or scale == self._scale) and not point.skipped and self._is_calm():
            self._quiet_steps += gap
            self._stuck_steps = self._pinned_steps = 0
            return None
        self._track(point, gap)
        return self._climb(step) or self._report(step, gap)

    def _is_calm(self) -> bool:
        """The way nearly every point takes: without a skip, nothing can have become worse."""
        return self._settled and self._told is None and self._low_since is None

    def _track(self, point: Point, gap: int) -> None:
        step = point.step
        before = self._scale
        scale = before if point.loss_scale is None else point.loss_scale
        self._scale = scale
        # A log may carry the scale and not the skips; a scale that fell has seen an overflow.
        skips = max(int(point.skipped), int(scale < before))
        if skips:
            self._events.append((step, skips, before))
        self._forget_events(step, gap)
        stuck = skips >= gap
        self._stuck_steps = self._stuck_steps + gap if stuck else 0
        self._pinned_steps = self._pinned_steps + gap if stuck and scale == before else 0
        self._floor_steps = self._floor_steps + gap if scale <= self._config.floor else 0
        if scale < self._config.low_scale:
            self._low_since = step if self._low_since is None else self._low_since
        elif scale >= 2 * self._config.low_scale:
            self._low_since = None
        self._settle(gap, skips)

    def _settle(self, gap: int, skips: int) -> None:
        self._quiet_steps = 0 if skips else self._quiet_steps + gap
        if self._quiet_steps >= self._config.settle_steps:
            if not self._settled:
                self._events.clear()
            self._settled = True
            self._was_above_low |= not self._scale < self._config.low_scale

    def _forget_events(self, step: int, gap: int) -> None:
        events, window = self._events, self._config.skip_window_points * gap
        while events and step - events[0][0] >= window:
            events.popleft()

    def _climb(self, step: int) -> Signal | None:
        """Return a warning when the scale is far above what a mature run has been used to."""
        config, scale = self._config, self._scale
        if not self._settled or not scale > self._highest:
            self._higher_since = None
            return None
        if self._settled_at is None:
            self._settled_at = step
        if step - self._settled_at < config.high_history_steps:
            self._highest = scale
            return None
        if scale >= config.high_factor * self._highest:
            usual, self._highest = self._highest, scale
            message = f"loss scale has climbed to {scale:g}, usual up to {usual:g}"
            return self._signal("scale-high", Severity.WARN, message)
        if self._higher_since is None:
            self._higher_since = step
        elif step - self._higher_since >= config.high_history_steps:
            self._highest, self._higher_since = scale, None
        return None

    def _report(self, step: int, gap: int) -> Signal | None:
        severity, reason = self._judge_stuck()
        # What was skipped before it settled was the way down from the initial scale.
        if severity is None and self._settled:
            severity, reason = self._judge_skips(step, gap)
        if severity is None:
            severity, reason = self._judge_low(step)
        if severity is not None and _RANK[severity] > _RANK[self._told]:
            if self._told is None:
                self._onset_step = self._onset(step, gap)
            self._told = severity
            return self._signal("scaler-collapse", severity, reason)
        if self._told is not None and severity is None and self._has_recovered():
            self._told = None
            return self._signal("scaler-collapse", Severity.OBSERVE, "recovered", ended=True)
        return None

    def _judge_stuck(self) -> tuple[Severity | None, str]:
        dwell = self._config.floor_dwell_steps
        if self._floor_steps >= dwell:
            return Severity.ROLLBACK, f"loss scale at its floor for {self._floor_steps} steps"
        if self._pinned_steps >= dwell or (self._settled and self._stuck_steps >= dwell):
            return Severity.ROLLBACK, f"every step skipped for {self._stuck_steps} steps"
        return None, ""

    def _judge_skips(self, step: int, gap: int) -> tuple[Severity | None, str]:
        config, events = self._config, self._events
        if len(events) < 2:
            return None, ""
        window = config.skip_window_points * gap
        if step - self._began_at >= window:
            rate = sum(skips for _, skips, _ in events) / window
            reason = f"{rate:.0%} of {window} steps skipped"
            if rate >= config.skip_rollback_frac:
                return Severity.ROLLBACK, reason
            if rate >= config.skip_warn_frac:
                return Severity.WARN, reason
        limit = self._scale * config.fall_factor
        if any(before >= limit for _, _, before in events):
            return Severity.WARN, "loss scale is falling fast"
        return None, ""

    def _judge_low(self, step: int) -> tuple[Severity | None, str]:
        limit = self._config.low_scale
        if self._low_since is None:
            return None, ""
        if not self._was_above_low and step - self._began_at < self._config.unsettled_steps:
            return None, ""
        how = "fell" if self._was_above_low else "stays"
        if self._scale < limit / 2:
            return Severity.WARN, f"loss scale {how} below {limit / 2:g}"
        if self._scale < limit:
            return Severity.OBSERVE, f"loss scale {how} below {limit:g}"
        return None, ""

    def _has_recovered(self) -> bool:
        return self._low_since is None and self._quiet_steps >= self._config.settle_steps

    def _onset(self, step: int, gap: int) -> int:
        """Return where the trouble began: the first of the skips that led here without a pause."""
        onset = step - max(0, self._floor_steps - 1)
        for at, _, _ in reversed(self._events):
            if onset - at > _PAUSE_POINTS * gap:
                break
            onset = min(onset, at)
        low = onset if self._low_since is None else self._low_since
        return max(self._began_at, min(onset, low))

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
            reference=self._highest if high else self._config.low_scale,
            message=message,
            ended=ended,
            momentary=high,
        )
